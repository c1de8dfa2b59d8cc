"""What the tests of the chat page do in Chromium, which they drive with Playwright; both are optional."""

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from octavo.engine.answer import Piece
from tests.serve.serving import MODEL, Puppet

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", "--disable-sync", "--disable-quic"]  # fmt: skip
# the browser's own lines about answers that tests provoke
EXPECTED = ("status of 4", "status of 503", "ERR_CONNECTION_REFUSED", "ERR_INCOMPLETE_CHUNKED_ENCODING")
Page = Any  # playwright is optional

needs_browser = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")]


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser; only within one module at a time: it holds the event loop of the thread."""
    playwright = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield opened
        opened.close()


@contextmanager
def new_page(browser: Any, **look: Any) -> Iterator[Page]:
    """A page with storage of its own, which fails its test by an error or a warning in the console."""
    complaints: list[str] = []
    context = browser.new_context(**{"viewport": {"width": 1100, "height": 760}} | look)
    context.set_default_timeout(15_000)
    page = context.new_page()
    page.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    yield page
    page.goto("about:blank")  # so that no stream is left to the server that stops next
    context.close()
    assert [text for text in complaints if not any(words in text for words in EXPECTED)] == []


def visit(page: Page, url: str) -> None:
    """Open the page and wait until it knows its model."""
    page.goto(url)
    page.locator("#model:enabled").wait_for()


def says(puppet: Puppet, *texts: str | Exception, steps: int | None = None) -> None:
    """From now on the puppet answers every request with these pieces, and lets out all or the first ones of them."""
    pieces: list[Piece | Exception] = [text if isinstance(text, Exception) else Piece(text, 7) for text in texts]
    if not isinstance(texts[-1], Exception):
        pieces.append(Piece("", 2, "stop"))
    puppet.pieces = tuple(pieces)
    puppet.step(len(pieces) if steps is None else steps)


def ask(page: Page, text: str) -> None:
    """Send a message."""
    page.get_by_label("Message", exact=True).fill(text)
    page.keyboard.press("Enter")


def last_answer(page: Page, state: str = "done") -> Any:
    """The last answer, when it is in this state."""
    page.locator(f".assistant:last-child[data-state={state}]").wait_for()
    return page.locator(".assistant").last


def converse(page: Page, puppet: Puppet, *turns: tuple[str, str]) -> None:
    """Ask each question and have it answered so."""
    for question, answer in turns:
        says(puppet, answer)
        ask(page, question)
        last_answer(page).get_by_text(answer).first.wait_for()


def sent_by(page: Page, act: Any) -> dict[str, Any]:
    """The request for an answer that `act()` makes the page send."""
    with page.expect_request("**/v1/chat/completions") as sent:
        act()
    return sent.value.post_data_json


def stored(page: Page) -> dict[str, Any]:
    """The conversation on view, as the browser has stored it."""
    return json.loads(page.evaluate("localStorage.getItem(`octavo.chat.${location.hash.slice(1)}`)"))


def shown(page: Page) -> list[str]:
    """The text of each turn on view."""
    return [text.strip() for text in page.locator(".turn .text").all_inner_texts()]


def configure(page: Page, **settings: str) -> None:
    """Fill fields of the settings by their labels."""
    page.get_by_role("button", name="Settings", exact=True).click()
    for label, value in settings.items():
        page.get_by_label(label.replace("_", " ")).fill(value)
    page.get_by_role("button", name="Close settings").click()


def attach(page: Page, *files: tuple[str, bytes]) -> None:
    """Choose files (name, content)."""
    chosen = [{"name": name, "mimeType": "text/plain", "buffer": content} for name, content in files]
    page.set_input_files("#file", chosen)


def answer_with(page: Page, path: str, **fields: Any) -> None:
    """Answer a path in the browser, in the server's stead."""
    page.route(f"**{path}", lambda route: route.fulfill(**fields))


def offer_models(page: Page, names: Iterable[str] = (MODEL,)) -> None:
    """Let the server have these models."""
    answer_with(page, "/v1/models", json={"object": "list", "data": [{"id": name} for name in names]})


def picture(page: Page, name: str, folder: Path) -> None:
    """A screenshot; OCTAVO_SCREENSHOTS=folder keeps it."""
    assert page.screenshot(path=folder / f"{name}.png")
    if "OCTAVO_SCREENSHOTS" in os.environ:
        kept = Path(os.environ["OCTAVO_SCREENSHOTS"])
        kept.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / f"{name}.png", kept)

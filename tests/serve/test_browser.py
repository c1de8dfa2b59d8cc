"""The chat page in headless Chromium, against a real server. OCTAVO_SCREENSHOTS=folder keeps the pictures."""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from octavo.config import SamplingParams
from octavo.engine.engine import Engine
from tests.engine.engines import pages_free, wait_until
from tests.serve.serving import CONTEXT, MODEL, Puppet, says, serving

playwright = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")]
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", "--disable-sync", "--disable-quic"]  # fmt: skip
ATTACK = '<img src=x onerror="document.title=1"><script>document.title=2</script><b>bold</b> & {{ 7*7 }}'
Page = Any  # playwright is optional


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Page]:
    """A page that fails its test by an error or a warning in the console, a broken policy among them."""
    complaints: list[str] = []
    context = browser.new_context(viewport={"width": 1100, "height": 760})
    opened = context.new_page()
    opened.on("console", lambda message: complaints.append(message.text))
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    yield opened
    context.close()
    expected = ("status of 400", "ERR_CONNECTION_REFUSED")  # which tests provoke
    assert [text for text in complaints if not any(words in text for words in expected)] == []


def ask(page: Page, text: str) -> None:
    page.get_by_label("Message").fill(text)
    page.keyboard.press("Enter")


def last_answer(page: Page, state: str = "done") -> Any:
    """The last answer, when it is in this state."""
    page.locator(f".assistant:last-child[data-state={state}]").wait_for(timeout=20_000)
    return page.locator(".assistant").last


def configure(page: Page, **settings: str) -> None:
    page.get_by_role("button", name="Settings").click()
    for label, value in settings.items():
        page.get_by_label(label.replace("_", " ")).fill(value)
    page.get_by_role("button", name="Settings").click()


def text_of(answer: Any) -> str:
    """Exactly the text, which the layout may show with other white space."""
    return answer.locator(".text").evaluate("node => node.textContent")


def test_conversation(page: Page, url: str, engine: Engine) -> None:
    page.goto(url)
    page.get_by_text(MODEL).wait_for()
    assert MODEL in page.title()
    configure(page, System_prompt="Be brief.", Temperature="0", Longest_answer="24")

    turns = [{"role": "system", "content": "Be brief."}]
    for question in ("What is the capital of France?", "And\nof Spain?"):
        ask(page, question) if "\n" not in question else ask_over_lines(page, question)
        turns.append({"role": "user", "content": question})
        expected = engine.complete(turns, SamplingParams(max_new_tokens=24))
        answer = last_answer(page)
        assert text_of(answer) == expected.text
        turns.append({"role": "assistant", "content": expected.text})
        assert re.fullmatch(r"24 tokens · [\d.]+ tokens/s · cut off.*", answer.locator(".note").inner_text())
    assert page.locator(".turn").count() == 4

    page.get_by_role("button", name="New chat").click()
    assert page.locator(".turn").count() == 0
    ask(page, "What is the capital of France?")
    turns = turns[:2]
    assert text_of(last_answer(page)) == engine.complete(turns, SamplingParams(max_new_tokens=24)).text


def ask_over_lines(page: Page, text: str) -> None:
    """Type it with Shift+Enter between the lines."""
    first, second = text.split("\n")
    page.get_by_label("Message").focus()
    page.keyboard.type(first)
    page.keyboard.press("Shift+Enter")
    page.keyboard.type(second)
    page.keyboard.press("Enter")


def test_stop_frees_the_pages(page: Page, url: str, engine: Engine) -> None:
    free = pages_free(engine)
    page.goto(url)
    configure(page, Temperature="0", Longest_answer=str(CONTEXT - 200))
    for stop in (lambda: page.get_by_role("button", name="Stop").click(), lambda: page.keyboard.press("Escape")):
        page.get_by_role("button", name="New chat").click()  # "Hello" alone is known to have a long answer
        ask(page, "Hello")
        wait_until(lambda: len(text_of(page.locator(".assistant").last)) > 20)
        assert pages_free(engine) < free
        stop()
        answer = last_answer(page, "stopped")
        wait_until(lambda: pages_free(engine) == free, 1.0)
        assert len(text_of(answer)) > 20 and "Stopped" in answer.locator(".note").inner_text()
        assert page.get_by_role("button", name="Send").is_visible()


def test_text_is_never_markup(page: Page) -> None:
    puppet = Puppet(*says(ATTACK[:10], ATTACK[10:]))
    puppet.step(10)
    with serving(puppet) as url:
        page.goto(url)
        page.get_by_text(MODEL).wait_for()
        title = page.title()
        ask(page, ATTACK)
        answer = last_answer(page)
        assert text_of(answer) == ATTACK
        assert text_of(page.locator(".user")) == ATTACK
        assert page.locator("#conversation").locator("img, script, b").count() == 0
        assert page.title() == title
        page.goto("about:blank")


def test_failures_are_shown_as_text(page: Page) -> None:
    puppet = Puppet(RuntimeError("inside"), *says("fine"))
    with serving(puppet) as url:
        page.goto(url)
        page.get_by_text(MODEL).wait_for()
        ask(page, "Hello?")
        puppet.step()
        assert "its log says why" in last_answer(page, "error").locator(".note").inner_text()
        # the question is back, and the failed turn is not sent again
        assert page.get_by_label("Message").input_value() == "Hello?"
        with page.expect_request("**/v1/chat/completions") as sent:
            page.keyboard.press("Enter")
        assert sent.value.post_data_json["messages"] == [{"role": "user", "content": "Hello?"}]
        puppet.step()
        last_answer(page, "error")
        page.goto("about:blank")


def test_refusals_are_shown_as_text(page: Page, url: str) -> None:
    page.goto(url)
    configure(page, Longest_answer=str(CONTEXT * 2))
    ask(page, "Hello?")
    assert f"context of {CONTEXT} tokens" in last_answer(page, "error").locator(".note").inner_text()
    configure(page, Longest_answer="")
    page.get_by_label("Message").press("Enter")
    assert page.locator(".turn").count() == 2  # nothing was sent
    assert page.get_by_label("Longest answer").evaluate("field => field === document.activeElement")


def test_a_server_that_goes_is_shown_as_text(page: Page) -> None:
    puppet = Puppet(*says("half an", " answer"))
    with serving(puppet) as url:
        page.goto(url)
        page.get_by_text(MODEL).wait_for()
        ask(page, "Hello?")
        puppet.step()
        page.get_by_text("half an").wait_for()
    answer = last_answer(page, "error")
    assert text_of(answer) == "half an" and "shutting down" in answer.locator(".note").inner_text()
    page.get_by_label("Message").press("Enter")
    page.get_by_text("The server cannot be reached").wait_for()


def test_narrow_screens_and_pictures(browser: Any, url: str, tmp_path: Path) -> None:
    """Nothing sticks out at 360 px, not even a word without spaces."""
    answer = ("Photosynthesis is how a plant makes its food.\n\nIt takes in light, water and air, and turns them into "
              "sugar. What is left over is the oxygen that we breathe.\n\n  1. Light falls on a leaf.\n  2. The leaf "
              "splits water.\n\n" + "verylongword" * 12)  # fmt: skip
    puppet = Puppet(*says(answer), *says("The capital of France is Paris."))
    looks: dict[str, dict[str, Any]] = {
        "desktop-light": {"viewport": {"width": 1100, "height": 760}, "color_scheme": "light"},
        "desktop-dark": {"viewport": {"width": 1100, "height": 760}, "color_scheme": "dark"},
        "mobile": {"viewport": {"width": 360, "height": 700}, "color_scheme": "light", "has_touch": True},
    }
    puppet.step(1000)
    with serving(puppet) as address:
        for name, look in looks.items():
            context = browser.new_context(**look)
            page = context.new_page()
            page.goto(address)
            page.get_by_text(MODEL).wait_for()
            picture(page, f"{name}-empty", tmp_path)
            ask(page, "Explain photosynthesis to a child, and use a very long word at the end of it, please.")
            last_answer(page)
            ask(page, "Thank you!")
            last_answer(page)
            picture(page, name, tmp_path)
            page.get_by_role("button", name="Settings").click()
            picture(page, f"{name}-settings", tmp_path)
            for selector in ("html", "body", "main"):
                width, inner = page.locator(selector).evaluate("node => [node.scrollWidth, node.clientWidth]")
                assert width <= inner <= look["viewport"]["width"], (name, selector)
            context.close()


def picture(page: Page, name: str, folder: Path) -> None:
    assert page.screenshot(path=folder / f"{name}.png")
    if "OCTAVO_SCREENSHOTS" in os.environ:
        kept = Path(os.environ["OCTAVO_SCREENSHOTS"])
        kept.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / f"{name}.png", kept)


def test_labels_and_focus(page: Page, url: str) -> None:
    """Every control has a name, and the keyboard reaches it with a visible ring."""
    page.goto(url)
    page.get_by_text(MODEL).wait_for()
    page.get_by_role("button", name="Settings").click()
    fields = page.locator("button:visible, input:visible, textarea:visible")
    for index in range(fields.count()):
        name = fields.nth(index).evaluate(
            "node => node.getAttribute('aria-label') || node.labels?.[0]?.textContent || node.textContent.trim()"
        )
        assert name
    page.get_by_label("System prompt").focus()
    page.keyboard.press("Shift+Tab")
    focused = page.evaluate("[document.activeElement.id, getComputedStyle(document.activeElement).outlineStyle]")
    assert focused == ["new-chat", "solid"]

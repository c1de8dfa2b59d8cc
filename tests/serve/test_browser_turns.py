"""The chat page in headless Chromium: branches, files, what is kept, export and import."""

import json
from pathlib import Path

import pytest

from tests.engine.engines import wait_until
from tests.serve.browsing import (
    Page,
    answer_with,
    ask,
    attach,
    configure,
    converse,
    last_answer,
    needs_browser,
    says,
    sent_by,
    shown,
    stored,
    visit,
)
from tests.serve.serving import Puppet

pytestmark = needs_browser
Stage = tuple[Puppet, str]


@pytest.fixture
def opened(page: Page, stage: Stage) -> tuple[Page, Puppet]:
    puppet, url = stage
    visit(page, url)
    return page, puppet


def user(*texts: str) -> list[dict[str, str]]:
    """Messages: the user's and the model's in turn."""
    return [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(texts)]


def test_branches(opened: tuple[Page, Puppet]) -> None:
    """A changed question and another answer are versions beside the first ones, each with what followed it."""
    page, puppet = opened
    converse(page, puppet, ("one", "first answer"), ("two", "second answer"))
    page.locator(".user").first.hover()
    page.locator(".user").first.get_by_role("button", name="Edit").click()
    page.get_by_label("Edit message").fill("uno")
    says(puppet, "prima risposta")
    request = sent_by(page, lambda: page.locator(".editor").get_by_role("button", name="Send").click())
    assert request["messages"] == user("uno")
    page.get_by_text("prima risposta").wait_for()
    assert shown(page) == ["uno", "prima risposta"]
    assert page.get_by_text("2/2").count() == 1

    says(puppet, "altra risposta")
    request = sent_by(page, lambda: page.get_by_role("button", name="Regenerate").click())
    assert request["messages"] == user("uno")
    page.get_by_text("altra risposta").wait_for()
    assert shown(page) == ["uno", "altra risposta"] and page.get_by_text("2/2").count() == 2

    page.get_by_role("button", name="Previous version").last.click()
    assert shown(page) == ["uno", "prima risposta"]
    page.get_by_role("button", name="Previous version").first.click()
    assert shown(page) == ["one", "first answer", "two", "second answer"]
    says(puppet, "third answer")
    assert sent_by(page, lambda: ask(page, "three"))["messages"] == user(*shown(page)[:4], "three")
    last_answer(page)
    page.reload()
    page.get_by_text("third answer").wait_for()
    assert shown(page) == ["one", "first answer", "two", "second answer", "three", "third answer"]
    page.get_by_role("button", name="Next version").click()
    assert shown(page) == ["uno", "prima risposta"]


def test_an_answer_can_be_corrected(opened: tuple[Page, Puppet]) -> None:
    """The model is told it said what the reader has made of it."""
    page, puppet = opened
    converse(page, puppet, ("2 + 2?", "Five."))
    page.locator(".assistant").get_by_role("button", name="Edit").click()
    page.get_by_label("Edit message").fill("Four.")
    page.get_by_role("button", name="Save").click()
    assert shown(page) == ["2 + 2?", "Four."]
    says(puppet, "Yes.")
    assert sent_by(page, lambda: ask(page, "Sure?"))["messages"] == user("2 + 2?", "Four.", "Sure?")
    last_answer(page)


def test_copy(opened: tuple[Page, Puppet]) -> None:
    """What is copied is what the model wrote, not how it looks."""
    page, puppet = opened
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    says(puppet, "**bold**\n\n```py\nx = 1\n```\n")
    ask(page, "Show")
    answer = last_answer(page)
    for name, copied in (("Copy", "**bold**\n\n```py\nx = 1\n```\n"), ("Copy code", "x = 1")):
        answer.get_by_role("button", name=name, exact=True).click()
        answer.get_by_role("button", name="Copied").first.wait_for()
        assert page.evaluate("navigator.clipboard.readText()") == copied


def test_a_file_goes_in_front(opened: tuple[Page, Puppet]) -> None:
    """So that the prefix cache serves the next questions about it; its tokens are counted before it is sent."""
    page, puppet = opened
    counts: list[dict] = []

    def count(route: Page) -> None:
        counts.append(route.request.post_data_json)
        route.fulfill(json={"count": 9 if "prompt" in counts[-1] else 2100, "max_model_len": 2048, "tokens": []})

    page.route("**/tokenize", count)
    configure(page, System_prompt="Be brief.")
    attach(page, ("notes.txt", b"the ``` sea\r\nis blue"), ("b.md", b"second"))
    page.get_by_label("Message", exact=True).fill("Which colour?")
    page.get_by_text("2,100 of 2,048 tokens: too long for this model").wait_for()
    chips = page.get_by_role("list", name="Attached files").get_by_role("listitem")
    assert [text.split("\n") for text in chips.all_inner_texts()] == [["notes.txt", "9 tokens"], ["b.md", "9 tokens"]]
    page.get_by_role("button", name="Remove b.md").click()

    says(puppet, "Blue.")
    request = sent_by(page, lambda: page.get_by_role("button", name="Send").click())
    front = "File notes.txt:\n````\nthe ``` sea\nis blue\n````\n\nWhich colour?"
    system = {"role": "system", "content": "Be brief."}
    assert request["messages"] == [system, {"role": "user", "content": front}]
    prompts = [each["prompt"] for each in counts if "prompt" in each]
    assert prompts == ["the ``` sea\nis blue", "second"]
    assert [each["messages"][0] for each in counts if "messages" in each][-1] == system
    last_answer(page)
    assert chips.count() == 0 and page.locator(".user .chip").inner_text().startswith("notes.txt")

    says(puppet, "Yes.")
    request = sent_by(page, lambda: ask(page, "Sure?"))
    assert request["messages"][:2] == [system, {"role": "user", "content": front}]
    assert "400 from cache" in last_answer(page).locator(".note").inner_text()


def test_files_that_cannot_be_attached(opened: tuple[Page, Puppet]) -> None:
    page, _ = opened
    attach(page, ("picture.png", b"\x89PNG\xff\x00"), ("zeros.txt", b"a\x00b"))
    page.get_by_text("zeros.txt is not a text file in UTF-8.").wait_for()
    attach(page, ("long.txt", b"x" * (2 * 2**20 + 1)))
    page.get_by_text("long.txt is larger than 2 MiB").wait_for()
    assert page.locator(".chip").count() == 0 and page.get_by_role("button", name="Send").is_disabled()
    answer_with(page, "/tokenize", status=404, json={})
    attach(page, ("short.txt", b"x"))  # the file alone may be sent, counted or not
    page.get_by_text("token count unavailable").wait_for()
    assert page.get_by_role("button", name="Send").is_enabled()


def test_history(opened: tuple[Page, Puppet]) -> None:
    page, puppet = opened
    converse(page, puppet, ("About the sea", "deep"))
    page.get_by_role("button", name="New chat").click()
    converse(page, puppet, ("About the sky", "high"))
    page.reload()
    page.get_by_text("high").wait_for()
    titles = page.locator("#history .title")
    assert titles.all_inner_texts() == ["About the sky", "About the sea"]

    titles.last.click()
    assert shown(page) == ["About the sea", "deep"]
    titles.last.hover()
    page.get_by_role("button", name="Rename About the sea").click()
    page.get_by_label("Title of the conversation").fill("Water")
    page.keyboard.press("Enter")
    assert titles.all_inner_texts() == ["About the sky", "Water"] and stored(page)["title"] == "Water"

    titles.last.hover()
    page.get_by_role("button", name="Delete Water").click()
    assert titles.all_inner_texts() == ["About the sky"] and page.locator(".turn").count() == 0
    page.get_by_role("button", name="Undo").click()
    assert shown(page) == ["About the sea", "deep"]
    page.reload()
    page.get_by_text("deep").wait_for()
    assert titles.all_inner_texts() == ["About the sky", "Water"]


def test_an_answer_goes_on_in_the_background(opened: tuple[Page, Puppet]) -> None:
    page, puppet = opened
    says(puppet, "here at last", steps=0)
    ask(page, "slow")
    page.get_by_role("button", name="New chat").click()
    assert page.get_by_role("button", name="Send").is_visible()
    puppet.step(2)
    wait_until(lambda: not puppet.under_way)
    page.locator("#history .title").click()
    last_answer(page)
    assert shown(page) == ["slow", "here at last"]


def test_leaving_keeps_half_an_answer(opened: tuple[Page, Puppet]) -> None:
    page, puppet = opened
    says(puppet, "half an", " answer", steps=1)
    ask(page, "slow")
    page.get_by_text("half an").wait_for()
    page.reload()
    assert "Stopped" in last_answer(page, "stopped").locator(".note").inner_text()
    assert shown(page) == ["slow", "half an"]
    wait_until(lambda: not puppet.under_way)


def test_two_tabs(opened: tuple[Page, Puppet]) -> None:
    page, puppet = opened
    converse(page, puppet, ("one", "first answer"))
    other = page.context.new_page()
    other.goto(page.url)
    other.locator("#model:enabled").wait_for()
    assert shown(other) == ["one", "first answer"]
    converse(page, puppet, ("two", "second answer"))
    other.get_by_text("second answer").wait_for()
    other.close()


@pytest.mark.parametrize(
    ("error", "words"),
    [("QuotaExceededError", "storage is full"), ("SecurityError", "lets the page store nothing")],
)
def test_no_storage(page: Page, stage: Stage, error: str, words: str) -> None:
    """Nothing is kept, and the page says so and works on."""
    puppet, url = stage
    page.add_init_script(f"Storage.prototype.setItem = () => {{ throw new DOMException('', '{error}') }};")
    visit(page, url)
    converse(page, puppet, ("one", "first answer"))
    assert words in page.locator("#notice").inner_text()
    page.get_by_role("button", name="New chat").click()
    page.locator("#history .title").click()
    assert shown(page) == ["one", "first answer"]


def test_export_and_import(opened: tuple[Page, Puppet], tmp_path: Path) -> None:
    page, puppet = opened
    configure(page, System_prompt="Be brief.")
    converse(page, puppet, ("Ça va?", "Oui."))
    says(puppet, "Non.")
    page.get_by_role("button", name="Regenerate").click()
    page.get_by_text("Non.").wait_for()
    last_answer(page)
    page.get_by_text("Export and import").click()
    files = {}
    for name in ("This chat as Markdown", "This chat as JSON", "All chats as JSON"):
        with page.expect_download() as download:
            page.get_by_role("button", name=name).click()
        files[name] = tmp_path / download.value.suggested_filename
        download.value.save_as(files[name])
    assert [path.name for path in files.values()] == ["ça-va.md", "ça-va.json", "chats.json"]
    markdown = files["This chat as Markdown"].read_text(encoding="utf-8")
    assert markdown == "# Ça va?\n\n## System\n\nBe brief.\n\n## You\n\nÇa va?\n\n## lab/tiny\n\nNon.\n"

    before = stored(page)
    assert json.loads(files["This chat as JSON"].read_text(encoding="utf-8")) == before
    page.set_input_files("#import-file", files["All chats as JSON"])
    page.wait_for_url(lambda url: before["id"] not in url)
    assert {**stored(page), "id": before["id"]} == before  # every branch is there, beside the first one
    assert page.locator("#history .title").count() == 2 and shown(page) == ["Ça va?", "Non."]


def test_imports_are_checked(opened: tuple[Page, Puppet]) -> None:
    page, _ = opened
    head = '{"format": "octavo-chat", "version": 1, "turns": '
    for text, words in (
        ("{", "it is not JSON"),
        ("{}", "it is not a conversation"),
        ("null", "it is not a conversation"),
        ('{"format": "octavo-chat", "version": 2, "turns": []}', "it is not a conversation"),
        (head + "[{}]}", "a turn of this conversation is broken"),
        (head + '[{"id": "a", "parent": "a", "role": "user"}]}', "a turn of this conversation follows none"),
    ):
        page.set_input_files("#import-file", {"name": "x.json", "mimeType": "text/plain", "buffer": text.encode()})
        page.get_by_text(f"x.json could not be imported: {words}").wait_for()
        page.get_by_role("button", name="Dismiss").click()
    assert page.locator("#history .title").count() == 0

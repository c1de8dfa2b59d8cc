"""The chat page in headless Chromium: asking, streaming, stopping, settings, keys."""

import re

import pytest

from octavo.config import SamplingParams
from octavo.engine.engine import Engine
from tests.engine.engines import pages_free, wait_until
from tests.serve.browsing import (
    Page,
    answer_with,
    ask,
    configure,
    converse,
    last_answer,
    needs_browser,
    offer_models,
    says,
    sent_by,
    shown,
    stored,
    visit,
)
from tests.serve.serving import CONTEXT, MODEL, Puppet

pytestmark = needs_browser
Stage = tuple[Puppet, str]


def test_conversation(page: Page, url: str, engine: Engine) -> None:
    """The page shows what the engine says to the same turns, and what it took."""
    visit(page, url)
    configure(page, System_prompt="Be brief.", Temperature="0", Longest_answer="24")
    turns = [{"role": "system", "content": "Be brief."}]
    for question in ("What is the capital of France?", "And\nof Spain?"):
        ask(page, question)
        turns.append({"role": "user", "content": question})
        expected = engine.complete(turns, SamplingParams(max_new_tokens=24)).text
        note = last_answer(page).locator(".note").inner_text()
        assert stored(page)["turns"][-1]["text"] == expected
        turns.append({"role": "assistant", "content": expected})
        form = r"24 tokens, [\d.,]+ tokens/s, first after [\d.]+ s, \d+ prompt tokens, .*cut off at the longest answer"
        assert re.fullmatch(form, note)
    assert re.search(r"\d+ from cache", note)  # the first turns were read before
    assert page.locator(".turn").count() == 4
    assert page.title() == "What is the capital of France? · octavo"


def test_stop_frees_the_pages(page: Page, url: str, engine: Engine) -> None:
    free = pages_free(engine)
    visit(page, url)
    configure(page, Temperature="0", Longest_answer=str(CONTEXT - 200))
    for stop in (lambda: page.get_by_role("button", name="Stop").click(), lambda: page.keyboard.press("Escape")):
        page.get_by_role("button", name="New chat").click()  # "Hello" alone is known to have a long answer
        ask(page, "Hello")
        page.locator(".assistant .text", has_text=re.compile(r"[\s\S]{20}")).wait_for()
        assert pages_free(engine) < free
        stop()
        answer = last_answer(page, "stopped")
        wait_until(lambda: pages_free(engine) == free, 1.0)
        assert "Stopped" in answer.locator(".note").inner_text()
        assert page.get_by_role("button", name="Send").is_visible()


def test_text_arrives_piece_by_piece(page: Page, stage: Stage) -> None:
    """Each piece is on the page before the next one leaves the engine; it is read aloud when it is whole."""
    puppet, url = stage
    visit(page, url)
    says(puppet, "One, ", "two, ", "three.", steps=0)
    ask(page, "Count!")
    for text in ("One,", "One, two,", "One, two, three."):
        puppet.step()
        page.locator(".assistant .text", has_text=re.compile(f"^{text} ?$")).wait_for()
        assert page.get_by_role("log").get_attribute("aria-busy") == "true"
    puppet.step()
    last_answer(page)
    assert page.get_by_role("log").get_attribute("aria-busy") == "false"
    assert page.locator("#announce").inner_text() == "The answer is complete"


def test_numbers(page: Page, stage: Stage) -> None:
    puppet, url = stage
    visit(page, url)
    converse(page, puppet, ("Hello?", "Good day."))
    note = last_answer(page).locator(".note").inner_text()
    assert re.fullmatch(r"2 tokens(, [\d.,]+ tokens/s)?, first after [\d.]+ s, 420 prompt tokens, 400 from cache", note)


def test_settings(page: Page, stage: Stage) -> None:
    """What is filled in is sent, what is empty is the server's to decide, what is wrong is pointed at."""
    puppet, url = stage
    visit(page, url)
    says(puppet, "yes")
    request = sent_by(page, lambda: ask(page, "plain"))
    assert set(request) == {"model", "messages", "stream", "stream_options"}
    last_answer(page)
    fields = {
        "Temperature": ("temperature", 0.33),
        "Longest answer": ("max_tokens", 7),
        "Top p": ("top_p", 0.9),
        "Top k": ("top_k", 40),
        "Min p": ("min_p", 0.05),
        "Seed": ("seed", 0),
        "Presence penalty": ("presence_penalty", -0.5),
        "Frequency penalty": ("frequency_penalty", 1),
        "Repetition penalty": ("repetition_penalty", 1.1),
    }
    configure(page, **{label: str(value) for label, (_, value) in fields.items()})
    page.reload()
    visit(page, page.url)  # they outlive the tab
    answer_with(page, "/v1/chat/completions", status=400, json={})
    request = sent_by(page, lambda: ask(page, "all"))
    assert {name: request[name] for name, _ in fields.values()} == dict(fields.values())
    last_answer(page, "error")

    configure(page, Temperature="3")
    ask(page, "wrong")
    assert page.locator(".turn").count() == 4  # nothing was sent
    assert page.get_by_label("Temperature").evaluate("field => field === document.activeElement")
    page.get_by_role("button", name="Leave all to the server").click()
    assert set(sent_by(page, lambda: ask(page, "none"))) == {"model", "messages", "stream", "stream_options"}


def test_models(page: Page, stage: Stage) -> None:
    puppet, url = stage
    offer_models(page, ["first", MODEL])
    visit(page, url)
    page.get_by_label("Model", exact=True).select_option(MODEL)
    says(puppet, "yes")
    assert sent_by(page, lambda: ask(page, "which?"))["model"] == MODEL
    last_answer(page)
    page.get_by_label("Model", exact=True).select_option("first")
    page.reload()
    page.locator("#model:enabled").wait_for()
    assert page.get_by_label("Model", exact=True).input_value() == "first"  # the choice is the conversation's


def test_keyboard(page: Page, stage: Stage) -> None:
    puppet, url = stage
    visit(page, url)
    says(puppet, "It is.")
    page.get_by_label("Message", exact=True).focus()
    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    page.keyboard.press("Enter")
    last_answer(page)
    assert shown(page) == ["one\ntwo", "It is."]

    page.keyboard.press("ArrowUp")
    editor = page.get_by_label("Edit message")
    assert editor.input_value() == "one\ntwo"
    page.keyboard.press("Escape")
    assert not editor.is_visible() and page.locator(".turn").count() == 2
    page.get_by_label("Message", exact=True).press("ArrowUp")
    editor.fill("three")
    says(puppet, "Three it is.")
    page.keyboard.press("Enter")
    page.get_by_text("Three it is.").wait_for()
    assert shown(page) == ["three", "Three it is."]

    page.keyboard.press("Control+Shift+O")
    assert page.locator(".turn").count() == 0
    assert page.get_by_label("Message", exact=True).evaluate("field => field === document.activeElement")
    ask(page, "endless")
    page.keyboard.press("Escape")
    last_answer(page, "stopped")
    wait_until(lambda: not puppet.under_way)


@pytest.mark.parametrize("composing", [True, False])
def test_enter_of_an_input_method_sends_nothing(page: Page, stage: Stage, composing: bool) -> None:
    puppet, url = stage
    visit(page, url)
    page.get_by_label("Message", exact=True).fill("にほん")
    page.evaluate(
        "isComposing => document.getElementById('question').dispatchEvent("
        "new KeyboardEvent('keydown', {key: 'Enter', isComposing, bubbles: true}))",
        composing,
    )
    assert page.locator(".turn").count() == (0 if composing else 2)
    if not composing:
        says(puppet, "日本")
        last_answer(page)

"""The chat page in headless Chromium: what the reader is doing is not undone by what happens meanwhile."""

from tests.engine.engines import wait_until
from tests.serve.browsing import (
    Page,
    answer_with,
    ask,
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
BUSY = "The answer to another question is being written"


def test_a_selection_outlives_the_end_of_an_answer(page: Page, stage: Stage) -> None:
    """Nor is what was there before added anew, which would have a screen reader read it all again."""
    puppet, url = stage
    visit(page, url)
    converse(page, puppet, ("one", "first answer"))
    says(puppet, "second answer", steps=0)
    ask(page, "two")
    page.evaluate("""() => {
        getSelection().selectAllChildren(document.querySelector(".assistant .text"));
        window.added = [];
        const note = (changes) => changes.forEach((change) => window.added.push(...change.addedNodes));
        new MutationObserver(note).observe(document.getElementById("conversation"), {childList: true});
    }""")
    puppet.step(2)
    page.get_by_text("second answer").wait_for()
    last_answer(page)
    assert page.evaluate("getSelection().toString().trim()") == "first answer"
    assert page.evaluate("window.added.length") == 0


def test_a_title_is_written_while_an_answer_ends(page: Page, stage: Stage) -> None:
    puppet, url = stage
    visit(page, url)
    converse(page, puppet, ("About the sea", "deep"))
    page.get_by_role("button", name="New chat").click()
    says(puppet, "high", steps=0)
    ask(page, "About the sky")
    titles = page.locator("#history .title")
    titles.last.hover()
    page.get_by_role("button", name="Rename About the sea").click()
    field = page.get_by_label("Title of the conversation")
    field.fill("Wat")
    puppet.step(2)
    last_answer(page)
    page.keyboard.type("er")
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelectorAll('#history .title').length === 2")
    assert titles.all_inner_texts() == ["About the sky", "Water"]


def test_an_edit_that_cannot_be_sent_yet_stays(page: Page, stage: Stage) -> None:
    puppet, url = stage
    visit(page, url)
    converse(page, puppet, ("one", "first answer"))
    page.locator(".user").hover()
    page.locator(".user").get_by_role("button", name="Edit").click()
    editor = page.get_by_label("Edit message")
    editor.fill("a long change")
    says(puppet, "second answer", steps=0)
    ask(page, "two")
    editor.press("Enter")
    assert BUSY in page.locator("#notice").inner_text()
    assert editor.input_value() == "a long change" and page.locator(".turn").count() == 4
    puppet.step(2)
    last_answer(page)
    says(puppet, "third answer")
    assert sent_by(page, lambda: editor.press("Enter"))["messages"][-1]["content"] == "a long change"
    last_answer(page)


def test_a_suggestion_leaves_the_box_alone(page: Page, stage: Stage) -> None:
    puppet, url = stage
    visit(page, url)
    box = page.get_by_label("Message", exact=True)
    box.fill("half a thought")
    says(puppet, "Paris.")
    page.get_by_role("button", name="What is the capital of France?").click()
    last_answer(page)
    assert shown(page) == ["What is the capital of France?", "Paris."] and box.input_value() == "half a thought"


def test_asked_before_the_models_are_known(page: Page, stage: Stage) -> None:
    """The question waits for them, once however often it is sent."""
    puppet, url = stage
    answer_with(page, "/v1/models", status=503, json={"error": {"message": "the models are being loaded"}})
    page.goto(url)
    page.get_by_text("the models are being loaded").wait_for()
    page.unroute("**/v1/models")
    says(puppet, "Good day.")
    ask(page, "Hello?")
    page.keyboard.press("Enter")
    last_answer(page)
    assert shown(page) == ["Hello?", "Good day."]
    assert stored(page)["model"] == stored(page)["turns"][1]["model"] != ""


def test_two_tabs_that_both_ask(page: Page, stage: Stage) -> None:
    """Neither's answer is lost by the other's being kept."""
    puppet, url = stage
    visit(page, url)
    converse(page, puppet, ("one", "first answer"))
    other = page.context.new_page()
    visit(other, page.url)
    says(puppet, "to the one tab", steps=0)
    ask(page, "two")
    wait_until(lambda: len(puppet.under_way) == 1)
    says(puppet, "to the other tab", steps=0)
    ask(other, "three")
    wait_until(lambda: len(puppet.under_way) == 2)
    puppet.step(2)
    page.get_by_text("to the one tab").wait_for()
    wait_until(lambda: len(puppet.under_way) == 1)
    puppet.step(2)
    last_answer(other)
    page.get_by_text("to the other tab").wait_for()
    kept = {turn["text"] for turn in stored(page)["turns"]}
    other.close()
    assert kept == {"one", "first answer", "two", "to the one tab", "three", "to the other tab"}


def test_a_key_that_is_wrong(page: Page, stage: Stage) -> None:
    """The form says what is wrong with it, whether the page or the server finds out."""
    answer_with(page, "/v1/models", status=401, json={"error": {"message": "no"}})
    page.goto(stage[1])
    field = page.get_by_label("This server asks for an API key")
    field.fill("schlüssel")
    field.press("Enter")
    assert "ASCII" in field.evaluate("field => field.validationMessage")
    field.fill("wrong")
    field.press("Enter")
    again = page.get_by_label("The server does not know this API key")
    again.wait_for()
    assert again.evaluate("field => field === document.activeElement")


def test_a_browser_that_stores_nothing(page: Page, stage: Stage) -> None:
    """Where cookies are blocked, to look at the storage is an error already."""
    puppet, url = stage
    page.add_init_script("""for (const name of ["localStorage", "sessionStorage"])
        Object.defineProperty(window, name, {get() { throw new DOMException("", "SecurityError"); }});""")
    visit(page, url)
    converse(page, puppet, ("one", "first answer"))
    assert shown(page) == ["one", "first answer"]


def test_a_stream_that_cannot_be_read_is_left(page: Page, stage: Stage) -> None:
    """Else the server would go on writing for nobody."""
    puppet, url = stage
    visit(page, url)
    says(puppet, "one", "two", steps=0)
    page.evaluate("""() => {
        const parse = JSON.parse;
        JSON.parse = (text, ...more) => {
            if (String(text).includes('"delta"')) throw new SyntaxError("no");
            return parse(text, ...more);
        };
    }""")
    ask(page, "Hello?")
    assert "could not be read" in last_answer(page, "error").locator(".failure").inner_text()
    wait_until(lambda: not puppet.under_way)


def test_emphasis_without_end(page: Page, stage: Stage) -> None:
    """Nested so deep that to lay it out might end the tab."""
    puppet, url = stage
    visit(page, url)
    says(puppet, "*a _b " * 20_000 + "c_ d* " * 20_000)
    ask(page, "Deep?")
    answer = last_answer(page)
    depth = "node => { let most = 0; for (const each of node.querySelectorAll('*')) { let deep = 0; "
    depth += (
        "for (let at = each; at !== node; at = at.parentNode) deep += 1; most = Math.max(most, deep); } return most; }"
    )
    assert 10 < answer.locator(".text").evaluate(depth) < 60

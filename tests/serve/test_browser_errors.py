"""The chat page in headless Chromium: failures are shown as text, and text is never anything else."""

import pytest

from octavo.engine.engine import Engine
from tests.serve.browsing import (
    Page,
    answer_with,
    ask,
    attach,
    configure,
    last_answer,
    needs_browser,
    offer_models,
    says,
    sent_by,
    shown,
    stored,
    visit,
)
from tests.serve.serving import CONTEXT, MODEL, Puppet, serving

pytestmark = needs_browser
Stage = tuple[Puppet, str]
CHAT = "/v1/chat/completions"

ATTACKS = [
    '<img src=x onerror="window.caught=1"><script>window.caught=2</script><b>bold</b> & {{ 7*7 }}',
    "[click](javascript:window.caught=3) [data](data:text/html,<script>window.caught=4</script>)",
    "[tab](java\tscript:window.caught=5) <javascript:window.caught=6> [v](vbscript:x) ![i](javascript:window.caught=7)",
    '[quote](https://x.example/"onmouseover="window.caught=8) <a href="https://x.example" onclick=window.caught=9>',
    "```<img src=x onerror=window.caught=10>\n</code></pre><svg onload=window.caught=11>\n```",
    "| <img src=x onerror=window.caught=12> | b |\n|---|---|\n| <script>window.caught=13</script> | `<i>` |",
    "# <svg/onload=window.caught=14>\n> <iframe srcdoc='<script>parent.caught=15</script>'>\n- <style>*{display:none}",
    "\u202e\u0000</textarea></title><script>window.caught=16</script>${window.caught=17}`${window.caught=18}`",
]


def assert_inert(page: Page) -> None:
    """Nothing ran, no element came that the page does not make itself, and no link leads where it must not."""
    assert page.evaluate("window.caught") is None
    assert page.locator("body").locator("img, iframe, script, style, object, embed, form form, b, svg svg").count() == 0
    strange = "nodes => nodes.flatMap(node => node.getAttributeNames()).filter(name => name.startsWith('on'))"
    assert page.locator("body *").evaluate_all(strange) == []
    links = page.locator("a").evaluate_all("links => links.map(link => [link.protocol, link.rel, link.target])")
    assert all(link == ["https:", "noopener noreferrer", "_blank"] for link in links)


@pytest.mark.parametrize("attack", ATTACKS, ids=range(1, len(ATTACKS) + 1))
def test_text_is_never_markup(page: Page, stage: Stage, attack: str) -> None:
    """As question, answer, title, system prompt, names of files and models, error, and as all that read back."""
    puppet, url = stage
    offer_models(page, [attack, MODEL])
    answer_with(page, "/tokenize", json={"count": attack, "max_model_len": attack})
    visit(page, url)
    page.get_by_label("Model", exact=True).select_option(MODEL)
    configure(page, System_prompt=attack)
    attach(page, (attack.replace("/", "-").replace("\0", ""), attack.replace("\0", "").encode()))
    says(puppet, *attack)  # letter by letter
    ask(page, attack)
    last_answer(page)
    turns = stored(page)["turns"]
    assert turns[1]["text"] == turns[0]["text"] == attack
    assert page.locator(".user .text").evaluate("node => node.textContent") == turns[0]["text"]
    assert_inert(page)

    answer_with(page, CHAT, status=400, json={"error": {"message": attack}})
    page.get_by_label("Model", exact=True).select_option(index=0)
    page.get_by_role("button", name="Regenerate").click()
    last_answer(page, "error")
    assert page.locator(".failure:visible p").evaluate("node => node.textContent") == attack
    assert_inert(page)
    page.reload()
    last_answer(page, "error")
    page.locator(".user .text").hover()
    page.locator(".user").get_by_role("button", name="Edit").click()
    assert_inert(page)


def test_a_failure_inside_the_stream(page: Page, stage: Stage) -> None:
    """What came of the answer stays; the question can be asked again, and the model hears of no failed turn."""
    puppet, url = stage
    visit(page, url)
    says(puppet, RuntimeError("inside"))
    ask(page, "Hello?")
    assert "its log says why" in last_answer(page, "error").locator(".failure").inner_text()
    says(puppet, "half", RuntimeError("inside"))
    request = sent_by(page, lambda: page.get_by_role("button", name="Retry").click())
    assert request["messages"] == [{"role": "user", "content": "Hello?"}]
    page.get_by_text("half").wait_for()
    last_answer(page, "error")
    assert page.get_by_text("1/1").count() == 0  # an answer of which nothing came is no version
    says(puppet, "Good day.")
    page.get_by_role("button", name="Retry").click()
    last_answer(page)
    assert shown(page) == ["Hello?", "Good day."] and page.get_by_text("2/2").is_visible()

    says(puppet, RuntimeError("inside"))
    ask(page, "failing")
    last_answer(page, "error")
    says(puppet, "fine")
    request = sent_by(page, lambda: ask(page, "next"))
    assert [turn["content"] for turn in request["messages"]] == ["Hello?", "Good day.", "next"]
    last_answer(page)


def test_a_question_that_is_too_long(page: Page, url: str, engine: Engine) -> None:
    visit(page, url)
    configure(page, Longest_answer=str(CONTEXT * 2))
    ask(page, "Hello?")
    assert f"context of {CONTEXT} tokens" in last_answer(page, "error").locator(".failure").inner_text()
    configure(page, Longest_answer="4")
    page.get_by_role("button", name="Retry").click()
    last_answer(page)
    assert page.locator(".failure:visible").count() == 0


def test_an_overloaded_server(page: Page, stage: Stage) -> None:
    """It says when to come back, and the button waits as long."""
    puppet, url = stage
    visit(page, url)
    body = {"error": {"message": "too many requests wait"}}
    answer_with(page, CHAT, status=503, headers={"Retry-After": "2"}, json=body)
    ask(page, "Hello?")
    failure = last_answer(page, "error").locator(".failure")
    assert "too many requests wait" in failure.inner_text()
    assert failure.get_by_role("button", name="Retry in").is_disabled()
    page.unroute(f"**{CHAT}")
    says(puppet, "Good day.")
    failure.get_by_role("button", name="Retry", exact=True).click()
    last_answer(page)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("data: {oops\n\n", "could not be read"),
        ('data: {"choices": [{"delta": {"content": "half"}}]}\n\n', "lost before the answer was complete"),
        (": only a comment\n\n", "lost before the answer was complete"),
        ('data: {"error": {"message": "out of ideas"}}\n\n', "out of ideas"),
        ('data: {"error": {}}\n\n', "without saying why"),
    ],
)
def test_streams_that_end_badly(page: Page, stage: Stage, body: str, words: str) -> None:
    visit(page, stage[1])
    answer_with(page, CHAT, body=body, content_type="text/event-stream")
    ask(page, "Hello?")
    assert words in last_answer(page, "error").locator(".failure").inner_text()


def test_streams_as_other_servers_write_them(page: Page, stage: Stage) -> None:
    """No space after the colon, CRLF, several data lines, usage in every chunk, an empty list of choices."""
    visit(page, stage[1])
    body = (
        'data:{"choices": [{"delta": {"role": "assistant", "content": null}}]}\r\n\r\n'
        ": comment\r\n\r\n"
        'event: x\r\ndata: {"choices":\r\ndata: [{"delta": {"content": "Good"}}],\r\ndata: "usage": {}}\r\n\r\n'
        'data: {"choices": [{"delta": {"content": " day."}, "finish_reason": "stop"}]}\n\n'
        'data: {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 3}}\n\ndata: [DONE]\n\n'
    )
    answer_with(page, CHAT, body=body, content_type="text/event-stream")
    ask(page, "Hello?")
    answer = last_answer(page)
    assert shown(page)[-1] == "Good day." and "3 tokens" in answer.locator(".note").inner_text()


def test_a_server_that_goes(page: Page) -> None:
    puppet = Puppet()
    with serving(puppet) as url:
        visit(page, url)
        says(puppet, "half an", " answer", steps=1)
        ask(page, "Hello?")
        page.get_by_text("half an").wait_for()
    answer = last_answer(page, "error")
    assert shown(page)[-1] == "half an" and "shutting down" in answer.locator(".failure").inner_text()
    page.get_by_role("button", name="Retry").click()
    page.get_by_role("log").get_by_text("The server cannot be reached").wait_for()


def test_a_server_that_comes_later(page: Page, stage: Stage) -> None:
    answer_with(page, "/v1/models", status=503, json={"error": {"message": "the model is loading"}})
    page.goto(stage[1])
    page.get_by_text("the model is loading").wait_for()
    page.unroute("**/v1/models")
    page.get_by_role("button", name="Retry").click()
    page.locator("#model:enabled").wait_for()
    assert not page.locator("#notice").is_visible()


def test_a_key(page: Page, stage: Stage) -> None:
    """It is asked for when the server wants one, sent with every request, and gone with the tab."""
    puppet, url = stage

    def closed(route: Page) -> None:
        if route.request.headers.get("authorization") == "Bearer sesame":
            route.continue_()
        else:
            route.fulfill(status=401, json={"error": {"message": "this server needs an API key"}})

    page.route("**/v1/**", closed)
    page.goto(url)
    page.get_by_label("This server asks for an API key").wait_for()
    field = page.locator("#key")
    field.fill("wrong")
    page.get_by_role("button", name="Use key").click()
    field.wait_for()
    ask(page, "Hello?")
    assert "needs an API key" in last_answer(page, "error").locator(".failure").inner_text()
    field.fill("sesame")
    field.press("Enter")
    page.locator("#model:enabled").wait_for()
    assert not field.is_visible()
    says(puppet, "Good day.")
    page.get_by_role("button", name="Retry").click()
    last_answer(page)
    assert page.evaluate("Object.values(localStorage).join().includes('sesame')") is False
    page.reload()
    page.locator("#model:enabled").wait_for()  # the tab still knows it

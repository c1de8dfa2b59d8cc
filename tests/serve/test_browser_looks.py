"""The chat page in headless Chromium: small screens, dark and light, names of controls. OCTAVO_SCREENSHOTS=folder
keeps the pictures."""

from pathlib import Path
from typing import Any

import pytest

from tests.serve.browsing import (
    Page,
    answer_with,
    ask,
    attach,
    last_answer,
    needs_browser,
    new_page,
    picture,
    says,
    visit,
)
from tests.serve.serving import Puppet

pytestmark = needs_browser

ANSWER = """## How a mixture of experts answers

Every token passes **two of eight** experts. The *router* decides which:

1. Score the experts for this token.
   - one linear layer, no bias
2. Run the two best, and add what they say.

```python
def route(x: Tensor, gate: Tensor, top_k: int = 2) -> tuple[Tensor, Tensor]:
    scores, experts = (x @ gate.T).topk(top_k, dim=-1)
    return scores.softmax(-1), experts
```

| model | experts | active | parameters |
|---|---:|---:|---:|
| Mixtral-8x7B | 8 | 2 | 46.7 B |
| MiniMax-Text-01 | 32 | 2 | 456 B |

"""
LOOKS: dict[str, dict[str, Any]] = {
    "desktop-light": {"viewport": {"width": 1280, "height": 800}, "color_scheme": "light"},
    "desktop-dark": {"viewport": {"width": 1280, "height": 800}, "color_scheme": "dark"},
    "small": {"viewport": {"width": 360, "height": 700}, "color_scheme": "light", "has_touch": True},
}


@pytest.mark.parametrize("name", LOOKS)
def test_nothing_sticks_out(browser: Any, stage: tuple[Puppet, str], name: str, tmp_path: Path) -> None:
    """Not even a word without spaces, a wide table, a long line of code, or a file with a long name."""
    puppet, url = stage
    width = LOOKS[name]["viewport"]["width"]

    def take(what: str) -> None:
        picture(page, f"{name}-{what}", tmp_path)
        for selector in ("html", "body", "header", "main", "footer"):
            content, room = page.locator(selector).evaluate("node => [node.scrollWidth, node.clientWidth]")
            assert content <= room <= width, (what, selector)

    with new_page(browser, **LOOKS[name]) as page:
        answer_with(page, "/tokenize", json={"count": 1234, "max_model_len": 2048})
        visit(page, url)
        take("empty")
        says(puppet, ANSWER, "verylongword" * 12)
        ask(page, "How does a mixture of experts answer? " + "verylongword" * 12)
        last_answer(page)
        says(puppet, ANSWER)
        page.get_by_role("button", name="Regenerate").click()
        page.get_by_text("2/2").wait_for()
        last_answer(page)
        take("branch")
        attach(page, ("notes.txt", b"notes"), ("a-long-name-" * 9 + ".md", b"more"))
        page.get_by_label("Message", exact=True).fill("What do the notes say?")
        page.get_by_text("1,234 of 2,048 tokens").wait_for()
        take("attached")
        says(puppet, "Half an answer", RuntimeError("inside"))
        page.keyboard.press("Enter")
        last_answer(page, "error")
        take("error")
        page.get_by_role("button", name="Settings", exact=True).click()
        take("settings")


def test_the_list_is_a_drawer_on_a_small_screen(browser: Any, stage: tuple[Puppet, str]) -> None:
    with new_page(browser, **LOOKS["small"]) as page:
        visit(page, stage[1])
        drawer = page.get_by_role("navigation", name="Conversations")
        assert not drawer.is_visible()
        for leave in (
            lambda: page.keyboard.press("Escape"),
            lambda: page.get_by_role("button", name="Close the list").click(),
            lambda: page.get_by_role("button", name="New chat").click(),
            lambda: page.locator("#scrim").click(position={"x": 340, "y": 300}),
        ):
            page.get_by_role("button", name="Conversations").click()
            assert drawer.is_visible()
            leave()
            assert not drawer.is_visible()


def test_light_and_dark(browser: Any, stage: tuple[Puppet, str]) -> None:
    """The system's choice, until the reader makes another; choosing what the system has follows it again."""

    def is_dark() -> bool:
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return sum(map(int, colour.removeprefix("rgb(").removesuffix(")").split(","))) < 384

    with new_page(browser, color_scheme="light") as page:
        visit(page, stage[1])
        assert not is_dark()
        page.emulate_media(color_scheme="dark")
        assert is_dark()
        page.get_by_role("button", name="Light or dark").click()
        assert not is_dark()
        page.reload()
        assert not is_dark()
        page.get_by_role("button", name="Light or dark").click()
        assert is_dark()
        page.emulate_media(color_scheme="light")
        assert not is_dark()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(browser: Any, stage: tuple[Puppet, str], scheme: str) -> None:
    """Text stands out from what is behind it by 4.5 to 1, as WCAG's level AA asks."""
    pairs = [("text", "page"), ("text", "bubble"), ("soft", "page"), ("soft", "side"), ("soft", "raised")]
    pairs += [("bad", "bad-back"), ("on-accent", "accent"), ("accent", "page")]
    with new_page(browser, color_scheme=scheme) as page:
        visit(page, stage[1])
        read = """names => names.map(name => {
            document.body.style.color = `var(--${name})`;
            return getComputedStyle(document.body).color.match(/[0-9]+/g).map(Number);
        })"""
        for pair in pairs:
            light, dark = sorted(map(luminance, page.evaluate(read, list(pair))), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, pair


def luminance(colour: list[int]) -> float:
    """Relative luminance of an sRGB colour, as WCAG defines it."""
    red, green, blue = ((c / 255 / 12.92) if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_labels_and_focus(page: Page, stage: tuple[Puppet, str]) -> None:
    """Every control has a name, and the keyboard reaches it with a visible ring."""
    puppet, url = stage
    visit(page, url)
    says(puppet, ANSWER)
    ask(page, "Hello?")
    last_answer(page)
    page.get_by_role("button", name="Settings", exact=True).click()
    page.get_by_text("Export and import").click()
    names = page.locator("button, input, textarea, select").evaluate_all(
        "nodes => nodes.map(node => [node.outerHTML, node.getAttribute('aria-label') || node.labels?.[0]?.textContent"
        " || node.textContent.trim()])"
    )
    assert len(names) > 30 and [html for html, name in names if not name] == []
    page.get_by_label("System prompt").focus()
    page.keyboard.press("Shift+Tab")
    focused = page.evaluate("[document.activeElement.id, getComputedStyle(document.activeElement).outlineStyle]")
    assert focused == ["settings-close", "solid"]

"""What the model writes, as the chat page shows it: rendered in headless Chromium, by the page's own modules."""

import pytest

from tests.serve.browsing import Page, needs_browser

pytestmark = needs_browser

A = 'target="_blank" rel="noopener noreferrer"'
INLINE = {
    "**bold** and *thin*": "<strong>bold</strong> and <em>thin</em>",
    "__bold__ and _thin_": "<strong>bold</strong> and <em>thin</em>",
    "***both*** ~~gone~~": "<strong><em>both</em></strong> <del>gone</del>",
    "**a *b* c**": "<strong>a <em>b</em> c</strong>",
    "2 * 3 * 4, snake_case_name, ** open, *open": "2 * 3 * 4, snake_case_name, ** open, *open",
    "`*code*` ``a`b`` `open": "<code>*code*</code> <code>a`b</code> `open",
    r"\*no\* a\b": r"*no* a\b",
    "one\ntwo": "one<br>two",
    "[a *b*](https://x.example/c_(d) 'no') [a *b*](https://x.example/c_(d) \"t\")": "[a <em>b</em>]"
    f"(<a href=\"https://x.example/c_(d)\" {A}>https://x.example/c_(d)</a> 'no') "
    f'<a href="https://x.example/c_(d)" {A}>a <em>b</em></a>',
    "see https://x.example/a_b, <https://y.example> (http://z.example).": "see "
    f'<a href="https://x.example/a_b" {A}>https://x.example/a_b</a>, '
    f'<a href="https://y.example/" {A}>https://y.example</a> (<a href="http://z.example/" {A}>http://z.example</a>).',
    "[mail](mailto:a@x.example) [no](ftp://x) [no](/local)": f'<a href="mailto:a@x.example" {A}>mail</a> '
    "[no](ftp://x) [no](/local)",
    "![picture](https://x.example/p.png)": f'<a href="https://x.example/p.png" {A}>picture</a>',
}
BLOCKS = {
    "# One #\ntext\n### Three": '<h3 class="level-1">One</h3><p>text</p><h5 class="level-3">Three</h5>',
    "#hash\n\n#": "<p>#hash</p><p>#</p>",
    "- a\n- b\n  - c\n    1. d\n- e": "<ul><li>a</li><li>b<ul><li>c<ol><li>d</li></ol></li></ul></li><li>e</li></ul>",
    "1. a\n  - b\n2. c": "<ol><li>a<ul><li>b</li></ul></li><li>c</li></ol>",
    "3. a\n4. b\n\n5. c": '<ol start="3"><li>a</li><li>b</li><li>c</li></ol>',
    "- a\n\n  more\n- b": "<ul><li><p>a</p><p>more</p></li><li>b</li></ul>",
    "* a\nlazy\n\nafter": "<ul><li>a<br>lazy</li></ul><p>after</p>",
    "text\n- a\n1984. not a list": '<p>text</p><ul><li>a</li></ul><ol start="1984"><li>not a list</li></ol>',
    "It was\n1984. A year": "<p>It was<br>1984. A year</p>",
    "> a\n> - b\n\nc": "<blockquote><p>a</p><ul><li>b</li></ul></blockquote><p>c</p>",
    "a\n\n---\n\nb": "<p>a</p><hr><p>b</p>",
    "such:\n| a | b |\n|:-:|--:|\n| 1 | *2* \\| 3 |\n| 4 |\nend": "<p>such:</p>TABLE"
    '<thead><tr><th class="center">a</th><th class="right">b</th></tr></thead><tbody>'
    '<tr><td class="center">1</td><td class="right"><em>2</em> | 3</td></tr>'
    '<tr><td class="center">4</td><td class="right"></td></tr></tbody></table></div><p>end</p>',
    "a | b\nno table": "<p>a | b<br>no table</p>",
    "```py\n*x* = '<b>'\n\n  y\n```\nend": "CODE(py)*x* = '&lt;b&gt;'\n\n  yEND<p>end</p>",
    "````\n```\nin\n```\n````": "CODE()```\nin\n```END",
    "~~~\nnever closed": "CODE()never closedEND",
    "1. a\n   ```\n   x\n    y\n   ```\n2. b": "<ol><li><p>a</p>CODE()x\n yEND</li><li>b</li></ol>",
    "<div>\n&amp; <br>": "<p>&lt;div&gt;<br>&amp;amp; &lt;br&gt;</p>",
    "": "",
}
# Shows a text, by pieces of `size` characters as a stream brings them; buttons to copy are left out.
SHOW = """async ([text, size]) => {
    const { MarkdownView } = await import("/web/render.js");
    const box = document.createElement("div"), view = new MarkdownView(box);
    for (let end = size; end < text.length; end += size) view.update(text.slice(0, end));
    view.update(text);
    box.querySelectorAll("button").forEach((button) => button.remove());
    return box.innerHTML;
}"""
SAMPLE = "\n\n".join([*INLINE, *BLOCKS])


def show(page: Page, text: str, size: int = 10**9) -> str:
    """The page's rendering, its frames for code and tables shortened."""
    html = page.evaluate(SHOW, [text, size])
    for short, long in (
        ("TABLE", '<div class="table" tabindex="0"><table>'),
        ("CODE(", '<div class="code"><div class="code-head"><span>'),
        (")", '</span></div><pre tabindex="0"><code>'),
        ("END", "</code></pre></div>"),
    ):
        html = html.replace(long, short)
    return html


@pytest.fixture(scope="module")
def page(browser: Page, stage: tuple[Page, str]) -> Page:
    opened = browser.new_page()
    opened.goto(stage[1])
    return opened


def test_inline(page: Page) -> None:
    assert {text: show(page, text) for text in INLINE} == {text: f"<p>{html}</p>" for text, html in INLINE.items()}


def test_blocks(page: Page) -> None:
    assert {text: show(page, text) for text in BLOCKS} == BLOCKS


@pytest.mark.parametrize("size", [1, 7])
def test_a_stream_ends_as_the_whole(page: Page, size: int) -> None:
    assert show(page, SAMPLE, size) == show(page, SAMPLE)


def test_what_is_finished_is_not_drawn_again(page: Page) -> None:
    kept = page.evaluate("""async () => {
        const { MarkdownView } = await import("/web/render.js");
        const box = document.createElement("div"), view = new MarkdownView(box);
        view.update("first\\n\\n```\\nx = 1");
        const [first, code] = box.children;
        view.update("first\\n\\n```\\nx = 1\\ny = 2");
        view.update("first\\n\\n```\\nx = 1\\ny = 2\\n```\\nlast");
        return [box.children[0] === first, box.children[1] === code, code.querySelector("code").textContent];
    }""")
    assert kept == [True, True, "x = 1\ny = 2"]


HOSTILE = {
    "stars": "*a " * 40_000,
    "signs": "**a *b ~~c __d " * 8_000,
    "brackets": "[" * 100_000,
    "links": "[a](" * 30_000,
    "backticks": " ".join("`" * length for length in range(1, 400)),
    "backslashes": "\\" * 100_000,
    "addresses": "http://" * 15_000,
    "quotes": "> " * 50_000,
    "lists": "- " * 50_000,
    "nested lists": "\n".join("  " * depth + "- x" for depth in range(300)),
    "items": "- a\n" * 20_000,
    "rules": "- " * 50_000 + "x",
    "table": "a|b\n-|-\n" + "1|2\n" * 10_000,
    "no table": "|" * 50_000 + "\n" + "-|" * 25_000,
    "fences": "```\n" * 20_001,
    "hashes": "#" + " #" * 50_000,
    "spaces": " " * 100_000 + "x",
}


def test_no_text_takes_long(page: Page) -> None:
    """Hundred thousand characters made to make a parser go back and forth: each is parsed in a moment."""
    took = page.evaluate(
        """async (texts) => {
            const { parseBlocks } = await import("/web/markdown.js"), { inline } = await import("/web/inline.js");
            return Object.fromEntries(Object.entries(texts).map(([name, text]) => {
                const began = performance.now();
                parseBlocks(text);
                inline(text);
                return [name, (performance.now() - began) / 1000];
            }));
        }""",
        HOSTILE,
    )
    assert {name: seconds for name, seconds in took.items() if seconds > 3} == {}

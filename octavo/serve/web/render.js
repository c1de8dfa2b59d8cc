// Markdown on the page, while it is still being written: what is finished stays, only the last block is drawn anew.

import { copyButton, fill, make } from "./dom.js";
import { inline } from "./inline.js";
import { parseBlocks } from "./markdown.js";

/** Shows a text that only grows. */
export class MarkdownView {
  constructor(container) {
    this.container = container;
    this.settled = 0; // how much of the text is in blocks that will not change any more
    this.last = null; // the block that may still change, and its element
  }

  /** Show `text`, which begins with what was shown before. */
  update(text) {
    const blocks = parseBlocks(text.slice(this.settled));
    if (!blocks.length || (blocks.length === 1 && this.extend(blocks[0]))) return;
    this.last?.element.remove();
    for (const block of blocks) {
      this.last = { block, element: draw(block) };
      this.container.append(this.last.element);
    }
    this.settled += blocks.at(-1).start;
  }

  /** A block of code grows by text alone: drawing a long one anew at each token would be slow. */
  extend(block) {
    const shown = this.last?.block;
    if (shown?.type !== "code" || block.type !== "code" || shown.language !== block.language) return false;
    if (!shown.text || !block.text.startsWith(shown.text)) return false;
    this.last.element.querySelector("code").firstChild.appendData(block.text.slice(shown.text.length));
    this.last.block = block;
    return true;
  }
}

function draw(block) {
  return DRAWN[block.type](block);
}

const DRAWN = {
  // the page has headings of its own above these
  heading: ({ level, text }) => fill(make(`h${Math.min(level + 2, 6)}`, { class: `level-${level}` }), inline(text)),
  paragraph: ({ text }) => fill(make("p"), inline(text)),
  rule: () => make("hr"),
  quote: ({ blocks }) => make("blockquote", {}, ...blocks.map(draw)),
  code: drawCode,
  list: drawList,
  table: drawTable,
};

function drawCode({ language, text }) {
  const code = make("code", {}, text);
  const copy = copyButton("Copy code", () => code.textContent);
  const head = make("div", { class: "code-head" }, make("span", {}, language), copy);
  return make("div", { class: "code" }, head, make("pre", { tabindex: "0" }, code));
}

function drawList({ first, items }) {
  const node = first === null ? make("ul") : make("ol", { start: first === 1 ? null : first });
  for (const blocks of items) node.append(fill(make("li"), drawItem(blocks)));
  return node;
}

/** An item of one paragraph, with lists below it perhaps, needs no paragraph's distance around it. */
function drawItem(blocks) {
  const tight = blocks.every(({ type }, at) => type === "list" || (at === 0 && type === "paragraph"));
  if (!tight) return blocks.map(draw);
  return blocks.flatMap((block) => (block.type === "paragraph" ? inline(block.text) : draw(block)));
}

function drawTable({ head, rows, align }) {
  const drawCell = (tag, cell, at) => fill(make(tag, { class: align[at] }), inline(cell));
  const row = (tag, cells) => fill(make("tr"), cells.map((cell, at) => drawCell(tag, cell, at)));
  const body = fill(make("tbody"), rows.map((cells) => row("td", cells)));
  return make("div", { class: "table", tabindex: "0" }, make("table", {}, make("thead", {}, row("th", head)), body));
}

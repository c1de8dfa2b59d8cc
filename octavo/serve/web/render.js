// Markdown on the page, while it is still being written: what is finished stays, only the last block is drawn anew.

import { copyButton, fill, make } from "./dom.js";
import { inline } from "./inline.js";
import { parseBlocks } from "./markdown.js";

/** Shows a text that only grows. */
export class MarkdownView {
  constructor(container) {
    this.container = container;
    this.settled = 0; // how much of the text is in blocks that will not change any more
    this.tail = []; // the blocks after it, with their elements
  }

  /** Show `text`, which begins with what was shown before. */
  update(text) {
    const blocks = parseBlocks(text.slice(this.settled));
    if (!blocks.length) return;
    const kept = this.extend(blocks[0]) ? this.tail.slice(0, 1) : [];
    for (const { element } of this.tail.slice(kept.length)) element.remove();
    const drawn = blocks.slice(kept.length).map((block) => ({ block, element: draw(block) }));
    fill(this.container, drawn.map(({ element }) => element));
    const open = firstOpen(blocks, text.lastIndexOf("\n") + 1 - this.settled);
    this.tail = [...kept, ...drawn].slice(open);
    this.settled += blocks[open].start;
  }

  /** A block of code grows by text alone: drawing a long one anew at each token would be slow. */
  extend(block) {
    const { block: shown, element } = this.tail[0] ?? {};
    if (shown?.type !== "code" || block.type !== "code" || shown.language !== block.language) return false;
    if (!shown.text || !block.text.startsWith(shown.text)) return false;
    element.querySelector("code").firstChild.appendData(block.text.slice(shown.text.length));
    this.tail[0].block = block;
    return true;
  }
}

/** Which block may still change: the last one, and the one before it while only the last line, "3" perhaps, says
 *  that another block has begun: it may yet become "3. another item". */
function firstOpen(blocks, lastLine) {
  const last = blocks.length - 1;
  return last > 0 && blocks[last].start >= lastLine ? last - 1 : last;
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

// Markdown's blocks: from text to a list of plain objects. Built for what models write: a nested list may be indented
// by two spaces, a table may follow a paragraph at once, and text that ends in the middle of something is normal.

const FENCE = /^ {0,3}(`{3,}|~{3,})[ \t]*([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})[ \t]+(.*)$/;
const RULE = /^ {0,3}(?:(?:-[ \t]*){3,}|(?:\*[ \t]*){3,}|(?:_[ \t]*){3,})$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])(?:[ \t]+(.*))?$/;
const DEEPEST = 12; // lists and quotes within each other; deeper ones stay text

/**
 * The blocks of a text, each with `start`, its offset in it:
 * {type: "heading", level, text}, {type: "paragraph", text}, {type: "rule"}, {type: "quote", blocks},
 * {type: "code", language, text, closed}, {type: "list", first, items: [blocks]} (`first`: a number, or null for
 * bullets), {type: "table", head, rows, align}.
 */
export function parseBlocks(text) {
  const lines = text.split("\n");
  const offsets = [];
  let offset = 0;
  for (const line of lines) {
    offsets.push(offset);
    offset += line.length + 1;
  }
  const blocks = read(lines.map((line) => line.replace(/\r$/, "")), 0);
  return blocks.map(({ at, ...block }) => ({ ...block, start: offsets[at] }));
}

function read(lines, depth) {
  const blocks = [];
  for (let at = 0; at < lines.length;) {
    if (blank(lines[at])) {
      at += 1;
      continue;
    }
    const found = code(lines, at) ?? heading(lines, at) ?? rule(lines, at) ?? quote(lines, at, depth)
      ?? list(lines, at, depth) ?? table(lines, at) ?? paragraph(lines, at);
    blocks.push({ ...found.block, at });
    at = found.next;
  }
  return blocks;
}

function code(lines, at) {
  const open = FENCE.exec(lines[at]);
  if (!open) return null;
  const indent = indentOf(lines[at]);
  const [, fence, language] = open;
  let end = at + 1;
  while (end < lines.length && !closes(lines[end], fence)) end += 1;
  const text = lines.slice(at + 1, end).map((line) => dedent(line, indent)).join("\n");
  const block = { type: "code", language: language.trim().split(/\s/)[0], text, closed: end < lines.length };
  return { block, next: end + 1 };
}

function closes(line, fence) {
  const plain = line.trim();
  return plain.length >= fence.length && indentOf(line) < 4 && plain === fence[0].repeat(plain.length);
}

function heading(lines, at) {
  const found = HEADING.exec(lines[at]);
  if (!found) return null;
  const text = found[2].trim().replace(/(^|[ \t])#+$/, "").trim();
  return { block: { type: "heading", level: found[1].length, text }, next: at + 1 };
}

function rule(lines, at) {
  return RULE.test(lines[at]) ? { block: { type: "rule" }, next: at + 1 } : null;
}

function quote(lines, at, depth) {
  if (!QUOTE.test(lines[at]) || depth >= DEEPEST) return null;
  let end = at;
  while (end < lines.length && QUOTE.test(lines[end])) end += 1;
  const inside = lines.slice(at, end).map((line) => line.replace(QUOTE, ""));
  return { block: { type: "quote", blocks: read(inside, depth + 1) }, next: end };
}

function list(lines, at, depth) {
  const first = marker(lines[at]);
  if (!first || depth >= DEEPEST) return null;
  const items = [];
  let next = at;
  for (;;) {
    const found = next < lines.length ? marker(lines[next]) : null;
    if (!found || found.bullet !== first.bullet || RULE.test(lines[next])) break;
    const end = itemEnd(lines, next, found.indent);
    const inside = lines.slice(next + 1, end).map((line) => dedent(line, found.width));
    items.push(read([found.rest, ...inside], depth + 1));
    at = end;
    next = end;
    while (next < lines.length && blank(lines[next])) next += 1;
  }
  return { block: { type: "list", first: first.bullet ? null : first.number, items }, next: at };
}

function marker(line) {
  const found = ITEM.exec(line);
  if (!found) return null;
  const [, space, sign, rest = ""] = found;
  const bullet = sign.length === 1 && !/\d/.test(sign);
  return { bullet, number: parseInt(sign, 10), indent: space.length, width: space.length + sign.length + 1, rest };
}

/** The line after an item's last one. What is indented belongs to it, and text that simply goes on. */
function itemEnd(lines, at, indent) {
  let end = at + 1;
  for (; end < lines.length; end += 1) {
    if (blank(lines[end]) || indentOf(lines[end]) >= indent + 2) continue;
    if (blank(lines[end - 1]) || marker(lines[end]) || startsBlock(lines[end])) break;
  }
  while (blank(lines[end - 1]) && end > at + 1) end -= 1;
  return end;
}

function table(lines, at) {
  if (!startsTable(lines, at)) return null;
  const head = cells(lines[at]);
  const align = cells(lines[at + 1]).map(alignment);
  const rows = [];
  let end = at + 2;
  for (; end < lines.length && lines[end].includes("|") && !blank(lines[end]); end += 1) {
    const row = cells(lines[end]);
    rows.push(head.map((_, column) => row[column] ?? ""));
  }
  return { block: { type: "table", head, rows, align }, next: end };
}

function startsTable(lines, at) {
  if (!lines[at].includes("|") || !lines[at + 1]?.includes("-")) return false;
  const below = cells(lines[at + 1]);
  return below.every((cell) => /^:?-+:?$/.test(cell)) && below.length === cells(lines[at]).length;
}

function alignment(cell) {
  if (!cell.endsWith(":")) return "left";
  return cell.startsWith(":") ? "center" : "right";
}

function cells(line) {
  const inside = line.trim().replace(/^\|/, "").replace(/(?<!\\)\|$/, "");
  return inside.split(/(?<!\\)\|/).map((cell) => cell.replaceAll("\\|", "|").trim());
}

function paragraph(lines, at) {
  let end = at + 1;
  while (end < lines.length && !blank(lines[end]) && !interrupts(lines, end)) end += 1;
  const text = lines.slice(at, end).map((line) => line.trim()).join("\n");
  return { block: { type: "paragraph", text }, next: end };
}

/** Whether a line ends the paragraph before it. "1984. What a year" at the start of a line is no list. */
function interrupts(lines, at) {
  const item = marker(lines[at]);
  const isList = item && item.rest !== "" && (item.bullet || item.number === 1);
  return isList || startsBlock(lines[at]) || startsTable(lines, at);
}

function startsBlock(line) {
  return FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line);
}

const blank = (line) => line.trim() === "";
const indentOf = (line) => line.length - line.trimStart().length;
const dedent = (line, most) => line.slice(Math.min(most, indentOf(line)));

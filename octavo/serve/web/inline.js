// Markdown inside a line: code, emphasis, links. Builds nodes; whatever it does not know stays text.
// One pass, and what is skipped is never searched twice: a long answer must not take a time that grows with its square.

import { make, fill } from "./dom.js";

const SAFE = ["http:", "https:", "mailto:"];
const PLAIN = /[^\\`*_~[!<h\n]+/y;
const LABEL = String.raw`!?\[((?:[^[\]\\]|\\.){0,1000})\]`;
const ADDRESS = String.raw`<?([^\s()<>]{1,2000}(?:\([^\s()<>]{0,500}\)[^\s()<>]{0,500}){0,9})>?`;
const TITLE = String.raw`(?:\s{1,9}"[^"]{0,500}")?`;
const LINK = new RegExp(String.raw`${LABEL}\(\s{0,9}${ADDRESS}${TITLE}\s{0,9}\)`, "y");
const BARE = /<?((?:https?:\/\/|mailto:)[^\s<>"'`]{1,2000})>?/y;
const ESCAPED = /\\([!-/:-@[-`{-~])/y;
// Emphasis within emphasis; deeper signs stay text: browsers lay out what is nested by recursion.
const DEEPEST = 40;
const TAGS = { 1: "em", 2: "strong", "~": "del" };

/** The nodes and strings of a line or a paragraph. */
export function inline(text, links = true) {
  return new Inline(text, links).read();
}

/** A link if its address is one that a page may safely open, else null. */
export function safeLink(address, children) {
  const url = parsed(address);
  if (!url || !SAFE.includes(url.protocol)) return null;
  return fill(make("a", { href: url.href, target: "_blank", rel: "noopener noreferrer" }), children);
}

function parsed(address) {
  try {
    return new URL(address);
  } catch {
    return null;
  }
}

class Inline {
  constructor(text, links) {
    this.text = text;
    this.links = links;
    this.at = 0;
    this.frames = [{ children: [] }]; // the innermost emphasis that is open comes last
    this.open = { "*": 0, _: 0, "~": 0 }; // how many frames of each sign: looking for one that is not there costs time
    this.unclosed = new Set(); // lengths of backtick runs known to have no second one
  }

  read() {
    while (this.at < this.text.length) {
      const plain = this.match(PLAIN);
      if (plain) this.push(plain[0]);
      else if (!this.special(this.text[this.at])) this.push(this.text[this.at++]);
    }
    this.flatten(0);
    return this.frames[0].children;
  }

  special(sign) {
    if (sign === "\n") return this.lineBreak();
    if (sign === "\\") return this.escape();
    if (sign === "`") return this.code();
    if (sign === "*" || sign === "_" || sign === "~") return this.emphasis(sign);
    if (sign === "[" || sign === "!") return this.links && this.link();
    return this.links && this.bare();
  }

  match(pattern) {
    pattern.lastIndex = this.at;
    const found = pattern.exec(this.text);
    if (found) this.at = pattern.lastIndex;
    return found;
  }

  push(piece) {
    const { children } = this.frames.at(-1);
    if (typeof piece === "string" && typeof children.at(-1) === "string") children[children.length - 1] += piece;
    else children.push(piece);
    return true;
  }

  lineBreak() {
    this.at += 1;
    return this.push(make("br")); // a poem keeps its lines
  }

  escape() {
    const found = this.match(ESCAPED);
    return found ? this.push(found[1]) : false;
  }

  code() {
    const { length } = /^`+/.exec(this.text.slice(this.at, this.at + 40))[0];
    const end = this.unclosed.has(length) ? -1 : this.closing(length);
    if (end < 0) {
      this.unclosed.add(length);
      this.push("`".repeat(length));
      this.at += length;
      return true;
    }
    const inside = this.text.slice(this.at + length, end).replaceAll("\n", " ");
    this.at = end + length;
    return this.push(make("code", {}, /^ .*[^ ].* $/.test(inside) ? inside.slice(1, -1) : inside));
  }

  /** Where the next run of exactly this many backticks begins, or -1. */
  closing(length) {
    const run = /`+/g;
    run.lastIndex = this.at + length;
    for (let found = run.exec(this.text); found; found = run.exec(this.text)) {
      if (found[0].length === length) return found.index;
    }
    return -1;
  }

  link() {
    const start = this.at;
    const found = this.match(LINK);
    const link = found && safeLink(found[2], inline(found[1] || found[2], false));
    if (link) return this.push(link);
    this.at = start;
    return false;
  }

  bare() {
    if (/\w/.test(this.text[this.at - 1] ?? "")) return false;
    const start = this.at;
    const found = this.match(BARE);
    if (!found) return false;
    const address = found[0].startsWith("<") ? found[1] : trimmed(found[1]);
    const link = safeLink(address, [address]);
    this.at = link ? start + (found[0].startsWith("<") ? found[0].length : address.length) : start;
    return link ? this.push(link) : false;
  }

  emphasis(sign) {
    let end = this.at;
    while (this.text[end] === sign) end += 1;
    let left = end - this.at;
    const [before, after] = [this.text[this.at - 1] ?? " ", this.text[end] ?? " "];
    this.at = end;
    if (left > 3 || (sign === "~" && left !== 2)) return this.push(sign.repeat(left));
    const inWord = sign === "_" && /\w/.test(before) && /\w/.test(after);
    const closes = /\S/.test(before) && !inWord;
    const opens = /\S/.test(after) && !inWord && this.frames.length <= DEEPEST;
    while (left > 0) {
      const closed = closes && this.close(sign, left);
      if (!closed && !opens) return this.push(sign.repeat(left));
      left -= closed || this.begin(sign, Math.min(left, 2));
    }
    return true;
  }

  begin(sign, size) {
    this.frames.push({ sign, size, children: [] });
    this.open[sign] += 1;
    return size;
  }

  /** Close the innermost emphasis of this sign; gives the number of signs used, 0 if there was none to close. */
  close(sign, most) {
    if (!this.open[sign]) return 0;
    const at = this.frames.findLastIndex((frame) => frame.sign === sign);
    const { size } = this.frames[at];
    if (size > most) return 0;
    this.flatten(at);
    const { children } = this.frames.pop();
    this.open[sign] -= 1;
    this.push(fill(make(TAGS[sign] ?? TAGS[size]), children));
    return size;
  }

  /** Frames above `at` were never closed: their signs are text after all. */
  flatten(at) {
    for (const frame of this.frames.splice(at + 1)) {
      this.open[frame.sign] -= 1;
      this.push(frame.sign.repeat(frame.size));
      for (const child of frame.children) this.push(child);
    }
  }
}

/** An address without the punctuation of the sentence around it. */
function trimmed(address) {
  const plain = address.replace(/[.,;:!?*_~\]]{1,20}$/, "");
  return plain.endsWith(")") && !plain.includes("(") ? plain.slice(0, -1) : plain;
}

// The box at the bottom: the question, its files, and how many tokens they are.

import { byId, fit, icon, iconButton, isEnter, make } from "./dom.js";

const LARGEST_FILE = 2 * 2 ** 20; // bytes; the server takes bodies of twice that
const PAUSE = 400; // milliseconds without typing before tokens are counted

/**
 * `actions`: send({text, files}), which says whether it could, stop(), editLast(), complain(words), countText(text) and
 * countDraft({text, files}), which give {count, max_model_len} or throw.
 */
export class Composer {
  constructor(actions) {
    this.actions = actions;
    this.area = byId("question");
    this.files = [];
    this.counting = null; // timer of the next count
    this.counted = 0; // how many counts were begun: a late answer to an early one is dropped
    this.area.addEventListener("input", () => this.changed());
    this.area.addEventListener("keydown", (event) => this.key(event));
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
    byId("stop").addEventListener("click", () => actions.stop());
    byId("attach").addEventListener("click", () => byId("file").click());
    byId("file").addEventListener("change", async ({ target }) => {
      await this.attach([...target.files]);
      target.value = ""; // the same file may be chosen again
    });
    this.acceptDrops();
    this.changed();
  }

  get draft() {
    return { text: this.area.value, files: this.files };
  }

  set draft({ text, files }) {
    this.area.value = text;
    this.files = files;
    this.drawFiles();
    this.changed();
  }

  get empty() {
    return this.area.value.trim() === "" && this.files.length === 0;
  }

  focus() {
    // on a phone this would bring up the keyboard
    if (matchMedia("(hover: hover)").matches) this.area.focus();
  }

  /** Send and stop share a place. */
  setBusy(busy) {
    byId("send").hidden = busy;
    byId("stop").hidden = !busy;
  }

  send() {
    if (!this.empty && this.actions.send(this.draft)) this.draft = { text: "", files: [] };
  }

  key(event) {
    if (isEnter(event)) {
      event.preventDefault();
      this.send();
    } else if (event.key === "ArrowUp" && this.area.value === "") {
      event.preventDefault();
      this.actions.editLast();
    }
  }

  changed() {
    fit(this.area);
    byId("send").disabled = this.empty;
    this.counted += 1;
    clearTimeout(this.counting);
    if (this.files.length) this.counting = setTimeout(() => this.count(), PAUSE);
    else byId("meter").replaceChildren();
  }

  /** Say what the whole question costs, with what was said before it. */
  async count() {
    const turn = ++this.counted;
    let words = "token count unavailable", over = false;
    try {
      const { count, max_model_len: most } = await this.actions.countDraft(this.draft);
      over = Boolean(most) && count >= most;
      words = `${count.toLocaleString("en")} ${most ? `of ${most.toLocaleString("en")} ` : ""}tokens`;
      if (over) words += ": too long for this model";
    } catch (error) {
      console.debug("tokens were not counted", error);
    }
    if (turn !== this.counted) return;
    byId("meter").replaceChildren(make("span", { class: over ? "over" : null }, words));
  }

  async attach(files) {
    for (const file of files) {
      try {
        this.files.push(await readText(file));
      } catch (error) {
        this.actions.complain(error.message);
      }
    }
    this.drawFiles();
    this.changed();
    this.focus();
    for (const file of this.files.filter((each) => each.tokens === null)) {
      try {
        file.tokens = (await this.actions.countText(file.text)).count;
      } catch (error) {
        console.debug("tokens were not counted", error);
      }
    }
    this.drawFiles();
  }

  drawFiles() {
    byId("files").replaceChildren(...this.files.map((file) => fileChip(file, () => {
      this.files = this.files.filter((each) => each !== file);
      this.drawFiles();
      this.changed();
      this.focus();
    })));
  }

  acceptDrops() {
    const holdsFiles = (event) => event.dataTransfer?.types.includes("Files");
    document.addEventListener("dragover", (event) => {
      if (holdsFiles(event)) event.preventDefault();
    });
    document.addEventListener("drop", (event) => {
      if (!holdsFiles(event)) return;
      event.preventDefault();
      this.attach([...event.dataTransfer.files]);
    });
  }
}

/** A file's name and size in tokens, with a button where it can be taken away. */
export function fileChip({ name, tokens }, remove = null) {
  const size = tokens === null ? "" : `${tokens.toLocaleString("en")} tokens`;
  const words = [make("span", { class: "name", title: name }, name), make("span", { class: "size" }, size)];
  const chip = make("li", { class: "chip" }, icon("file"), ...words);
  if (remove) chip.append(iconButton("close", `Remove ${name}`, remove));
  return chip;
}

/** {name, text, tokens: null}. Throws Error for what is too large or not text. */
async function readText(file) {
  if (file.size > LARGEST_FILE) throw new Error(`${file.name} is larger than 2 MiB: attach the part that matters.`);
  let text;
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
  } catch {
    text = "\0";
  }
  if (text.includes("\0")) throw new Error(`${file.name} is not a text file in UTF-8.`);
  return { name: file.name, text: text.replaceAll("\r\n", "\n"), tokens: null };
}

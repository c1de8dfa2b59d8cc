// The conversation on the page: one element for each turn of the branch on view.

import { statistics } from "./answer.js";
import { fileChip } from "./composer.js";
import { arrange, byId, copyButton, fit, iconButton, isComposing, isEnter, make } from "./dom.js";
import { MarkdownView } from "./render.js";

const NEAR = 80; // pixels from the end that still count as being there

/** `actions`: show(turn), edit(turn, text), which says whether it could, regenerate(turn), retry(turn). */
export class ConversationView {
  constructor(actions) {
    this.actions = actions;
    this.list = byId("conversation");
    this.scroller = byId("scroller");
    this.views = new Map(); // by turn id
    const toEnd = byId("to-end");
    toEnd.addEventListener("click", () => this.toEnd());
    this.scroller.addEventListener("scroll", () => (toEnd.hidden = this.atEnd()));
  }

  /** Draw the branch on view; elements of turns that stay are kept. */
  show(conversation) {
    const old = this.views;
    const path = conversation.path();
    const viewOf = (turn) => (old.get(turn.id)?.turn === turn ? old.get(turn.id) : new TurnView(turn, this.actions));
    this.views = new Map(path.map((turn) => [turn.id, viewOf(turn)]));
    for (const turn of path) this.views.get(turn.id).update(conversation.siblings(turn));
    arrange(this.list, path.map((turn) => this.views.get(turn.id).element));
    byId("welcome").hidden = path.length > 0;
  }

  /** Draw what has changed in one turn, if it is on view. */
  refresh(turn) {
    const view = this.views.get(turn.id);
    if (view) this.following(() => view.update());
  }

  edit(turn) {
    this.views.get(turn.id)?.edit();
  }

  // a screen reader should hear the answer once, not at every token
  setBusy(busy) {
    this.list.setAttribute("aria-busy", String(busy));
  }

  atEnd() {
    const { scrollHeight, scrollTop, clientHeight } = this.scroller;
    return scrollHeight - scrollTop - clientHeight < NEAR;
  }

  toEnd() {
    this.scroller.scrollTop = this.scroller.scrollHeight;
  }

  /** Keep the end in view through a change, unless the reader has scrolled up. */
  following(change) {
    const atEnd = this.atEnd();
    change();
    if (atEnd) this.toEnd();
    byId("to-end").hidden = this.atEnd();
  }
}

class TurnView {
  constructor(turn, actions) {
    this.turn = turn;
    this.actions = actions;
    this.mine = turn.role === "user";
    this.siblings = [turn];
    this.body = make("div", { class: this.mine ? "text" : "text markdown" });
    this.note = make("p", { class: "note" });
    this.branches = make("div", { class: "branches" });
    this.failure = make("div", { class: "failure", hidden: true });
    this.foot = make("div", { class: "foot" }, this.branches, this.tools(), this.note);
    const title = make("h2", { class: "unseen" }, this.mine ? "You" : turn.model || "Answer");
    const files = make("ul", { class: "files" }, ...turn.files.map((file) => fileChip(file)));
    const parts = [title, files, this.body, this.failure, this.foot];
    this.element = make("article", { class: `turn ${turn.role}` }, ...parts);
    this.drawn = null; // the text that is on the page
  }

  tools() {
    const { turn, actions, mine } = this;
    const tools = [copyButton("Copy", () => turn.text)];
    if (!mine) tools.push(iconButton("redo", "Regenerate", () => actions.regenerate(turn)));
    tools.push(iconButton("edit", "Edit", () => this.edit()));
    return make("div", { class: "tools" }, ...tools);
  }

  update(siblings = this.siblings) {
    const { turn } = this;
    this.siblings = siblings;
    this.element.dataset.state = turn.state;
    this.drawText();
    this.drawBranches();
    this.drawFailure();
    const words = [turn.state === "stopped" ? "Stopped" : "", statistics(turn.stats ?? {})];
    this.note.textContent = words.filter(Boolean).join(" · ");
  }

  drawText() {
    const { text } = this.turn;
    if (text === this.drawn) return;
    if (this.mine) {
      this.body.textContent = text;
    } else {
      if (this.drawn === null || !text.startsWith(this.drawn)) {
        this.body.replaceChildren();
        this.markdown = new MarkdownView(this.body);
      }
      this.markdown.update(text);
    }
    this.drawn = text;
  }

  drawBranches() {
    const at = this.siblings.indexOf(this.turn), { length } = this.siblings;
    const step = (name, label, to) => {
      const button = iconButton(name, label, () => this.actions.show(this.siblings[to]));
      button.disabled = !this.siblings[to];
      return button;
    };
    this.branches.replaceChildren();
    if (length < 2) return;
    this.branches.append(
      step("left", "Previous version", at - 1),
      make("span", { "aria-label": `version ${at + 1} of ${length}` }, `${at + 1}/${length}`),
      step("right", "Next version", at + 1),
    );
  }

  drawFailure() {
    const { turn } = this;
    this.failure.hidden = turn.state !== "error";
    clearTimeout(this.countdown);
    if (this.failure.hidden) return;
    const retry = make("button", { type: "button", class: "plain", click: () => this.actions.retry(turn) }, "Retry");
    this.failure.replaceChildren(make("p", {}, turn.error), retry);
    this.waitFor(retry);
  }

  /** While the server asks not to be asked, the button says for how long. */
  waitFor(retry) {
    const left = Math.ceil(((this.turn.retryAt ?? 0) - Date.now()) / 1000);
    retry.disabled = left > 0;
    retry.textContent = left > 0 ? `Retry in ${left} s` : "Retry";
    if (left > 0) this.countdown = setTimeout(() => this.waitFor(retry), 1000);
  }

  /** Swap the text for a box to change it in. */
  edit() {
    if (this.editor || this.turn.state === "streaming") return;
    const area = make("textarea", { "aria-label": "Edit message", rows: "1" });
    area.value = this.turn.text;
    const close = () => {
      this.editor.replaceWith(this.body);
      this.editor = null;
      this.element.classList.remove("editing");
    };
    const save = () => {
      if (area.value.trim() === "" && !this.turn.files.length) return;
      if (this.actions.edit(this.turn, area.value)) close();
    };
    const cancel = make("button", { type: "button", class: "plain", click: close }, "Cancel");
    const done = make("button", { type: "button", class: "plain strong", click: save }, this.mine ? "Send" : "Save");
    this.editor = make("div", { class: "editor" }, area, make("div", { class: "row" }, cancel, done));
    area.addEventListener("input", () => fit(area));
    area.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && !isComposing(event)) close();
      else if (!(this.mine && isEnter(event))) return;
      else save();
      event.preventDefault();
      event.stopPropagation();
    });
    this.element.classList.add("editing");
    this.body.replaceWith(this.editor);
    fit(area);
    area.focus();
  }
}

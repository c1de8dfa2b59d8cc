// The list of conversations, and the drawer that it is on a small screen.

import { arrange, byId, iconButton, isComposing, isEnter, make } from "./dom.js";
import { recall, remember } from "./store.js";

const wide = matchMedia("(min-width: 56rem)");

/** `actions`: open(conversation), rename(conversation, title), remove(conversation). */
export class Sidebar {
  constructor(actions) {
    this.actions = actions;
    this.panel = byId("sidebar");
    this.button = byId("sidebar-button");
    this.renaming = null; // {id, item} of the conversation whose title is being written
    this.button.addEventListener("click", () => this.toggle(this.panel.hidden));
    byId("sidebar-close").addEventListener("click", () => this.toggle(false));
    byId("scrim").addEventListener("click", () => this.toggle(false));
    wide.addEventListener("change", () => this.adapt());
    this.adapt();
  }

  get isDrawer() {
    return !wide.matches && !this.panel.hidden;
  }

  adapt() {
    this.toggle(wide.matches && recall("sidebar") !== "closed", false);
  }

  toggle(shown, chosen = true) {
    const had = this.panel.contains(document.activeElement);
    this.panel.hidden = !shown;
    byId("scrim").hidden = !this.isDrawer;
    this.button.setAttribute("aria-expanded", String(shown));
    if (chosen && wide.matches) remember("sidebar", shown ? null : "closed");
    if (this.isDrawer) byId("new-chat").focus();
    else if (had && !shown) this.button.focus();
  }

  /** After a choice in the drawer, what was chosen should be seen. */
  leave() {
    if (this.isDrawer) this.toggle(false);
  }

  /** Draw the list. `busy` holds the ids of conversations with an answer under way. */
  draw(conversations, current, busy) {
    if (!conversations.some(({ id }) => id === this.renaming?.id)) this.renaming = null;
    const itemOf = (each) => {
      if (each.id === this.renaming?.id) return this.renaming.item; // answers may end while somebody writes
      return this.item(each, each === current, busy.has(each.id));
    };
    arrange(byId("history"), conversations.map(itemOf));
    byId("no-history").hidden = conversations.length > 0;
  }

  item(conversation, isCurrent, isBusy) {
    const { name } = conversation;
    const open = () => {
      this.actions.open(conversation);
      this.leave();
    };
    const marks = { class: "title", title: name, "aria-current": isCurrent ? "page" : null };
    const title = make("button", { type: "button", ...marks, click: open }, name);
    const rename = iconButton("edit", `Rename ${name}`, () => this.rename(conversation, item));
    const remove = iconButton("bin", `Delete ${name}`, () => this.actions.remove(conversation));
    const item = make("li", { class: isBusy ? "busy" : null }, title, rename, remove);
    return item;
  }

  rename(conversation, item) {
    const field = make("input", { "aria-label": "Title of the conversation", maxlength: "200" });
    field.value = conversation.name;
    this.renaming = { id: conversation.id, item };
    const end = (title) => {
      if (this.renaming?.item !== item) return; // taking the field away blurs it
      this.renaming = null;
      this.actions.rename(conversation, title);
    };
    field.addEventListener("keydown", (event) => {
      if (isEnter(event)) end(field.value.trim());
      else if (event.key === "Escape" && !isComposing(event)) end(conversation.title);
      else return;
      event.preventDefault();
      event.stopPropagation();
    });
    field.addEventListener("blur", () => end(field.value.trim()));
    item.replaceChildren(field);
    field.select();
  }
}

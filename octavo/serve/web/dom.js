// Building elements. Text enters the page as text nodes and attributes only: nothing here parses markup.

/** The element with this id. */
export const byId = (id) => document.getElementById(id);

/**
 * An element. Functions become event listeners, `true` an empty attribute; null, undefined and false leave it out.
 * Children are nodes or strings; strings stay text.
 */
export function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  return fill(node, children);
}

/** Append children one by one: spreading a long answer's pieces into one call would overflow the stack. */
export function fill(node, children) {
  for (const child of children) node.append(child);
  return node;
}

/** A picture from the sprite in index.html. */
export function icon(name) {
  const space = "http://www.w3.org/2000/svg";
  const picture = document.createElementNS(space, "svg");
  picture.setAttribute("class", "icon");
  picture.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(space, "use");
  use.setAttribute("href", `#icon-${name}`);
  picture.append(use);
  return picture;
}

/** A button that shows only a picture; its name is read aloud and shown as a tip. */
export function iconButton(name, label, click) {
  return make("button", { type: "button", class: "tool", "aria-label": label, title: label, click }, icon(name));
}

/** Put text on the clipboard. Browsers keep the modern interface to https and localhost, hence the old one. */
export async function copyText(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const holder = make("textarea", { class: "unseen" });
  holder.value = text;
  document.body.append(holder);
  holder.select();
  document.execCommand("copy");
  holder.remove();
}

/** A copy button that says for a moment that it worked. `read` gives the text. */
export function copyButton(label, read) {
  const button = iconButton("copy", label, async () => {
    await copyText(read());
    button.replaceChildren(icon("check"));
    button.setAttribute("aria-label", "Copied");
    setTimeout(() => {
      button.replaceChildren(icon("copy"));
      button.setAttribute("aria-label", label);
    }, 1500);
  });
  return button;
}

/** A short random name. `crypto.randomUUID` would need https. */
export function randomId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(8)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Fit a text area to its text; the style sheet sets the limits. */
export function fit(area) {
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight}px`;
}

/** Whether a key event is a plain Enter. An input method takes Enter for itself while it composes. */
export function isEnter(event) {
  return event.key === "Enter" && !event.shiftKey && !event.isComposing;
}

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

/**
 * Make these elements the children of a node. What stays is not touched: it keeps its focus, the reader's selection and
 * its scroll position, and is not read aloud again.
 */
export function arrange(node, children) {
  const kept = new Set(children);
  for (const child of [...node.children]) if (!kept.has(child)) child.remove();
  let next = node.firstElementChild;
  for (const child of children) {
    if (child === next) next = next.nextElementSibling;
    else node.insertBefore(child, next);
  }
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
  try {
    return await navigator.clipboard.writeText(text);
  } catch (error) {
    console.debug("the old way to copy", error);
  }
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

/** Whether a key event is a plain Enter. */
export function isEnter(event) {
  return event.key === "Enter" && !event.shiftKey && !isComposing(event);
}

/** Whether an input method takes the key for itself. Safari says so only by the code 229: its composition ends before
 *  the Enter that ends it. */
export function isComposing(event) {
  return event.isComposing || event.keyCode === 229;
}

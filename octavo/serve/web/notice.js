// Lines above the box: what happened beside the conversation, and the form for an API key.

import { getKey, setKey } from "./api.js";
import { byId, iconButton, make } from "./dom.js";

const SHOWN_FOR = 8000; // milliseconds, of a notice that offers to undo something
let fading = null;

/** Show a line. With `action` ({label, run}) it has a button and goes by itself after a while. */
export function notify(words, action = null) {
  const notice = byId("notice");
  const hide = () => (notice.hidden = true);
  const parts = [make("span", {}, words)];
  const run = () => {
    hide();
    action.run();
  };
  if (action) parts.push(make("button", { type: "button", class: "plain", click: run }, action.label));
  parts.push(iconButton("close", "Dismiss", hide));
  notice.replaceChildren(...parts);
  notice.hidden = false;
  clearTimeout(fading);
  if (action?.fades) fading = setTimeout(hide, SHOWN_FOR);
}

/** Take the line away. */
export function clearNotice() {
  byId("notice").hidden = true;
}

/** Say something to screen readers only. */
export function announce(words) {
  byId("announce").textContent = words;
}

/** Ask for the API key, or for another one where there is one already; onKey is called with it in place. */
export function askForKey(onKey) {
  const form = byId("key-form"), field = byId("key");
  byId("key-label").textContent = getKey() ? "The server does not know this API key" : "This server asks for an API key";
  field.oninput = () => field.setCustomValidity("");
  form.hidden = false;
  if (getKey()) field.focus();
  form.onsubmit = (event) => {
    event.preventDefault();
    const key = field.value.trim();
    if (!/^[\x21-\x7e]+$/.test(key)) { // nothing else can travel in a header
      field.setCustomValidity("A key has letters, digits and signs of ASCII only, and no space in it.");
      return field.reportValidity();
    }
    setKey(key);
    field.value = "";
    form.hidden = true;
    onKey();
  };
}

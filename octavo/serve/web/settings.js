// The settings: system prompt and sampling. A field left empty is left out of the request: the server decides.

import { byId } from "./dom.js";
import { recall, remember } from "./store.js";

/** The panel. `onSystem(text)` is told what the system prompt has become. */
export class Settings {
  constructor(onSystem) {
    this.panel = byId("settings");
    this.button = byId("settings-button");
    this.systemField = byId("system");
    this.fields = [...this.panel.querySelectorAll("input[name]")];
    this.systemField.value = recall("system") ?? "";
    const kept = recall("sampling") ?? {};
    for (const field of this.fields) field.value = kept[field.name] ?? "";
    this.systemField.addEventListener("input", () => {
      remember("system", this.system);
      onSystem(this.system);
    });
    this.panel.addEventListener("input", () => this.keep());
    this.button.addEventListener("click", () => this.toggle(this.panel.hidden));
    byId("settings-close").addEventListener("click", () => this.toggle(false));
    byId("settings-reset").addEventListener("click", () => this.reset());
  }

  get system() {
    return this.systemField.value;
  }

  set system(text) {
    this.systemField.value = text;
  }

  /** The request's fields for what was filled in. */
  sampling() {
    return Object.fromEntries(this.filled().map((field) => [field.name, field.valueAsNumber]));
  }

  /** Whether all fields can be sent; if not, the first wrong one is shown. */
  check() {
    const wrong = this.fields.find((field) => !field.checkValidity());
    if (!wrong) return true;
    this.toggle(true);
    wrong.reportValidity();
    return false;
  }

  toggle(shown) {
    const had = this.panel.contains(document.activeElement);
    this.panel.hidden = !shown;
    this.button.setAttribute("aria-expanded", String(shown));
    if (shown) this.systemField.focus();
    else if (had) this.button.focus();
  }

  reset() {
    for (const field of this.fields) field.value = "";
    this.keep();
  }

  keep() {
    remember("sampling", Object.fromEntries(this.filled().map((field) => [field.name, field.value])));
    this.button.classList.toggle("changed", this.filled().length > 0);
  }

  filled() {
    return this.fields.filter((field) => field.value !== "");
  }
}

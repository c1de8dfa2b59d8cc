// Light and dark: as the system says, until the reader chooses otherwise.

import { recall, remember } from "./store.js";

const system = matchMedia("(prefers-color-scheme: dark)");

/** Apply the reader's choice and let `button` change it. Choosing what the system has means following it again. */
export function followTheme(button) {
  apply(recall("theme"));
  button.addEventListener("click", () => {
    const dark = !isDark();
    const chosen = dark === system.matches ? null : dark ? "dark" : "light";
    remember("theme", chosen);
    apply(chosen);
  });
}

function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : system.matches;
}

function apply(chosen) {
  if (chosen === "dark" || chosen === "light") document.documentElement.dataset.theme = chosen;
  else delete document.documentElement.dataset.theme;
}

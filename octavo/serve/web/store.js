// Conversations and settings in the browser's localStorage. It may be full or switched off: the page works on.

import { Conversation } from "./tree.js";

const PREFIX = "octavo.chat.";

/** Conversations by id. `onProblem(words)` is called when one cannot be kept. */
export class Store {
  constructor(onProblem) {
    this.onProblem = onProblem;
    this.known = new Map(); // conversations by id, those included that the storage has no room for
    this.refresh();
  }

  /** Read what is stored, by another tab perhaps; a conversation that is being used here keeps its object. */
  refresh() {
    for (const key of storedKeys()) {
      const id = key.slice(PREFIX.length);
      if (!this.known.has(id)) this.readInto(id);
    }
  }

  readInto(id) {
    try {
      this.known.set(id, Conversation.fromJSON(JSON.parse(localStorage.getItem(PREFIX + id))));
      this.known.get(id).id = id;
    } catch (error) {
      console.debug(`conversation ${id} cannot be read`, error); // left where it is: a later version may know it
    }
  }

  /** Another tab has changed a conversation: forget ours, unless it is one of `busy`, which takes over what is new. */
  changedElsewhere(key, busy) {
    const id = key?.startsWith(PREFIX) ? key.slice(PREFIX.length) : null;
    if (!id) return;
    const ours = this.known.get(id);
    this.known.delete(id);
    if (localStorage.getItem(key) !== null) this.readInto(id);
    if (!busy.has(id)) return;
    if (this.known.has(id)) ours.merge(this.known.get(id));
    this.known.set(id, ours);
  }

  /** All conversations, the latest first. */
  list() {
    return [...this.known.values()].sort((a, b) => b.updated - a.updated);
  }

  get(id) {
    return this.known.get(id) ?? null;
  }

  save(conversation) {
    this.known.set(conversation.id, conversation);
    try {
      localStorage.setItem(PREFIX + conversation.id, JSON.stringify(conversation));
    } catch (error) {
      this.onProblem(error.name === "QuotaExceededError"
        ? "The browser's storage is full: this conversation will be lost with the tab. Export it, or delete others."
        : "This browser lets the page store nothing: conversations will be lost with the tab.");
    }
  }

  remove(id) {
    this.known.delete(id);
    try {
      localStorage.removeItem(PREFIX + id);
    } catch (error) {
      console.debug("nothing is stored", error);
    }
  }
}

/** A small value that outlives the tab where the browser allows it; null if there is none. */
export function recall(name) {
  try {
    return JSON.parse(localStorage.getItem(`octavo.${name}`));
  } catch {
    return null;
  }
}

/** Keep a small value; null forgets it. */
export function remember(name, value) {
  try {
    if (value === null) localStorage.removeItem(`octavo.${name}`);
    else localStorage.setItem(`octavo.${name}`, JSON.stringify(value));
  } catch (error) {
    console.debug(`${name} cannot be stored`, error);
  }
}

function storedKeys() {
  try {
    return Object.keys(localStorage).filter((key) => key.startsWith(PREFIX));
  } catch {
    return [];
  }
}

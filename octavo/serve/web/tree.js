// A conversation is a tree of turns: editing a question or asking for another answer adds a sibling.

import { randomId } from "./dom.js";

const ROOT = "root";
const ROLES = ["user", "assistant"];
const STATES = ["done", "stopped", "error"];
const LONGEST_TITLE = 80;

/**
 * Turns are {id, parent, role, text, files: [{name, text, tokens}], state, model, stats, error}.
 * state: "streaming", "done", "stopped" or "error". `parent` is the id of the turn before it, "root" for the first.
 */
export class Conversation {
  constructor() {
    this.id = randomId();
    this.title = "";
    this.system = "";
    this.model = "";
    this.updated = Date.now();
    this.turns = new Map(); // by id
    this.children = new Map([[ROOT, []]]); // lists of turns, by the id of the turn before
    this.chosen = new Map(); // which child is shown, by the id of the turn before
  }

  /** Add a turn after `parent` (null: as a first one) and show it. */
  add(parent, role, fields = {}) {
    const empty = { text: "", files: [], state: "done", model: "", stats: {}, error: "" };
    const turn = { id: randomId(), parent: parent?.id ?? ROOT, role, ...empty, ...fields };
    this.insert(turn);
    this.show(turn);
    return turn;
  }

  insert(turn) {
    this.turns.set(turn.id, turn);
    this.children.set(turn.id, []);
    this.children.get(turn.parent).push(turn);
  }

  /** Take over what another tab has added to this conversation. Answers that are on their way here stay as they are. */
  merge(other) {
    for (const theirs of other.turns.values()) {
      const ours = this.turns.get(theirs.id);
      if (!ours && this.children.has(theirs.parent)) this.insert(theirs);
      else if (ours && ours.state !== "streaming" && theirs.text.length > ours.text.length) Object.assign(ours, theirs);
    }
  }

  /** The turn before this one, null for a first one. */
  before(turn) {
    return this.turns.get(turn.parent) ?? null;
  }

  /** This turn and those that stand in its place, oldest first. */
  siblings(turn) {
    return this.children.get(turn.parent);
  }

  /** Choose a turn among its siblings. */
  show(turn) {
    this.chosen.set(turn.parent, turn.id);
  }

  /** The turns on view, first to last. */
  path() {
    const turns = [];
    for (let id = ROOT; ;) {
      const options = this.children.get(id);
      if (!options.length) return turns;
      const turn = options.find((each) => each.id === this.chosen.get(id)) ?? options.at(-1);
      turns.push(turn);
      id = turn.id;
    }
  }

  /** What the model is sent of a branch: all up to `last`, a turn; of none, the system prompt alone. */
  messages(last) {
    const line = [];
    for (let turn = last; turn; turn = this.before(turn)) line.unshift(turn);
    // A question whose answer never came goes with it: two questions in a row are an error to many templates.
    const kept = line.filter((turn, at) => {
      const answer = turn.role === "assistant" ? turn : line[at + 1];
      return !answer || answer.text !== "";
    });
    const messages = kept.map((turn) => ({ role: turn.role, content: withFiles(turn) }));
    return this.system.trim() ? [{ role: "system", content: this.system.trim() }, ...messages] : messages;
  }

  /** The title shown: the one given, or the first question. */
  get name() {
    const first = this.path()[0];
    const words = this.title || first?.text.trim() || first?.files[0]?.name || "New chat";
    const line = words.split("\n")[0];
    return line.length > LONGEST_TITLE ? `${line.slice(0, LONGEST_TITLE - 1)}…` : line;
  }

  toJSON() {
    const { id, title, system, model, updated } = this;
    const head = { format: "octavo-chat", version: 1, id, title, system, model, updated };
    return { ...head, turns: [...this.turns.values()], chosen: [...this.chosen] };
  }

  /** The conversation that toJSON gave. Throws Error for anything else: the file may be from anywhere. */
  static fromJSON(data) {
    if (data?.format !== "octavo-chat" || data.version !== 1 || !Array.isArray(data.turns)) {
      throw new Error("it is not a conversation of octavo's chat page");
    }
    const made = new Conversation();
    if (text(data.id)) made.id = data.id;
    for (const name of ["title", "system", "model"]) made[name] = text(data[name]);
    made.updated = number(data.updated) ?? made.updated;
    for (const each of data.turns) made.insert(readTurn(each, made));
    for (const pair of Array.isArray(data.chosen) ? data.chosen : []) {
      if (Array.isArray(pair)) made.chosen.set(text(pair[0]), text(pair[1]));
    }
    return made;
  }
}

/** A turn's text with its files in front, so that what the model has read of them serves the next questions too. */
export function withFiles({ text: words, files }) {
  const parts = files.map(({ name, text: content }) => {
    const runs = Array.from(content.matchAll(/`+/g), ([run]) => run.length);
    const fence = "`".repeat(runs.reduce((most, length) => Math.max(most, length + 1), 3));
    return `File ${name}:\n${fence}\n${content}\n${fence}`;
  });
  return [...parts, words].filter(Boolean).join("\n\n");
}

function readTurn(data, conversation) {
  const { id, parent, role } = data ?? {};
  if (!text(id) || id === ROOT || conversation.turns.has(id) || !ROLES.includes(role)) {
    throw new Error("a turn of this conversation is broken");
  }
  if (!conversation.children.has(parent)) throw new Error("a turn of this conversation follows none");
  const files = (Array.isArray(data.files) ? data.files : [])
    .map((file) => ({ name: text(file?.name), text: text(file?.text), tokens: number(file?.tokens) }));
  // an answer that was streaming when the page was left has stopped
  const state = STATES.includes(data.state) ? data.state : "stopped";
  const stats = Object.fromEntries(Object.entries(data.stats ?? {}).filter(([, value]) => number(value) !== null));
  if (data.stats?.reason) stats.reason = text(data.stats.reason);
  const [words, model, error] = [data.text, data.model, data.error].map(text);
  return { id, parent, role, text: words, files, state, stats, model, error };
}

const text = (value) => (typeof value === "string" ? value : "");
const number = (value) => (Number.isFinite(value) ? value : null);

// The chat page: what the reader does, put together from the parts.

import { Answer, throttled } from "./answer.js";
import { ApiError, countTokens, listModels } from "./api.js";
import { Composer } from "./composer.js";
import { byId, isComposing, make } from "./dom.js";
import { announce, askForKey, clearNotice, notify } from "./notice.js";
import { Settings } from "./settings.js";
import { Sidebar } from "./sidebar.js";
import { recall, remember, Store } from "./store.js";
import { followTheme } from "./theme.js";
import { download, fileName, fromJson, toJson, toMarkdown } from "./transfer.js";
import { Conversation, withFiles } from "./tree.js";
import { ConversationView } from "./turns.js";

class Chat {
  constructor() {
    this.answers = new Map(); // answers under way, by the id of their conversation
    this.store = new Store((words) => notify(words));
    this.settings = new Settings((text) => this.setSystem(text));
    this.view = new ConversationView({
      show: (turn) => this.showBranch(turn),
      edit: (turn, text) => this.edit(turn, text),
      regenerate: (turn) => this.answer(this.conversation.before(turn)),
      retry: (turn) => this.retry(turn),
    });
    this.sidebar = new Sidebar({
      open: (conversation) => this.open(conversation),
      rename: (conversation, title) => this.rename(conversation, title),
      remove: (conversation) => this.remove(conversation),
    });
    this.composer = new Composer({
      send: (draft) => this.send(draft),
      stop: () => this.stop(),
      editLast: () => this.editLast(),
      complain: (words) => notify(words),
      countText: (prompt) => countTokens({ model: this.model, prompt }),
      countDraft: (draft) => countTokens({ model: this.model, messages: this.draftMessages(draft) }),
    });
    this.models = byId("model");
    this.models.addEventListener("change", () => this.setModel());
    this.settings.keep();
    this.listen();
    followTheme(byId("theme"));
    this.open(this.store.get(location.hash.slice(1)) ?? new Conversation());
    this.loadModels();
  }

  // ---- the model

  get model() {
    return this.models.value;
  }

  async loadModels() {
    try {
      const models = await listModels();
      this.models.replaceChildren(...models.map(({ id }) => make("option", { value: id }, id)));
      this.models.disabled = false;
      this.pickModel();
      clearNotice();
    } catch (error) {
      this.models.replaceChildren(make("option", { value: "" }, "no model"));
      this.models.disabled = true;
      if (!this.mayNeedKey(error)) notify(error.message, { label: "Retry", run: () => this.loadModels() });
    }
  }

  /** The model of this conversation or the last one chosen, if the server has it. */
  pickModel() {
    const names = Array.from(this.models.options, ({ value }) => value);
    const wanted = [this.conversation.model, recall("model")].find((name) => names.includes(name));
    if (wanted) this.models.value = wanted;
  }

  setModel() {
    remember("model", this.model);
    this.conversation.model = this.model;
    if (this.conversation.turns.size) this.store.save(this.conversation);
  }

  /** Whether the server refused for want of a key, which is then asked for. */
  mayNeedKey(error) {
    if (error.status === 401) askForKey(() => this.loadModels());
    return error.status === 401;
  }

  // ---- asking

  get busy() {
    return this.answers.has(this.conversation.id);
  }

  /** Ask a question. False where that cannot be yet. */
  send({ text, files }) {
    if (this.busy || !this.settings.check()) return false;
    const question = this.conversation.add(this.conversation.path().at(-1), "user", { text: text.trim(), files });
    this.answer(question);
    return true;
  }

  /** Have a question answered, in a new turn after it or in `turn`. */
  async answer(question, turn = null) {
    const { conversation } = this;
    if (this.busy || !this.settings.check()) return;
    turn ??= conversation.add(question, "assistant", { model: this.model });
    Object.assign(turn, { state: "streaming", text: "", error: "", stats: {} });
    const answer = new Answer(turn);
    this.answers.set(conversation.id, answer);
    this.changed(conversation);
    this.view.toEnd();
    announce("Answering");
    const draw = throttled(() => turn.state === "streaming" && this.view.refresh(turn));
    const request = { messages: conversation.messages(question), ...this.settings.sampling() };
    if (!this.model) await this.loadModels();
    turn.model = conversation.model = request.model = this.model;
    this.finish(conversation, turn, await answer.run(request, draw));
  }

  finish(conversation, turn, error) {
    this.answers.delete(conversation.id);
    if (error?.retryAfter) turn.retryAt = Date.now() + 1000 * error.retryAfter;
    if (error) this.mayNeedKey(error);
    if (error && !(error instanceof ApiError)) console.error(error);
    this.view.refresh(turn);
    this.changed(conversation);
    announce({ done: "The answer is complete", stopped: "Stopped" }[turn.state] ?? turn.error);
    if (conversation === this.conversation && document.activeElement === document.body) this.composer.focus();
  }

  /** What has come of a failed answer stays, as a version of its own. */
  retry(turn) {
    this.answer(this.conversation.before(turn), turn.text ? null : turn);
  }

  stop() {
    this.answers.get(this.conversation.id)?.stop();
  }

  /** A changed question is asked anew; a changed answer is a version that the model is told it gave. False where
   *  another answer has to end before. */
  edit(turn, text) {
    if (this.busy) notify("The answer to another question is being written: stop it first, or wait.");
    if (this.busy || !this.settings.check()) return false;
    const { conversation } = this;
    const { role, files, model } = turn;
    const made = conversation.add(conversation.before(turn), role, { text: text.trim(), files, model });
    if (role === "user") this.answer(made);
    else this.changed(conversation);
    return true;
  }

  editLast() {
    const last = this.conversation.path().findLast(({ role }) => role === "user");
    if (last && !this.busy) this.view.edit(last);
  }

  draftMessages(draft) {
    const last = this.conversation.path().at(-1);
    const before = this.conversation.messages(last);
    return [...before, { role: "user", content: withFiles(draft) }];
  }

  // ---- conversations

  open(conversation) {
    this.conversation = conversation;
    const isNew = !conversation.turns.size;
    history.replaceState(null, "", isNew ? location.pathname : `#${conversation.id}`);
    this.settings.system = isNew ? (recall("system") ?? "") : conversation.system;
    if (isNew) conversation.system = this.settings.system;
    this.pickModel();
    this.draw();
    this.view.toEnd();
    this.composer.changed();
    this.composer.focus();
  }

  newChat() {
    this.open(new Conversation());
    this.sidebar.leave();
  }

  showBranch(turn) {
    this.conversation.show(turn);
    this.changed(this.conversation, false);
  }

  setSystem(text) {
    this.conversation.system = text;
    if (this.conversation.turns.size) this.store.save(this.conversation);
  }

  rename(conversation, title) {
    const latest = this.store.get(conversation.id) ?? conversation; // another tab may have changed it meanwhile
    latest.title = title;
    this.changed(latest, false);
  }

  remove(conversation) {
    this.answers.get(conversation.id)?.stop();
    this.store.remove(conversation.id);
    if (conversation === this.conversation) this.newChat();
    this.draw();
    const undo = () => {
      this.changed(conversation, false);
      this.open(conversation);
    };
    notify(`Deleted “${conversation.name}”.`, { label: "Undo", run: undo, fades: true });
  }

  /** Keep a conversation and show what became of it. */
  changed(conversation, isNews = true) {
    if (isNews) conversation.updated = Date.now();
    if (this.store.get(conversation.id) || this.answers.has(conversation.id) || !isNews) this.store.save(conversation);
    if (conversation === this.conversation) history.replaceState(null, "", `#${conversation.id}`);
    this.draw();
  }

  draw() {
    this.view.show(this.conversation);
    this.view.setBusy(this.busy);
    this.composer.setBusy(this.busy);
    this.sidebar.draw(this.store.list(), this.conversation, this.answers);
    const { turns, name } = this.conversation;
    document.title = turns.size ? `${name} · octavo` : "octavo";
    for (const id of ["export-json", "export-markdown"]) byId(id).disabled = !turns.size;
  }

  // ---- files

  async importFile(file) {
    try {
      const conversations = fromJson(await file.text());
      for (const each of conversations) this.store.save(each);
      if (conversations.length) this.open(conversations[0]);
      this.draw();
    } catch (error) {
      notify(`${file.name} could not be imported: ${error.message}.`);
    }
  }

  exportAs(ending) {
    const { conversation } = this;
    const text = ending === "md" ? toMarkdown(conversation) : toJson(conversation);
    download(fileName(conversation.name, ending), ending === "md" ? "text/markdown" : "application/json", text);
  }

  // ---- listening

  listen() {
    const click = (id, action) => byId(id).addEventListener("click", action);
    click("new-chat", () => this.newChat());
    click("export-json", () => this.exportAs("json"));
    click("export-markdown", () => this.exportAs("md"));
    click("export-all", () => download("chats.json", "application/json", toJson(this.store.list())));
    click("import", () => byId("import-file").click());
    click("suggestions", ({ target }) => {
      if (target.matches("button")) this.send({ text: target.textContent, files: [] });
    });
    byId("import-file").addEventListener("change", async ({ target }) => {
      if (target.files[0]) await this.importFile(target.files[0]);
      target.value = "";
    });
    document.addEventListener("keydown", (event) => this.key(event));
    addEventListener("storage", ({ key }) => this.changedElsewhere(key));
    for (const leaving of ["beforeunload", "pagehide"]) addEventListener(leaving, () => this.keepUnfinished());
  }

  // a browser that fills in a field sends a key event without a key
  key(event) {
    if (event.key === "Escape" && !isComposing(event)) {
      if (this.busy) this.stop();
      else if (this.sidebar.isDrawer) this.sidebar.toggle(false);
      else this.settings.toggle(false);
    } else if (event.key?.toLowerCase() === "o" && event.shiftKey && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      this.newChat();
    }
  }

  /** Another tab has changed something. */
  changedElsewhere(key) {
    this.store.changedElsewhere(key, this.answers);
    const { id } = this.conversation;
    if (!this.busy) this.conversation = this.store.get(id) ?? this.conversation;
    this.draw();
  }

  /** The page is about to go. The browser cuts its connections first, and that is no fault of the server's. */
  keepUnfinished() {
    for (const [id, answer] of this.answers) {
      answer.left = true;
      this.store.save(this.store.get(id));
    }
  }
}

new Chat();

// The chat page: one conversation, kept in memory, over POST /v1/chat/completions of the server it came from.
// Text from the model or the user enters the page through textContent only, so it can never become markup.

const $ = (id) => document.getElementById(id);
const question = $("question"), conversation = $("conversation"), scroller = $("scroller");

let model = "";
let history = []; // turns that the model has seen: {role, content}
let running = null; // AbortController of the answer under way

// ---- the server

async function askModelName() {
  try {
    const response = await fetch("/v1/models");
    if (!response.ok) throw new Error(await errorText(response));
    model = (await response.json()).data[0].id;
    $("model").textContent = model;
    document.title = `${model} · octavo`;
  } catch (error) {
    $("model").textContent = "no answer from the server";
    console.warn(error);
  }
}

async function errorText(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `The server answered with status ${response.status}.`;
  }
}

// The browser's own words for a server that is gone are "Failed to fetch" and "network error".
function reached(promise) {
  return promise.catch((error) => {
    throw error instanceof TypeError ? new Error("The server cannot be reached. Is it still running?") : error;
  });
}

// The data of each server-sent event, as text; comments (lines that begin with a colon) are skipped.
async function* eventData(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let pending = "";
  for (;;) {
    const { value, done } = await reached(reader.read());
    if (done) return;
    const events = (pending + value).split("\n\n");
    pending = events.pop();
    for (const event of events) {
      if (event.startsWith("data: ")) yield event.slice(6);
    }
  }
}

// Calls onText with each piece. Returns {reason, tokens}; throws what the server says went wrong.
async function streamAnswer(messages, signal, onText) {
  const body = JSON.stringify({
    model,
    messages,
    temperature: $("temperature").valueAsNumber,
    max_tokens: $("max-tokens").valueAsNumber,
    stream: true,
    stream_options: { include_usage: true },
  });
  const headers = { "Content-Type": "application/json" };
  const response = await reached(fetch("/v1/chat/completions", { method: "POST", headers, body, signal }));
  if (!response.ok) throw new Error(await errorText(response));
  const end = { reason: null, tokens: 0 };
  for await (const data of eventData(response)) {
    if (data === "[DONE]") return end;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Error(chunk.error.message);
    if (chunk.usage) end.tokens = chunk.usage.completion_tokens;
    const choice = chunk.choices[0];
    if (choice?.delta.content) onText(choice.delta.content);
    if (choice?.finish_reason) end.reason = choice.finish_reason;
  }
  throw new Error("The connection was lost before the answer was complete.");
}

// ---- the page

function addTurn(role, text) {
  const turn = $("turn").content.firstElementChild.cloneNode(true);
  turn.classList.add(role);
  turn.querySelector("h2").textContent = role === "user" ? "You" : "Answer";
  turn.querySelector(".text").textContent = text;
  conversation.append(turn);
  return turn;
}

function setState(turn, state, note) {
  turn.classList.remove("streaming");
  turn.classList.add(state);
  turn.dataset.state = state;
  turn.querySelector(".note").textContent = note;
}

// Keeps the end in view, unless the reader has scrolled up.
function following(change) {
  const atEnd = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 60;
  change();
  if (atEnd) scroller.scrollTop = scroller.scrollHeight;
}

// Runs `draw` at most once a frame, however often it is asked to: laying out a long text at every token is slow.
function oncePerFrame(draw) {
  let asked = false;
  return () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      draw();
    });
  };
}

function fitQuestion() {
  question.style.height = "auto";
  question.style.height = `${question.scrollHeight}px`;
  $("send").disabled = question.value.trim() === "";
}

function setRunning(controller) {
  running = controller;
  $("send").hidden = Boolean(running);
  $("stop").hidden = !running;
  // a screen reader should hear the answer once, not at every token
  conversation.setAttribute("aria-busy", String(Boolean(running)));
}

function settingsAreValid() {
  const wrong = [$("temperature"), $("max-tokens")].find((field) => !field.checkValidity());
  if (wrong) {
    showSettings(true);
    wrong.reportValidity();
  }
  return !wrong;
}

function showSettings(shown) {
  $("settings").hidden = !shown;
  $("settings-button").setAttribute("aria-expanded", String(shown));
}

// Tokens a second, counted from the first one: the time before it went into reading the prompt.
function speed(tokens, began) {
  const seconds = (performance.now() - began) / 1000;
  return tokens > 1 && seconds > 0 ? `${((tokens - 1) / seconds).toFixed(1)} tokens/s` : "";
}

function joined(...parts) {
  return parts.filter(Boolean).join(" · ");
}

// ---- one turn

async function send(text) {
  if (running || !text.trim() || !settingsAreValid()) return;
  if (!model) await askModelName();
  const controller = new AbortController();
  setRunning(controller);
  $("welcome").hidden = true;
  question.value = "";
  fitQuestion();

  addTurn("user", text);
  const answered = addTurn("assistant", "");
  setState(answered, "streaming", "");
  scroller.scrollTop = scroller.scrollHeight;
  const turns = history;
  turns.push({ role: "user", content: text });
  const system = $("system").value.trim();
  const messages = [...(system ? [{ role: "system", content: system }] : []), ...turns];

  const shown = answered.querySelector(".text"), note = answered.querySelector(".note");
  let answer = "", pieces = 0, began = 0, ended = false, kept = true;
  const draw = oncePerFrame(() => ended || following(() => {
    shown.textContent = answer;
    note.textContent = speed(pieces, began);
  }));
  const onText = (piece) => {
    began ||= performance.now();
    answer += piece;
    pieces += 1;
    draw();
  };
  const finish = (state, remark) => following(() => {
    ended = true;
    shown.textContent = answer;
    setState(answered, state, remark);
  });
  try {
    const end = await streamAnswer(messages, controller.signal, onText);
    const cut = end.reason === "length" ? "cut off at the longest answer set" : "";
    finish("done", joined(`${end.tokens} tokens`, speed(end.tokens, began), cut));
  } catch (error) {
    const stopped = controller.signal.aborted;
    kept = stopped && answer !== "";
    finish(stopped ? "stopped" : "error", stopped ? joined("Stopped", speed(pieces, began)) : error.message);
    if (!stopped) giveBack(text);
  }
  if (kept) turns.push({ role: "assistant", content: answer });
  else turns.pop();
  setRunning(null);
  if (matchMedia("(hover: hover)").matches) question.focus(); // on a phone this would bring up the keyboard
}

// After a failure the question returns to its box, to be sent again; the model never hears of the failed turn.
function giveBack(text) {
  if (question.value === "") question.value = text;
  fitQuestion();
}

function newChat() {
  running?.abort();
  history = [];
  conversation.replaceChildren();
  $("welcome").hidden = false;
  question.focus();
}

// ---- wiring

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send(question.value);
});
question.addEventListener("input", fitQuestion);
question.addEventListener("keydown", (event) => {
  // an input method takes Enter for itself while it composes
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    send(question.value);
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") running?.abort();
});
$("stop").addEventListener("click", () => running?.abort());
$("new-chat").addEventListener("click", newChat);
$("settings-button").addEventListener("click", () => showSettings($("settings").hidden));
$("suggestions").addEventListener("click", (event) => {
  if (event.target.matches("button")) send(event.target.textContent);
});

fitQuestion();
askModelName();

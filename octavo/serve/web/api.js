// The server: models, token counts, streamed answers. Every failure is an ApiError with words for the reader.

const KEY = "octavo.key";
const LONGEST_WAIT = 120; // seconds of a Retry-After that the page believes
const LONGEST_MESSAGE = 2000;

/** What went wrong. status: of HTTP, 0 where there was none. retryAfter: seconds the server asks to wait, or 0. */
export class ApiError extends Error {
  constructor(message, { status = 0, retryAfter = 0 } = {}) {
    super(message.slice(0, LONGEST_MESSAGE));
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

let key = ""; // where the browser lets the page store nothing

/** Keep the API key for as long as this tab is open. */
export function setKey(given) {
  key = given;
  try {
    sessionStorage.setItem(KEY, given);
  } catch (error) {
    console.debug("the key cannot be stored", error);
  }
}

/** The API key, "" if there is none. */
export function getKey() {
  try {
    return sessionStorage.getItem(KEY) ?? key;
  } catch {
    return key;
  }
}

/** The models of this server: [{id, max_model_len}]. */
export async function listModels() {
  const response = await call("/v1/models");
  return (await readJson(response)).data;
}

/** How long a text ({model, prompt}) or a conversation ({model, messages}) is: {count, max_model_len}. */
export async function countTokens(request, signal) {
  return readJson(await call("/tokenize", request, signal));
}

/**
 * One answer, streamed. Calls onText with each piece; returns {reason, usage}.
 * Throws ApiError, or AbortError when `signal` says stop: closing the connection is what frees the server.
 */
export async function streamChat(request, signal, onText) {
  const body = { ...request, stream: true, stream_options: { include_usage: true } };
  const response = await call("/v1/chat/completions", body, signal);
  const end = { reason: null, usage: null };
  for await (const data of eventData(response)) {
    if (data === "[DONE]") return end;
    const chunk = parseJson(data);
    if (chunk.error) throw new ApiError(chunk.error.message ?? "The server failed without saying why.");
    if (chunk.usage) end.usage = chunk.usage;
    const choice = chunk.choices?.[0];
    if (choice?.delta?.content) onText(choice.delta.content);
    if (choice?.finish_reason) end.reason = choice.finish_reason;
  }
  throw new ApiError("The connection was lost before the answer was complete.");
}

async function call(path, body, signal) {
  const headers = {};
  if (getKey()) headers.Authorization = `Bearer ${getKey()}`;
  const options = { headers, signal };
  if (body) {
    headers["Content-Type"] = "application/json";
    Object.assign(options, { method: "POST", body: JSON.stringify(body) });
  }
  const response = await reached(fetch(path, options));
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  const { status } = response;
  const retryAfter = Math.min(Number(response.headers.get("Retry-After")) || 0, LONGEST_WAIT);
  const said = await response.json().catch(() => null);
  const message = said?.error?.message ?? `The server answered with status ${status}.`;
  return new ApiError(String(message), { status, retryAfter });
}

async function readJson(response) {
  return parseJson(await reached(response.text()));
}

function parseJson(data) {
  try {
    return JSON.parse(data);
  } catch {
    throw new ApiError("The server's answer could not be read: it is not JSON.");
  }
}

// The browser's own words for a server that is gone are "Failed to fetch" and "network error".
function reached(promise) {
  return promise.catch((error) => {
    throw error instanceof TypeError ? new ApiError("The server cannot be reached. Is it still running?") : error;
  });
}

/** The data of each server-sent event, as text; comments, which only keep the connection alive, are skipped. */
async function* eventData(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let pending = "";
  try {
    for (;;) {
      const { value, done } = await reached(reader.read());
      if (done) return;
      const events = (pending + value).split(/\r?\n\r?\n/);
      pending = events.pop();
      for (const event of events) {
        const lines = event.split(/\r?\n/).filter((line) => line.startsWith("data:"));
        if (lines.length) yield lines.map((line) => line.slice(5).trimStart()).join("\n");
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // who stops reading for an event that is broken frees the server, too
  }
}

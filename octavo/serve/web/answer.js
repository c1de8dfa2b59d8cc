// One answer on its way into its turn, and what it took.

import { streamChat } from "./api.js";

/** Fills a turn. `stop()` ends it early, which frees the server. */
export class Answer {
  constructor(turn) {
    this.turn = turn;
    this.controller = new AbortController();
    this.asked = performance.now();
    this.first = 0; // when the first piece came
    this.last = 0;
    this.pieces = 0;
    this.left = false; // the reader leaves the page
  }

  stop() {
    this.controller.abort();
  }

  /** Ask; calls onChange whenever the turn has more. In the end the turn's state says how it went; never throws. */
  async run(request, onChange) {
    const { turn } = this;
    const onText = (piece) => {
      this.last = performance.now();
      this.first ||= this.last;
      this.pieces += 1;
      turn.text += piece;
      turn.stats = this.stats();
      onChange();
    };
    try {
      const { reason, usage } = await streamChat(request, this.controller.signal, onText);
      Object.assign(turn, { state: "done", stats: this.stats(usage, reason) });
    } catch (error) {
      const stopped = this.controller.signal.aborted || this.left;
      Object.assign(turn, { state: stopped ? "stopped" : "error", error: stopped ? "" : error.message });
      return stopped ? null : error;
    }
    return null;
  }

  /** Tokens a second are counted from the first one: the time before it went into reading the prompt. */
  stats(usage = null, reason = null) {
    const tokens = usage?.completion_tokens ?? this.pieces;
    const seconds = (this.last - this.first) / 1000;
    return {
      tokens,
      speed: tokens > 1 && seconds > 0 ? (tokens - 1) / seconds : 0,
      first: this.first ? (this.first - this.asked) / 1000 : 0,
      prompt: usage?.prompt_tokens ?? 0,
      cached: usage?.prompt_tokens_details?.cached_tokens ?? 0,
      reason,
    };
  }
}

/** "64 tokens, 12 tokens/s, first after 0.3 s, 420 prompt tokens, 400 from cache" */
export function statistics({ tokens, speed, first, prompt, cached, reason }) {
  const parts = [
    tokens && `${count(tokens)} ${tokens === 1 ? "token" : "tokens"}`,
    speed && `${speed < 10 ? speed.toFixed(1) : count(Math.round(speed))} tokens/s`,
    first && `first after ${first.toFixed(first < .1 ? 2 : first < 10 ? 1 : 0)} s`,
    prompt && `${count(prompt)} prompt tokens`,
    cached && `${count(cached)} from cache`,
    reason === "length" && "cut off at the longest answer",
  ];
  return parts.filter(Boolean).join(", ");
}

const count = (number) => number.toLocaleString("en");

/**
 * Runs `draw` once a frame however often it is asked to, and less often where drawing takes long: it may use a fifth
 * of the time, so that a long answer cannot stall the page.
 */
export function throttled(draw) {
  let asked = false, notBefore = 0;
  const frame = (now) => {
    if (now < notBefore) return requestAnimationFrame(frame);
    asked = false;
    const began = performance.now();
    draw();
    notBefore = performance.now() + 4 * (performance.now() - began);
  };
  return () => {
    if (!asked) requestAnimationFrame(frame);
    asked = true;
  };
}

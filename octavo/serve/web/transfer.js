// Conversations as files: JSON, which can be read back with every branch, and Markdown for people.

import { make, randomId } from "./dom.js";
import { Conversation, withFiles } from "./tree.js";

/** Give the reader a file. */
export function download(name, kind, text) {
  const url = URL.createObjectURL(new Blob([text], { type: kind }));
  make("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000); // the download has begun by then
}

/** A file name made of a title. */
export function fileName(title, ending) {
  const plain = title.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 50);
  return `${plain || "chat"}.${ending}`;
}

/** One conversation, or a list of them, as JSON. */
export function toJson(conversations) {
  return `${JSON.stringify(conversations, null, 1)}\n`;
}

/** The branch on view, for people. */
export function toMarkdown(conversation) {
  const parts = [`# ${conversation.name}`];
  if (conversation.system.trim()) parts.push("## System", conversation.system.trim());
  for (const turn of conversation.path()) {
    parts.push(turn.role === "user" ? "## You" : `## ${turn.model || "Answer"}`, withFiles(turn) || `*${turn.error}*`);
  }
  return `${parts.join("\n\n")}\n`;
}

/** The conversations in a file that toJson wrote, under new ids: nothing already here is replaced. Throws Error. */
export function fromJson(text) {
  let data;
  try {
    data = JSON.parse(text);
  } catch {
    throw new Error("it is not JSON");
  }
  return (Array.isArray(data) ? data : [data]).map((each) => {
    const conversation = Conversation.fromJSON(each);
    conversation.id = randomId();
    return conversation;
  });
}

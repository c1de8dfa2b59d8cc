"""Contents of chat messages in the form that a template reads.

A message's content is a string or a list of parts ({"type": "text", "text": ...}), and many templates know one form
only, some another one for system prompts. Some fail on the other; MiniMax-Text-01's silently leaves strings out, and
reads no part but the first. What a template does with a conversation is found by a rehearsal: the same messages with a
word of ours for each text, in one form after another, until every word comes out.
"""

import hashlib
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from octavo.data.chat_template import ChatTemplate
from octavo.errors import UserError

logger = logging.getLogger(__name__)

Form = Literal["as given", "one part", "string"]
# what system prompts and what all other messages become, in the order of trying
_PLANS: tuple[tuple[Form, Form], ...] = (
    ("as given", "as given"),
    ("one part", "one part"),
    ("string", "string"),
    ("string", "one part"),
    ("one part", "string"),
)
_MOST_KEPT = 1000


class ContentForms:
    """What a template reads. A conversation of the same roles and forms is rehearsed once."""

    def __init__(self, template: ChatTemplate) -> None:
        self._template = template
        self._plans: dict[bytes, tuple[Form, Form]] = {}

    def fit(self, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """`messages` with every text where the template reads it. Parts that are joined get a line break between them;
        contents that are not all text stay as they are. Warns of texts that the template leaves out in every form."""
        texts = [text_parts(message.get("content")) for message in messages]
        kind = digest(
            (message.get("role"), type(message.get("content")), len(own), "tool_calls" in message)
            for message, own in zip(messages, texts, strict=True)
        )
        plan = self._plans.get(kind)
        return _dressed(messages, texts, self._rehearse(messages, texts, kind) if plan is None else plan)

    def _rehearse(
        self, messages: Sequence[Mapping[str, Any]], texts: list[list[str]], kind: bytes
    ) -> tuple[Form, Form]:
        words = [[f"octavo{i}probe{j}" if text else "" for j, text in enumerate(own)] for i, own in enumerate(texts)]
        wanted = {word for own in words for word in own if word}
        most, best, refused = -1, _PLANS[0], False
        for plan in _PLANS:
            try:
                shown = wanted & _shown(self._template.render(_dressed(messages, words, plan)))
            except UserError:
                refused = True  # by the template, or because it was late: not to be kept
                continue
            if len(shown) > most:
                most, best = len(shown), plan
            if shown == wanted:
                break
        if 0 <= most < len(wanted):
            logger.warning("the chat template leaves out %d of %d texts of this conversation, as strings and as parts",
                           len(wanted) - most, len(wanted))  # fmt: skip
        if most == len(wanted) or not refused:
            if len(self._plans) >= _MOST_KEPT:
                self._plans.clear()
            self._plans[kind] = best
        return best


def _dressed(
    messages: Sequence[Mapping[str, Any]], texts: list[list[str]], plan: tuple[Form, Form]
) -> list[dict[str, Any]]:
    """The messages with these texts, in the plan's forms; parts with more in them than text stay parts."""
    fitted = []
    for message, own in zip(messages, texts, strict=True):
        form = plan[0] if message.get("role") == "system" else plan[1]
        if _has_more(message.get("content")):
            parts = zip(message["content"], own, strict=True)
            fitted.append({**message, "content": [{**part, "text": text} for part, text in parts]})
            continue
        if form == "as given":
            form = "string" if isinstance(message.get("content"), str) else "as given"
        texts_of = own if form == "as given" else ["\n".join(own)]
        content = texts_of[0] if form == "string" else [{"type": "text", "text": text} for text in texts_of]
        fitted.append({**message, "content": content} if own else dict(message))
    return fitted


def _has_more(content: Any) -> bool:
    """Whether it is a list of text parts that have more in them than text, such as the name of a function."""
    return (
        isinstance(content, list)
        and bool(text_parts(content))
        and any(part.keys() - {"type", "text"} for part in content)
    )


def _shown(written: str) -> set[str]:
    """The words of a rehearsal that were written, but for those in a list that was written out as Python or JSON."""
    read = re.sub(r"""(['"])text\1: (['"]).*?\2""", "", written, flags=re.DOTALL | re.IGNORECASE)
    return {word.lower() for word in re.findall(r"octavo\d+probe\d+", read, re.IGNORECASE)}


def text_parts(content: Any) -> list[str]:
    """The texts of a content that is all text; nothing for any other."""
    if isinstance(content, str):
        return [content]
    parts = content if isinstance(content, list) else []
    texts = [part["text"] for part in parts if isinstance(part, Mapping) and isinstance(part.get("text"), str)]
    return texts if len(texts) == len(parts) else []


def digest(kind: Iterable[Any]) -> bytes:
    """What stands for the shape of a conversation in a table: the shape itself has an entry for each of its messages,
    which are as many as a stranger likes."""
    return hashlib.sha256(repr(tuple(kind)).encode()).digest()

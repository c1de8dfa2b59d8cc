"""Where in a chat's tokens an engine should keep what cannot be rolled back: the states of recurrent layers.

Conversations part after the system prompt and the tools (another user's question), and after each message that the
model answers: a user's, or what a function returned (another answer, or the next turn). Both places are found in the
text that the template has written and carried over to the tokens by their offsets: one rendering, one tokenisation.
They are hints: a place that is not found is left out.
"""

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from octavo.data.chat_content import text_parts

_SYSTEM = ("system", "developer")
_ANSWERED = ("user", "tool", "function")


@dataclass(frozen=True)
class EncodedChat:
    """A chat's token ids, and numbers of leading ids after which to keep states: ascending, 0 < mark < len(ids)."""

    ids: list[int]
    marks: tuple[int, ...]


def mark_places(text: str, messages: Sequence[Mapping[str, Any]]) -> Iterator[int]:
    """Lengths of beginnings of `text`, which a template wrote of `messages`: to the first content that is no system
    prompt, and to the end of each content that the model answers.

    Contents are searched for in their order. A short one may be found in the template's own words before it ("user" in
    ChatML), never behind its place. One that the template has left out or changed, but for white space around it, gives
    no place, or where a later message repeats it, that one's.
    White space before the first content is left out: it may become one token with the content's beginning.
    """
    at, system = 0, True
    for message in messages:
        place = _find(text, text_parts(message.get("content")), at)
        if system and message.get("role") not in _SYSTEM:
            system = False
            if place is not None:
                yield len(text[: place[0]].rstrip())
        if place is not None:
            at = place[1]
            if message.get("role") in _ANSWERED:
                yield at


def _find(text: str, parts: list[str], at: int) -> tuple[int, int] | None:
    """Where the first of the parts begins and the last one ends, from `at` on; None if one is missing or all are
    white space."""
    start = None
    for part in parts:
        # stripped, as the template may have written it: as given, it might be found again further on
        body = part.strip()
        found = text.find(body, at)
        if found < 0:
            return None
        if body:
            start, at = found if start is None else start, found + len(body)
            space = part[len(part.rstrip()) :]
            at += len(space) if text.startswith(space, at) else 0
    return None if start is None else (start, at)


def marks_at(places: Sequence[int], offsets: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    """Numbers of leading tokens that lie wholly before each place, all tokens and none left out; equal ones once.

    offsets: first and last + 1 character of each token. Several tokens of one character (bytes; SentencePiece's space
    before a text) are not parted.
    """
    ends = list(accumulate((end for _, end in offsets), max))
    marks = {_leading(place, offsets, ends) for place in places}
    return tuple(sorted(marks - {0, len(offsets)}))


def _leading(place: int, offsets: Sequence[tuple[int, int]], ends: list[int]) -> int:
    count = bisect_right(ends, place)
    while 0 < count < len(ends) and offsets[count][0] < ends[count - 1]:
        count -= 1
    return count

"""Conversations that a template refuses, told so that it takes them.

Mixtral's and other templates want user and assistant to take turns, the user first, and know no system prompt. Where
one refuses a conversation, the same words are given to it in another order of turns: neighbours of one role become one
turn, with a blank line between; if that is not enough, the system prompt becomes the beginning of the first user's turn
as well, and a conversation that the assistant begins gets an empty turn before it. Templates that accept a conversation
are given what they were given.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from octavo.data.chat_content import digest, text_parts
from octavo.data.chat_template import RefusedError

Messages = Sequence[Mapping[str, Any]]
_SYSTEM = ("system", "developer")
_MOST_KEPT = 1000


class Folding:
    """What had to be done for a template to accept conversations, remembered by their order of roles where it is these
    that the template refuses."""

    def __init__(self) -> None:
        self._plans: dict[bytes, int] = {}

    def write(self, messages: Messages, write: Callable[[Messages], str]) -> str:
        """What `write` makes of the messages, folded as far as needed. Raises its RefusedError, for the messages as
        they were given, where nothing helps."""
        kind = digest((message.get("role"), bool(message.get("tool_calls"))) for message in messages)
        known = self._plans.get(kind)
        if known is not None:
            return write(_PLANS[known](messages))
        try:
            return write(messages)
        except RefusedError as error:
            refusal = error
        for index, plan in enumerate(_PLANS):
            folded = plan(messages)
            try:
                text = write(folded)
            except RefusedError:
                continue
            if _is_refused([{**message, "content": "x"} for message in messages], write):  # not for what it says
                if len(self._plans) >= _MOST_KEPT:
                    self._plans.clear()
                self._plans[kind] = index
            return text
        raise refusal


def merged(messages: Messages) -> list[Mapping[str, Any]]:
    """Neighbours of one role as one turn. A system prompt after the first turns counts as a user's words."""
    turns: list[Mapping[str, Any]] = []
    for message in messages:
        if message.get("role") in _SYSTEM and any(turn.get("role") not in _SYSTEM for turn in turns):
            message = {**message, "role": "user"}
        if turns and _joins(turns[-1], message):
            texts = [text for turn in (turns[-1], message) if (text := "\n".join(text_parts(turn.get("content"))))]
            turns[-1] = {**turns[-1], "content": "\n\n".join(texts)}
        else:
            turns.append(message)
    return turns


def without_system(messages: Messages) -> list[Mapping[str, Any]]:
    """As `merged`, with the system prompt in the user's first turn, which is made if the assistant begins."""
    users = [{**message, "role": "user"} if message.get("role") in _SYSTEM else message for message in messages]
    first = [] if users and users[0].get("role") == "user" else [{"role": "user", "content": ""}]
    return merged([*first, *users])


_PLANS: tuple[Callable[[Messages], list[Mapping[str, Any]]], ...] = (merged, without_system)


def _is_refused(messages: Messages, write: Callable[[Messages], str]) -> bool:
    try:
        write(messages)
    except RefusedError:
        return True
    return False


def _joins(turn: Mapping[str, Any], following: Mapping[str, Any]) -> bool:
    """Whether two turns can become one: of one who speaks, in text, with no calls."""
    speaks = turn.get("role") == following.get("role") and turn.get("role") in (*_SYSTEM, "user", "assistant")
    plain = not any(each.get("tool_calls") for each in (turn, following))
    return speaks and plain and all(_is_text(each.get("content")) for each in (turn, following))


def _is_text(content: Any) -> bool:
    return content in ("", []) or bool(text_parts(content))

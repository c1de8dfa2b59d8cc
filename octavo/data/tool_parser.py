"""Calls of functions in a model's answer, found while it is being written.

    parser = ToolParser(tokenizer.tool_style.format)
    for piece in pieces:
        events = parser.put(piece)  # Content("..."), CallBegins(0, id, name), CallArguments(0, "{\\"x\\"")
    events = parser.flush()

A call begins once its name and the first character of its arguments are there; until then its text may still turn out
to be no call, and becomes content. Nothing is lost but the white space around calls. Arguments are passed on as they
come, up to the brace that closes them: whether they are good JSON is for the reader to see, as with OpenAI's models.
How the answer was cut into pieces makes no difference to the events joined.
"""

import json
from collections.abc import Callable, Collection, Generator, Iterable
from dataclasses import dataclass
from typing import Any

from octavo.data.tool_formats import ToolFormat

MAX_HELD = 4096  # characters that are held back at most, to see whether they become a call
_SPACE = frozenset(" \t\r\n")
_NAME_CHARS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")


@dataclass(frozen=True)
class Content:
    """Text for the reader."""

    text: str


@dataclass(frozen=True)
class CallBegins:
    """Call `index` (0, 1, ...) of the answer, of the function `name`."""

    index: int
    id: str
    name: str


@dataclass(frozen=True)
class CallArguments:
    """More of the JSON text of a call's arguments."""

    index: int
    text: str


Event = Content | CallBegins | CallArguments
_Steps = Generator[None, None, Any]  # yields where it needs more text


def as_delta(event: Event) -> dict[str, Any]:
    """An event as the `delta` of a chunk of OpenAI's stream. A call's id and name come once: clients join them."""
    if isinstance(event, Content):
        return {"content": event.text}
    if isinstance(event, CallArguments):
        return {"tool_calls": [{"index": event.index, "function": {"arguments": event.text}}]}
    function = {"name": event.name, "arguments": ""}
    return {"tool_calls": [{"index": event.index, "id": event.id, "type": "function", "function": function}]}


def as_message(events: Iterable[Event]) -> dict[str, Any]:
    """All events of an answer as the message of OpenAI's that they make: content is null beside calls without text."""
    texts, calls = list[str](), list[dict[str, Any]]()
    for event in events:
        if isinstance(event, Content):
            texts.append(event.text)
        elif isinstance(event, CallBegins):
            function = {"name": event.name, "arguments": ""}
            calls.append({"id": event.id, "type": "function", "function": function})
        else:
            calls[event.index]["function"]["arguments"] += event.text
    text = "".join(texts)
    message = {"role": "assistant", "content": text or None if calls else text}
    return {**message, "tool_calls": calls} if calls else message


class _MalformedError(Exception):
    """What looked like the beginning of a call is none."""


class ToolParser:
    """Reads one answer. Its text must come with special tokens in it, where the format's marker is one."""

    def __init__(
        self, format: ToolFormat, names: Collection[str] | None = None, make_id: Callable[[], str] | None = None
    ) -> None:
        """names: of the functions there are; what calls another is content. make_id: instead of the format's own."""
        self._format, self._names, self._make_id = format, names, make_id or format.make_id
        self._markers = [marker for marker in (format.marker, format.bare) if marker]
        self._text = ""  # not given out yet
        self._at = 0  # how much of it was read
        self._limit = MAX_HELD  # of what may be read
        self._ended = False
        self._calls = 0
        self._after_call = False
        self._events: list[Event] = []
        self._machine = self._run()

    @property
    def calls(self) -> int:
        """Calls that have begun."""
        return self._calls

    def put(self, text: str) -> list[Event]:
        """What is certain now that `text` has come."""
        self._text += text
        self._events = []
        next(self._machine, None)
        return self._events

    def flush(self) -> list[Event]:
        """The rest, once no more text will come."""
        self._ended = True
        return self.put("")

    # ---- what is given out

    def _say(self, count: int) -> None:
        """The first `count` characters are content."""
        text, self._text = self._text[:count], self._text[count:]
        if not text:
            return
        self._after_call = False
        if self._events and isinstance(self._events[-1], Content):
            text = self._events.pop().text + text  # type: ignore[union-attr]
        self._events.append(Content(text))

    def _begin(self, name: str) -> None:
        self._events.append(CallBegins(self._calls, self._make_id(), name))
        self._calls += 1

    def _argue(self, text: str) -> None:
        if text:
            self._events.append(CallArguments(self._calls - 1, text))

    def _drop(self) -> None:
        """What was read is done with: where calls turn out malformed, the text after it becomes content."""
        self._text, self._at, self._limit = self._text[self._at :], 0, MAX_HELD

    # ---- the answer

    def _run(self) -> _Steps:
        while (yield from self._find_marker()):
            space, before = self._at, self._calls
            try:
                yield from self._section()
                self._drop()
            except _MalformedError:
                self._at = 0
                if self._calls == before:  # past the marker's first character, not to find it again
                    self._say(space + 1)
            self._after_call = self._after_call or self._calls > before

    def _find_marker(self) -> _Steps:
        """Whether there is another marker; content before it is given out, but for the white space between."""
        while True:
            found = [place for place in map(self._text.find, self._markers) if place >= 0]
            end = min(found) if found else len(self._text) - self._partial()
            said = max(len(self._text[:end].rstrip()), end - MAX_HELD)
            if self._ended and not found:
                said = 0 if self._after_call and self._text.isspace() else len(self._text)
            self._say(said)
            if found:
                self._at = end - said
                self._limit = self._at + MAX_HELD
                return True
            if self._ended:
                return False
            yield

    def _partial(self) -> int:
        """How many characters at the end may be the beginning of a marker."""
        most = max(map(len, self._markers)) - 1
        for count in range(min(most, len(self._text)), 0, -1):
            if any(marker.startswith(self._text[-count:]) for marker in self._markers):
                return count
        return 0

    def _section(self) -> _Steps:
        """The calls from a marker on, to their closing."""
        yield from self._word(self._format.marker)
        for word in self._format.opening.strip().removeprefix(self._format.marker).split():
            yield from self._space()
            if not (yield from self._word(word)):
                raise _MalformedError
        yield from self._space()
        yield from self._call()
        separator = "" if self._format.reopens else self._format.separator.strip()
        while True:
            self._drop()
            yield from self._space()
            if separator and not (yield from self._word(separator)):
                break
            yield from self._space()
            if not separator and (yield from self._peek()) != self._format.call[0][0]:
                break
            yield from self._call()
        yield from self._word(self._format.closing.strip())

    def _call(self) -> _Steps:
        yield from self._call_in_json() if self._format.call[0].startswith("{") else self._call_in_code()

    def _call_in_json(self) -> _Steps:
        """{"name": "f", "arguments": {...}}, in any order and maybe with more in it."""
        yield from self._expect("{")
        name, early, begun = None, "{}", False
        while True:
            yield from self._space()
            key = yield from self._string()
            yield from self._space()
            yield from self._expect(":")
            yield from self._space()
            if key == "arguments" and name is not None and not begun:
                yield from self._arguments(name)
                begun = True
            elif key == "name" and not begun:
                name = yield from self._string()
            else:
                start = self._at
                if key == "arguments" and (yield from self._peek()) != "{":
                    raise _MalformedError
                yield from self._value()
                early = self._text[start : self._at] if key == "arguments" else early
            yield from self._space()
            if (yield from self._peek()) == "}":
                self._at += 1
                break
            yield from self._expect(",")
        if not begun:
            self._check(name)
            self._begin(name or "")
            self._argue(early)

    def _call_in_code(self) -> _Steps:
        """functions.f({...}), with or without a semicolon."""
        if not (yield from self._word("functions.")):
            raise _MalformedError
        start = self._at
        while (yield from self._peek()) in _NAME_CHARS:
            self._at += 1
        name = self._text[start : self._at]
        yield from self._expect("(")
        yield from self._space()
        if (yield from self._peek()) == "{":
            yield from self._arguments(name)
            yield from self._space()
            yield from self._expect(")")
        else:
            yield from self._expect(")")
            self._check(name)
            self._begin(name)
            self._argue("{}")
        yield from self._word(";")

    def _arguments(self, name: str) -> _Steps:
        """A call begins here, with the brace of its arguments."""
        if (yield from self._peek()) != "{":
            raise _MalformedError
        self._check(name)
        self._begin(name)
        self._drop()
        yield from self._nested(streams=True)

    def _check(self, name: str | None) -> None:
        if not name or (self._names is not None and name not in self._names):
            raise _MalformedError

    # ---- pieces of text; each leaves `_at` behind what it has read

    def _peek(self) -> _Steps:
        """The next character; "" at the end of the answer."""
        if self._at > self._limit:
            raise _MalformedError
        while self._at >= len(self._text) and not self._ended:
            yield
        return self._text[self._at : self._at + 1]

    def _expect(self, char: str) -> _Steps:
        if (yield from self._peek()) != char:
            raise _MalformedError
        self._at += 1

    def _word(self, word: str) -> _Steps:
        """Whether `word` comes next; if not, nothing is read."""
        while True:
            here = self._text[self._at : self._at + len(word)]
            if here == word:
                self._at += len(word)
                return True
            if self._ended or not word.startswith(here):
                return False
            yield

    def _space(self) -> _Steps:
        while (yield from self._peek()) in _SPACE:
            self._at += 1

    def _string(self) -> _Steps:
        """A string of JSON, as what it means."""
        start = self._at
        yield from self._expect('"')
        while (char := (yield from self._peek())) != '"':
            self._at += 2 if char == "\\" else 1
            if not char:
                raise _MalformedError
        self._at += 1
        try:
            return json.loads(self._text[start : self._at])
        except ValueError:
            raise _MalformedError from None

    def _value(self) -> _Steps:
        """Any value of JSON, not looked into."""
        char = yield from self._peek()
        if char == '"':
            yield from self._string()
        elif char in ("{", "["):
            yield from self._nested(streams=False)
        else:
            while (yield from self._peek()) not in (",", "}", "]", ""):
                self._at += 1

    def _nested(self, streams: bool) -> _Steps:
        """From a bracket to its partner. streams: as arguments, which are given out on the way and may end early."""
        depth, quoted, escaped = 0, False, False
        while True:
            while self._at < len(self._text):
                char = self._text[self._at]
                self._at += 1
                if quoted:
                    quoted = escaped or char != '"'
                    escaped = char == "\\" and not escaped
                elif char == '"':
                    quoted = True
                elif char in "{[":
                    depth += 1
                elif char in "}]":
                    depth -= 1
                if depth == 0:
                    break
            if streams:
                self._argue(self._text[: self._at])
                self._drop()
            if depth == 0 or self._ended:
                return
            if self._at > self._limit:
                raise _MalformedError
            yield

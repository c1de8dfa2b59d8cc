"""Answers in the shapes that clients know: a chat's and a plain completion's, whole or in steps."""

import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from json.encoder import encode_basestring_ascii
from typing import Protocol

from octavo import __version__
from octavo.data.tool_parser import Content, Event, ToolParser, as_delta, as_message
from octavo.engine.answer import Piece
from octavo.engine.logprobs import TokenLogprob
from octavo.serve.errors import Json
from octavo.serve.protocol.logprobs import TokenTexts, chat_logprob, completion_logprobs


class Reply(Protocol):
    """Makes the choices of an answer out of an engine's pieces."""

    frame: "Frame"

    def opening(self) -> str:
        """The events that a stream begins with."""
        ...

    def put(self, prompt: int, piece: Piece) -> str:
        """The events of a stream for a piece of one of prompt number `prompt`'s answers; "" if it shows nothing."""
        ...

    def whole(self) -> list[Json]:
        """All choices, when every piece was put."""
        ...


class Frame:
    """What all parts of one answer have in common: one id, one time, one model."""

    def __init__(self, model: str, kind: str, chunk_kind: str, prefix: str) -> None:
        self._shared = {
            "id": f"{prefix}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": f"octavo-{__version__}",
        }
        self._kind = kind
        # written once: a stream has hundreds of chunks. ASCII only: clients that cut lines with Python's splitlines
        # would break an answer at U+2028
        self._head = "data: " + json.dumps({"object": chunk_kind} | self._shared)[:-1] + ', "choices": ['

    def whole(self, choices: list[Json], usage: Json) -> Json:
        """The answer in one piece."""
        return {"object": self._kind, **self._shared, "choices": choices, "usage": usage}

    def chunk(self, choice: Json) -> str:
        """One step of a stream, as a server-sent event."""
        return f'{self._head}{json.dumps(choice)}], "usage": null}}\n\n'

    def text_chunk(self, index: int, text: str) -> str:
        """`chunk` of a chat's text and nothing else: most of what a server sends, in a tenth of the time."""
        content = encode_basestring_ascii(text)
        return (
            f'{self._head}{{"index": {index}, "delta": {{"content": {content}}}, '
            '"logprobs": null, "finish_reason": null}], "usage": null}\n\n'
        )

    def usage_chunk(self, usage: Json) -> str:
        """The last step of a stream that was asked for token counts."""
        return f'{self._head}], "usage": {json.dumps(usage)}}}\n\n'


class ChatReply:
    """The answers to one chat."""

    def __init__(self, model: str, choices: int, texts: TokenTexts | None, parsers: Sequence[ToolParser] = ()) -> None:
        """texts: for log probabilities, if they were asked for; parsers: of each choice, if it may call functions."""
        self.frame = Frame(model, "chat.completion", "chat.completion.chunk", "chatcmpl")
        self._texts = texts
        self._choices = [_ChatChoice(parsers[index] if parsers else None) for index in range(choices)]

    def opening(self) -> str:
        """A chunk of each choice's role, in their order: clients take the first for choice 0."""
        roles = (_step(index, {"role": "assistant", "content": ""}) for index in range(len(self._choices)))
        return "".join(map(self.frame.chunk, roles))

    def put(self, prompt: int, piece: Piece) -> str:
        """The text of a piece, and a chunk of its own for the end: no client looks for both in one."""
        choice, shown = self._choices[piece.index], ""
        events = choice.events_of(piece)
        if self._texts and piece.logprob:
            shown = self._with_logprob(choice, piece.index, events, chat_logprob(self._texts, piece.logprob))
        else:
            for event in events:
                if isinstance(event, Content):
                    shown += self.frame.text_chunk(piece.index, event.text)
                else:
                    shown += self.frame.chunk(_step(piece.index, as_delta(event)))
        if piece.finish_reason:
            choice.finish_reason = choice.reason(piece.finish_reason)
            shown += self.frame.chunk(_step(piece.index, {}, finish_reason=choice.finish_reason))
        return shown

    def _with_logprob(self, choice: "_ChatChoice", index: int, events: Sequence[Event], logprob: Json) -> str:
        """The chunks of events, the first one with a token's log probability; one of its own, if it has shown none."""
        choice.logprobs.append(logprob)
        first, *more = [as_delta(event) for event in events] or [{}]
        return "".join(map(self.frame.chunk, [_step(index, first, logprob), *(_step(index, delta) for delta in more)]))

    def whole(self) -> list[Json]:
        """The messages."""
        return [
            {
                "index": index,
                "message": as_message(choice.events) | {"refusal": None},
                "logprobs": {"content": choice.logprobs, "refusal": None} if self._texts else None,
                "finish_reason": choice.finish_reason,
            }
            for index, choice in enumerate(self._choices)
        ]


@dataclass
class _ChatChoice:
    parser: ToolParser | None
    events: list[Event] = field(default_factory=list)
    logprobs: list[Json] = field(default_factory=list)
    finish_reason: str | None = None

    def events_of(self, piece: Piece) -> Sequence[Event]:
        """The text and the calls that a piece gives."""
        found: list[Event] = []
        if self.parser:
            found += self.parser.put(piece.text)
            found += self.parser.flush() if piece.finish_reason else ()
        elif piece.text:
            found = [Content(piece.text)]
        self.events += found
        return found

    def reason(self, given: str) -> str:
        """Why the answer ended, as clients are told."""
        return "tool_calls" if given == "stop" and self.parser and self.parser.calls else given


def _step(index: int, delta: Json, logprob: Json | None = None, finish_reason: str | None = None) -> Json:
    logprobs = {"content": [logprob], "refusal": None} if logprob else None
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}


@dataclass(frozen=True)
class Echo:
    """A prompt that is to be repeated before its answers."""

    text: str
    ids: Sequence[int]


class CompletionReply:
    """The answers to one or several prompts: prompt i has choices i * n and on."""

    def __init__(
        self,
        model: str,
        n: int,
        prompts: int,
        texts: TokenTexts | None,
        echoes: Sequence[Echo] = (),
        silent: bool = False,
    ) -> None:
        """texts: for log probabilities, if they were asked for; echoes: of each prompt, if they were; silent: nothing
        but those is shown."""
        self.frame = Frame(model, "text_completion", "text_completion", "cmpl")
        self._n, self._texts, self._echoes, self._silent = n, texts, echoes, silent
        self._choices = [_CompletionChoice() for _ in range(n * prompts)]
        self._held: list[list[Piece]] = [[] for _ in range(prompts)]
        self._of_prompts: list[Json | None] = [None] * prompts  # log probabilities

    def opening(self) -> str:
        """Nothing: an echo comes with its log probabilities, and those with the first piece."""
        return ""

    def put(self, prompt: int, piece: Piece) -> str:
        """The text of a piece, its end with it. What a prompt's other answers have said before its own log
        probabilities came is held back until then."""
        if self._texts and self._echoes and self._of_prompts[prompt] is None:
            if piece.prompt_logprobs is None:
                self._held[prompt].append(piece)
                return ""
            self._of_prompts[prompt] = self._prompt_logprobs(prompt, piece.prompt_logprobs)
            return "".join(self._shown(prompt, each) for each in (piece, *self._held[prompt]))
        return self._shown(prompt, piece)

    def whole(self) -> list[Json]:
        """The texts."""
        return [
            {
                "index": index,
                "text": "".join(choice.text),
                "logprobs": _joined(choice.logprobs),
                "finish_reason": choice.finish_reason,
            }
            for index, choice in enumerate(self._choices)
        ]

    def _shown(self, prompt: int, piece: Piece) -> str:
        index = prompt * self._n + piece.index
        choice = self._choices[index]
        parts: list[Json] = []
        text = ""
        if self._echoes and not choice.text:
            text = self._echoes[prompt].text
            parts += [known] if (known := self._of_prompts[prompt]) else []
        if not self._silent:
            if self._texts and piece.logprob:
                offset = choice.length + len(text)
                parts.append(completion_logprobs(self._texts, [piece.token_id], [piece.logprob], offset))
            text += piece.text
        choice.text.append(text)
        choice.length += len(text)
        choice.logprobs += parts
        choice.finish_reason = piece.finish_reason
        if not (text or parts or piece.finish_reason):
            return ""
        shown = {"index": index, "text": text, "logprobs": _joined(parts), "finish_reason": piece.finish_reason}
        return self.frame.chunk(shown)

    def _prompt_logprobs(self, prompt: int, given: Sequence[TokenLogprob]) -> Json:
        assert self._texts
        echo = self._echoes[prompt]
        return completion_logprobs(self._texts, echo.ids, [None, *given], 0, len(echo.text))


@dataclass
class _CompletionChoice:
    text: list[str] = field(default_factory=list)
    length: int = 0  # characters
    logprobs: list[Json] = field(default_factory=list)
    finish_reason: str | None = None


def _joined(parts: Sequence[Json]) -> Json | None:
    """Log probabilities of one stretch of text after another."""
    return {name: [item for part in parts for item in part[name]] for name in parts[0]} if parts else None


def usage(prompt_tokens: int, cached_tokens: int, completion_tokens: int) -> Json:
    """Token counts; an end token that the model chose counts as one. cached_tokens: what the prefix cache knew."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
    }

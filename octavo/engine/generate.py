"""Generate text through a runner: one request at a time, or several taking turns step by step."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from octavo.config import ModelConfig, SamplingParams
from octavo.data.stop import StopStrings
from octavo.data.tokenizer import Tokenizer
from octavo.engine.runner import PAGE_TOKENS, Runner, StepBatch
from octavo.engine.sampler import Sampler
from octavo.errors import UserError

if TYPE_CHECKING:
    from octavo.models.decoder import Decoder

DEFAULT_CONTEXT = 8192  # tokens of key/value memory when nobody says otherwise
STATE_SLOTS = (
    4  # requests that run at once where there are lightning layers; MiniMax-Text-01's states take 280 MiB each
)
PREFILL_CHUNK = 512  # prompt tokens a step: bounds activation memory, and lets other requests take turns

Message = Mapping[str, Any]
Prompt = str | Sequence[Message] | Sequence[int]  # raw text, a chat, or token ids
FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Piece:
    """One step of an answer: its token, and the text that is certain now, which may be empty while a character or a
    possible stop string is incomplete. finish_reason is set on the last piece only."""

    text: str
    token_id: int
    finish_reason: FinishReason | None = None


@dataclass(frozen=True)
class Completion:
    """A whole answer: its text, the ids behind it (an end token included), and why it ended."""

    text: str
    token_ids: tuple[int, ...]
    prompt_tokens: int
    finish_reason: FinishReason


class Generator:
    """Requests over one runner. Safe to use from several threads: steps of different requests alternate."""

    def __init__(self, runner: Runner, tokenizer: Tokenizer) -> None:
        self.runner, self.tokenizer = runner, tokenizer
        self._free = list(range(runner.num_pages))
        self._free_slots = list(range(runner.num_slots))
        self._freed = threading.Condition()
        self._stepping = threading.Lock()

    @classmethod
    def for_decoder(cls, decoder: "Decoder", tokenizer: Tokenizer, context: int = DEFAULT_CONTEXT) -> "Generator":
        """A generator on the torch runner with room for `context` tokens, or fewer if the model ends earlier."""
        from octavo.engine.torch_runner import TorchRunner

        return cls(TorchRunner(decoder, pages_for(context, decoder.config), STATE_SLOTS), tokenizer)

    @property
    def context(self) -> int:
        """Most tokens, prompt and answer together, that one request can have."""
        return min(self.runner.num_pages * PAGE_TOKENS, self.runner.config.max_positions)

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt of any form."""
        return encode_prompt(self.tokenizer, prompt)

    def stream(
        self, prompt: Prompt, params: SamplingParams, cancelled: Callable[[], bool] = lambda: False
    ) -> Iterator[Piece]:
        """Yield the answer piece by piece; closing the iterator ends the request and frees its memory.

        `cancelled` is asked between the steps of a long prompt, which nobody can close: if it says so, nothing comes.
        Raises UserError, before the first piece, for a prompt that is empty or does not fit the context.
        """
        ids = self.encode(prompt)
        self._check(ids, params)
        return self._run(ids, params, isinstance(prompt, str), cancelled)

    def complete(self, prompt: Prompt, params: SamplingParams) -> Completion:
        """The whole answer at once."""
        ids = self.encode(prompt)
        self._check(ids, params)
        pieces = list(self._run(ids, params, isinstance(prompt, str), lambda: False))
        token_ids = tuple(piece.token_id for piece in pieces)
        reason = pieces[-1].finish_reason
        assert reason is not None
        return Completion("".join(piece.text for piece in pieces), token_ids, len(ids), reason)

    def check_fits(self, prompt_tokens: int, params: SamplingParams) -> None:
        """Raise UserError for a prompt that is empty or, with its answer, longer than the context."""
        if prompt_tokens == 0:
            raise UserError("the prompt is empty: give at least one token")
        if prompt_tokens + params.max_new_tokens > self.context:
            raise UserError(
                f"{prompt_tokens} prompt tokens and up to {params.max_new_tokens} new ones do not fit the context of "
                f"{self.context} tokens: shorten the prompt or ask for fewer new tokens"
            )

    def _check(self, ids: list[int], params: SamplingParams) -> None:
        self.check_fits(len(ids), params)
        vocabulary = self.runner.config.vocab_size
        if not 0 <= min(ids) <= max(ids) < vocabulary:
            raise UserError(f"the prompt has token ids outside the model's vocabulary of {vocabulary}")

    def _run(
        self, ids: list[int], params: SamplingParams, continues: bool, cancelled: Callable[[], bool]
    ) -> Iterator[Piece]:
        # a completion goes on where its prompt ends; an answer in a chat begins anew, and SentencePiece tokenizers
        # drop the space before a first word
        sampler, text = Sampler(params, ids), self.tokenizer.stream(context=ids if continues else ())
        stops = StopStrings(params.stop)
        eos = frozenset() if params.ignore_eos else self.tokenizer.eos_ids
        with self._memory(len(ids) + params.max_new_tokens) as memory:
            prefilled = self._prefill(ids, memory, cancelled)
            if prefilled is None:
                return
            logits = prefilled
            for position in range(len(ids), len(ids) + params.max_new_tokens):
                token = sampler.choose(logits)
                ended = token in eos
                shown, stopped = stops.put("" if ended else text.put(token))
                last = position + 1 == len(ids) + params.max_new_tokens
                if stopped:
                    yield Piece(shown, token, "stop")
                    return
                if ended or last:
                    rest, stopped = stops.put(text.flush())
                    rest = shown + rest + ("" if stopped else stops.flush())
                    yield Piece(rest, token, "stop" if ended or stopped else "length")
                    return
                yield Piece(shown, token)
                logits = self._step([token], position, memory)[0]

    def _prefill(self, ids: list[int], memory: "_Memory", cancelled: Callable[[], bool]) -> NDArray[np.float32] | None:
        """Logits after the prompt, fp32 [vocab]; None if cancelled on the way."""
        for start in range(0, len(ids), PREFILL_CHUNK):
            if cancelled():
                return None
            last = start + PREFILL_CHUNK >= len(ids)
            logits = self._step(ids[start : start + PREFILL_CHUNK], start, memory, want_logits=last)
        return logits[0]

    def _step(self, ids: list[int], position: int, memory: "_Memory", want_logits: bool = True) -> NDArray[np.float32]:
        """Feed `ids` at `position` of one request; returns the logits after the last, fp32 [1 or 0, vocab]."""
        rows = len(ids)
        batch = StepBatch(
            ids=np.array(ids, np.int64),
            cu_seqlens=np.array([0, rows], np.int64),
            positions=np.arange(position, position + rows),
            page_table=memory.pages[None],
            state_slots=np.array([memory.slot]),
            logit_rows=np.array([rows - 1] if want_logits else [], np.int64),
        )
        with self._stepping:
            return self.runner.step(batch).logits

    @contextmanager
    def _memory(self, tokens: int) -> Iterator["_Memory"]:
        """Room for `tokens` tokens; waits until other requests have freed enough, in no particular order.

        Trap: a thread that holds an unfinished stream and starts another request can wait for itself.
        """
        count, slots = -(-tokens // PAGE_TOKENS), min(self.runner.num_slots, 1)
        with self._freed:
            self._freed.wait_for(lambda: len(self._free) >= count and len(self._free_slots) >= slots)
            pages = [self._free.pop() for _ in range(count)]
            slot = self._free_slots.pop() if slots else -1
        try:
            yield _Memory(np.array(pages, np.int64), slot)
        finally:
            with self._freed:
                self._free.extend(pages)
                self._free_slots.extend([slot] * slots)
                self._freed.notify_all()


@dataclass(frozen=True)
class _Memory:
    """What one request holds: pages of keys and values, and a slot for states, -1 where the model has none."""

    pages: NDArray[np.int64]
    slot: int


def pages_for(context: int, config: ModelConfig) -> int:
    """Pages that hold `context` tokens, or as many as the model can have."""
    return -(-min(context, config.max_positions) // PAGE_TOKENS)


def encode_prompt(tokenizer: Tokenizer, prompt: Prompt) -> list[int]:
    """Token ids of raw text, of chat messages through the template, or as given."""
    if isinstance(prompt, str):
        return tokenizer.encode(prompt)
    ids = [int(item) for item in prompt if isinstance(item, Integral)]
    messages = [item for item in prompt if isinstance(item, Mapping)]
    if len(ids) == len(prompt):
        return ids
    if len(messages) < len(prompt):
        raise UserError("a prompt must be text, a list of messages with role and content, or a list of token ids")
    return tokenizer.encode_chat(messages)


def generate(model: "Decoder", tokenizer: Tokenizer, prompt: Prompt, **params: Any) -> str:
    """The answer to raw text, to chat messages ({"role", "content"}) or to token ids, as text.

    Keyword arguments are those of `SamplingParams` (max_new_tokens, temperature, top_k, top_p, seed, stop). Raises
    UserError for a prompt that does not fit, UsageError for parameters out of range.
    """
    sampling = SamplingParams(**params)
    ids = encode_prompt(tokenizer, prompt)
    generator = Generator.for_decoder(model, tokenizer, len(ids) + sampling.max_new_tokens)
    return generator.complete(prompt, sampling).text

"""An answer on its way: from rows of logits to tokens, to text, to its end."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from octavo.config import SamplingParams
from octavo.data.stop import StopStrings
from octavo.data.tokenizer import Tokenizer
from octavo.engine.draw import Draw
from octavo.engine.grammar import Matcher
from octavo.engine.logprobs import TokenLogprob, log_probabilities
from octavo.engine.lookup import Lookup
from octavo.engine.sampler import Sampler
from octavo.engine.scheduler import Sequence

FinishReason = Literal["stop", "length"]


@dataclass(slots=True)  # frozen, it would take five times as long to make
class Piece:
    """One step of an answer: its token, and the text that is certain now, which may be empty while a character or a
    possible stop string is incomplete.

    finish_reason is set on the last piece only. index: which of a request's n answers. logprob: if it was asked for.
    prompt_logprobs: on the first piece of answer 0, if they were asked for: of each token of the prompt but the first.
    """

    text: str
    token_id: int
    finish_reason: FinishReason | None = None
    index: int = 0
    logprob: TokenLogprob | None = None
    prompt_logprobs: tuple[TokenLogprob, ...] | None = None


@dataclass(frozen=True)
class Completion:
    """A whole answer: its text, the ids that were chosen (an end token and those of a stop string included, though the
    text ends before them), and why it ended.

    cached_tokens: those of the prompt that the prefix cache knew. logprobs: one a token, if they were asked for.
    """

    text: str
    token_ids: tuple[int, ...]
    prompt_tokens: int
    finish_reason: FinishReason
    cached_tokens: int = 0
    index: int = 0
    logprobs: tuple[TokenLogprob, ...] | None = None
    prompt_logprobs: tuple[TokenLogprob, ...] | None = None


class Answer:
    """One of a request's answers, fed with rows of logits. `emit` gets its pieces, or the error that ended it."""

    hidden = False  # it wants logits

    def __init__(
        self,
        sequence: Sequence,
        sampler: Sampler,
        tokenizer: Tokenizer,
        params: SamplingParams,
        emit: Callable[[Piece | Exception], None],
        index: int = 0,
        matcher: Matcher | None = None,
        continues: bool = False,
        speculate: int = 0,
    ) -> None:
        """continues: the answer goes on where a raw prompt ends; in a chat it begins anew, and SentencePiece tokenizers
        drop the space before a first word. speculate: most tokens guessed ahead."""
        self.sequence, self.emit = sequence, emit
        self._params, self._sampler, self._matcher, self._index = params, sampler, matcher, index
        self._text = tokenizer.stream(params.skip_special_tokens, sequence.ids if continues else ())
        self._stops = StopStrings(params.stop)
        self._ends = frozenset() if params.ignore_eos else tokenizer.eos_ids
        self._unseen = self._ends | (tokenizer.eos_ids & tokenizer.special_ids)
        self._prompt_logprobs: list[TokenLogprob] = []
        self._lookup = Lookup(speculate) if speculate else None

    def wish(self, start: int, rows: int, first: int) -> Draw | None:
        """How its next token is to be drawn from the rows that `take` will get, if nothing but a draw is needed. They
        are rows `first` and on of all."""
        known = len(self.sequence.ids) - 1 - start
        return self._sampler.wish(first + known) if known < rows and self._matcher is None else None

    def take(self, start: int, logits: NDArray[np.float32], drawn: int | None = None) -> bool:
        """Rows of logits [k, vocab] after the tokens from position `start` on; whether the answer is over. drawn: what
        came of its wish.

        Raises ValueError for logits that are not numbers, UserError where a grammar fails.
        """
        sequence = self.sequence
        ids, draft = sequence.ids, sequence.draft
        known = len(ids) - 1 - start  # rows whose next token was given: those of a prompt
        for row in range(min(known, len(logits))):
            given = log_probabilities(logits[row], ids[start + row + 1], self._params.prompt_logprobs or 0)
            self._prompt_logprobs.append(given)
        if known >= len(logits):
            sequence.first_wanted = start + len(logits)
            return False
        before = len(ids)
        over = self._choose(logits[known], drawn)
        if draft:
            for row, guessed in zip(logits[known + 1 :], draft, strict=False):
                if over or ids[-1] != guessed:  # the rows from here on are of another text
                    break
                over = self._choose(row)
        if self._lookup and not over:
            guessed = len(logits) - known - 1
            sequence.draft = self._lookup.guess(ids, guessed, len(ids) - before - 1)
        return over

    def _choose(self, logits: NDArray[np.float32], token: int | None = None) -> bool:
        sequence, params, matcher = self.sequence, self._params, self._matcher
        if token is None or token < 0:
            token = self._sampler.choose(logits, matcher.allowed() if matcher else None)
        else:
            self._sampler.note(token)
        logprob = None if params.logprobs is None else log_probabilities(logits, token, params.logprobs)
        first = len(sequence.ids) == sequence.prompt_tokens and self._index == 0
        prompt_logprobs = tuple(self._prompt_logprobs) if first and params.prompt_logprobs is not None else None
        sequence.ids.append(token)
        sequence.first_wanted = len(sequence.ids) - 1
        ended = token in self._ends
        if matcher and not ended:
            matcher.accept(token)
            ended = matcher.ended
        text, reason = self._as_text(token, ended, len(sequence.ids) == sequence.most)
        self.emit(Piece(text, token, reason, self._index, logprob, prompt_logprobs))
        return reason is not None

    def _as_text(self, token: int, ended: bool, last: bool) -> tuple[str, FinishReason | None]:
        """The text that is certain now, and why the answer ends here, if it does."""
        shown, stopped = self._stops.put("" if token in self._unseen else self._text.put(token))
        if stopped:
            return shown, "stop"
        if not (ended or last):
            return shown, None
        rest, stopped = self._stops.put(self._text.flush())
        rest = shown + rest + ("" if stopped else self._stops.flush())
        return rest, "stop" if ended or stopped else "length"

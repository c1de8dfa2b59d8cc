"""What a model makes of given text: log-likelihoods of continuations, and pooled hidden states."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from octavo.engine.logprobs import continuation_logprobs
from octavo.engine.scheduler import Sequence

Pooling = Literal["last", "mean"]


@dataclass(frozen=True)
class LogLikelihood:
    """log p(continuation | context) in nats: in all, and of each token; is_greedy: greedy decoding would write it."""

    total: float
    tokens: tuple[float, ...]
    is_greedy: bool


class Score:
    """Collects the log-likelihood of the tokens after the first `context` of a text. The sequence ends one token
    before the text does: nobody asks what comes after it."""

    hidden = False

    def __init__(
        self, sequence: Sequence, targets: NDArray[np.int64], emit: Callable[[LogLikelihood | Exception], None]
    ) -> None:
        """targets: int64, the tokens that follow the positions sequence.first_wanted and on."""
        self.sequence, self.emit = sequence, emit
        self._first, self._targets = sequence.first_wanted, targets
        self._tokens: list[float] = []
        self._is_greedy = True

    def wish(self, start: int, rows: int, first: int) -> None:
        """No token is chosen here."""

    def take(self, start: int, logits: NDArray[np.float32], drawn: int | None = None) -> bool:
        """Rows of logits [k, vocab] after the tokens from `start` on; whether all have come. Raises ValueError for
        logits that are not numbers."""
        targets = self._targets[start - self._first :][: len(logits)]
        logprobs, greedy = continuation_logprobs(logits, targets)
        self._tokens += logprobs.tolist()
        self._is_greedy &= bool(greedy.all())
        self.sequence.first_wanted = start + len(logits)
        if len(self._tokens) < len(self._targets):
            return False
        self.emit(LogLikelihood(float(np.sum(self._tokens)), tuple(self._tokens), self._is_greedy))
        return True


class Pooled:
    """Collects a text's hidden states after the final norm: the last token's, or the mean of all."""

    hidden = True

    def __init__(self, sequence: Sequence, emit: Callable[[NDArray[np.float32] | Exception], None]) -> None:
        """The mean is over the rows from sequence.first_wanted on."""
        self.sequence, self.emit = sequence, emit
        self._sum: NDArray[np.float64] | float = 0.0
        self._rows = 0

    def wish(self, start: int, rows: int, first: int) -> None:
        """No token is chosen here."""

    def take(self, start: int, hidden: NDArray[np.float32], drawn: int | None = None) -> bool:
        """Rows [k, H] of the tokens from `start` on; whether the text is over. Raises ValueError for a NaN."""
        if not np.isfinite(hidden).all():
            raise ValueError("the model returned hidden states that are not numbers")
        for row in hidden.astype(np.float64):  # one by one: the mean does not depend on how a prompt was cut
            self._sum = self._sum + row
        self._rows += len(hidden)
        self.sequence.first_wanted = start + len(hidden)
        if self.sequence.first_wanted < len(self.sequence.ids):
            return False
        self.emit((self._sum / self._rows).astype(np.float32))  # type: ignore[union-attr]
        return True

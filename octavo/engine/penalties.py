"""What a request adds to and takes from single logits: repetition, presence and frequency penalties, logit bias."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from octavo.config import SamplingParams
from octavo.errors import UserError

_LARGEST = float(np.finfo(np.float32).max)


class Penalties:
    """The tokens a request has seen, and what that does to their logits; then its logit bias."""

    def __init__(self, params: SamplingParams, prompt: Sequence[int]) -> None:
        self._params = params
        repetition = params.repetition_penalty != 1.0
        self._counts_answer = repetition or params.presence_penalty != 0.0 or params.frequency_penalty != 0.0
        self._ids = np.unique(np.asarray(prompt if repetition else (), np.int64))
        self._counts = np.zeros(len(self._ids), np.int64)  # occurrences in the answer
        self._place = {token: at for at, token in enumerate(self._ids.tolist())}
        self._bias_ids = np.array(list(params.logit_bias), np.int64)
        self._bias = np.array(list(params.logit_bias.values()), np.float64)

    @property
    def active(self) -> bool:
        """Whether `apply` can change anything, now or later."""
        return self._counts_answer or len(self._bias_ids) > 0

    def note(self, token: int) -> None:
        """Take note of a token of the answer."""
        if not self._counts_answer:
            return
        at = self._place.setdefault(token, len(self._place))
        if at == len(self._ids):  # twice the room: not a copy for every token
            more = max(16, at)
            self._ids = np.concatenate((self._ids, np.zeros(more, np.int64)))
            self._counts = np.concatenate((self._counts, np.zeros(more, np.int64)))
        self._ids[at] = token
        self._counts[at] += 1

    def apply(self, logits: NDArray[np.float32]) -> None:
        """Change logits, fp32 [vocab], in place. What is -inf stays so, and nothing else becomes infinite.

        Repetition: Keskar et al. 2019, section 4.1, but negative logits are multiplied, so that they fall too;
        presence and frequency as OpenAI's API defines them. Raises UserError for a biased id outside the vocabulary.
        """
        if count := len(self._place):
            ids, counts = self._ids[:count], self._counts[:count]
            values = logits[ids].astype(np.float64)
            penalty = self._params.repetition_penalty
            with np.errstate(over="ignore"):  # a tiny penalty; put right below
                values = np.where(values > 0.0, values / penalty, values * penalty)
            values -= self._params.presence_penalty * (counts > 0) + self._params.frequency_penalty * counts
            logits[ids] = _finite(values)
        if len(self._bias_ids):
            check_logit_bias(self._params, len(logits))
            logits[self._bias_ids] = _finite(logits[self._bias_ids].astype(np.float64) + self._bias)


def check_logit_bias(params: SamplingParams, vocab_size: int) -> None:
    """Raise UserError that names the token ids of logit_bias that the vocabulary does not have."""
    outside = sorted(token for token in params.logit_bias if token >= vocab_size)
    if outside:
        named = ", ".join(str(token) for token in outside[:10]) + (", ..." if len(outside) > 10 else "")
        raise UserError(
            f"logit_bias has token ids outside the model's vocabulary of {vocab_size}: {named}; leave them out"
        )


def _finite(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Within what fp32 holds; -inf, a token that is ruled out, stays."""
    np.minimum(values, _LARGEST, out=values)
    return np.maximum(values, -_LARGEST, where=values > -np.inf, out=values)

"""Log probabilities of tokens by the model's own logits, before any penalty, mask or temperature."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from octavo.engine.draw import likeliest
from octavo.native.library import usable_library


@dataclass(frozen=True)
class TokenLogprob:
    """A token, the natural logarithm of its probability, and the likeliest tokens at its place with theirs.

    rank: how many tokens come before it, likelier or as likely and with a lower id; 0 is what greedy takes, and `top`
    has the token at top[rank] if it is long enough. top: (token, log probability), likeliest first.
    """

    token: int
    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...] = ()


def log_probabilities(logits: NDArray[np.float32], token: int, top: int) -> TokenLogprob:
    """The log probability of `token` and of the `top` likeliest (0: of none), within 1e-6 of fp64's log-softmax.

    logits: fp32 [vocab]. Raises ValueError where they are not numbers (NaN, +inf or none finite), or lack the token.
    """
    _check_token(token, len(logits))
    largest, log_sum = _log_sum(logits)
    own = logits[token]
    rank = int(np.count_nonzero(logits > own)) + int(np.count_nonzero(logits[:token] == own))
    ids = likeliest(logits, top) if top else np.zeros(0, np.int64)
    logprobs = (logits[ids].astype(np.float64) - largest) - log_sum
    likely = tuple(zip(ids.tolist(), logprobs.tolist(), strict=True))
    return TokenLogprob(token, (float(own) - largest) - log_sum, rank, likely)


def continuation_logprobs(
    logits: NDArray[np.float32], tokens: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Each row's log probability of its token, fp64 [N], and whether greedy would have taken it, bool [N].

    logits: fp32 [N, vocab]; tokens: int64 [N]. Raises ValueError where a row's logits are not numbers (NaN, +inf or
    none finite), or lack the token.
    """
    if len(logits) != len(tokens):
        raise ValueError(f"{len(logits)} rows of logits for {len(tokens)} tokens")
    logprobs, greedy = np.empty(len(tokens), np.float64), np.empty(len(tokens), np.bool_)
    for row, token in enumerate(tokens.tolist()):  # row by row: one fits a core's cache
        _check_token(token, logits.shape[1])
        largest, log_sum = _log_sum(logits[row])
        logprobs[row] = (float(logits[row, token]) - largest) - log_sum
        greedy[row] = logits[row].argmax() == token
    return logprobs, greedy


def _log_sum(logits: NDArray[np.float32]) -> tuple[float, float]:
    """The largest logit, and log sum e^(logit - largest): apart, since their sum may lose all of the second.

    The differences are fp32's: those that matter are small.
    """
    largest = logits.max()
    if not np.isfinite(largest):
        raise ValueError("the model returned logits that are not numbers")
    return float(largest), math.log(_weight_sum(logits, float(largest)))


def _weight_sum(logits: NDArray[np.float32], largest: float) -> float:
    if core := usable_library():
        return core.weight_sum(np.ascontiguousarray(logits), largest)
    with np.errstate(over="ignore"):  # -inf: e to that is 0 as well
        weights = logits - np.float32(largest)
    return float(np.exp(weights, out=weights).sum(dtype=np.float64))


def _check_token(token: int, vocab_size: int) -> None:
    if not 0 <= token < vocab_size:
        raise ValueError(f"token {token} is not in a vocabulary of {vocab_size}")

"""Choose a token from one row of logits: greedy, temperature, top-k, top-p, seeded per request."""

import numpy as np
from numpy.typing import NDArray

from octavo.config import SamplingParams

# How far below the largest a logit (over the temperature) may lie to be looked at first; e^-12 is a ten-thousandth.
# A vocabulary has 10^5 entries of which a few hundred matter: sorting them all would take as long as the model does.
_DEPTHS = (12.0, 30.0, np.inf)


class Sampler:
    """One request's choices. The same seed and logits give the same tokens, whatever else runs beside it."""

    def __init__(self, params: SamplingParams) -> None:
        self._params = params
        self._random = np.random.Generator(np.random.PCG64(params.seed))

    def choose(self, logits: NDArray[np.float32]) -> int:
        """logits: fp32 [vocab]. Ties go to the lowest id. Raises ValueError when no logit is finite."""
        best = int(logits.argmax())  # a NaN, if there is one
        if not np.isfinite(logits[best]):  # NaN and +inf, and the case that nothing is allowed
            raise ValueError("the model returned logits that are not numbers")
        if self._params.temperature == 0.0:
            return best
        # one draw a token, by inversion: the number of random values used never depends on the logits
        return _pick(logits, self._params, self._random.random())


def candidates(logits: NDArray[np.float32], params: SamplingParams) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Token ids that may be drawn and their probabilities, most likely first.

    Temperature first, then the `top_k` largest (0: all), then the smallest set whose probability reaches `top_p`
    (Holtzman et al. 2020), renormalised. logits: fp32 [vocab]; temperature above 0.
    """
    order, weights, total = _leading(logits, params, np.inf)
    probabilities = weights / total
    if params.top_p < 1.0:
        kept = int(np.searchsorted(probabilities.cumsum(), params.top_p, side="left")) + 1
        order, probabilities = order[:kept], probabilities[:kept] / probabilities[:kept].sum()
    return order, probabilities


def _pick(logits: NDArray[np.float32], params: SamplingParams, drawn: float) -> int:
    """The candidate at which the summed probabilities, most likely first, pass `drawn` (0 to 1)."""
    for depth in _DEPTHS:
        order, weights, total = _leading(logits, params, depth)
        cumulative = weights.cumsum()
        if params.top_p < 1.0:
            kept = int(np.searchsorted(cumulative, params.top_p * total, side="left")) + 1
            if kept > len(order) and depth != np.inf:
                continue
            cumulative = cumulative[:kept]
            total = cumulative[-1]
        at = int(np.searchsorted(cumulative, drawn * total, side="right"))
        if at < len(cumulative):
            return int(order[at])
    return int(order[len(cumulative) - 1])


def _leading(
    logits: NDArray[np.float32], params: SamplingParams, depth: float
) -> tuple[NDArray[np.int64], NDArray[np.float64], float]:
    """The top-k ids at most `depth` below the largest, in descending order, their weights e^(logit / temperature) over
    the largest's, and the sum of the weights of all top-k ids, the ones below `depth` included."""
    # the largest goes first, so that a tiny temperature sends the others to -inf and never makes inf - inf
    with np.errstate(over="ignore"):
        scaled = (logits.astype(np.float64) - logits.max()) / params.temperature
    ids = np.flatnonzero(scaled >= -depth)
    order = ids[np.argsort(-scaled[ids], kind="stable")]
    whole = len(order) == len(scaled)
    if params.top_k and params.top_k <= len(order):
        order, whole = order[: params.top_k], True
    weights = np.exp(scaled[order])
    if whole:
        return order, weights, float(weights.sum())
    rest = np.exp(scaled).sum() if not params.top_k else _sum_of_largest(scaled, params.top_k)
    return order, weights, float(rest)


def _sum_of_largest(scaled: NDArray[np.float64], count: int) -> float:
    """Sum of e^x over the `count` largest x."""
    return float(np.exp(np.partition(scaled, -count)[-count:] if count < len(scaled) else scaled).sum())

"""Choose a token from one row of logits: greedy, temperature, top-k, top-p, seeded per request."""

import numpy as np
from numpy.typing import NDArray

from octavo.config import SamplingParams

# How far below the largest a logit (over the temperature) may lie to be looked at first; e^-4 is a fiftieth, e^-12
# some millionths. A vocabulary has 10^5 entries of which few matter: sorting all would take as long as the model does.
_DEPTHS = (4.0, 12.0, 30.0, np.inf)
_SMALLEST_TEMPERATURE = np.float32(1e-30)  # in fp32; the exact one is used for what may be drawn


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
    order, weights = _leading(_below(logits), params, np.inf)
    probabilities = weights / weights.sum()
    if params.top_p < 1.0:
        kept = int(np.searchsorted(probabilities.cumsum(), params.top_p, side="left")) + 1
        order, probabilities = order[:kept], probabilities[:kept] / probabilities[:kept].sum()
    return order, probabilities


def _pick(logits: NDArray[np.float32], params: SamplingParams, drawn: float) -> int:
    """The candidate at which the summed probabilities, most likely first, pass `drawn` (0 to 1)."""
    below = _below(logits)
    everything = 0.0 if params.top_k else _sum_of_all(below, params.temperature)
    for depth in _DEPTHS:
        order, weights = _leading(below, params, depth)
        last = depth == np.inf
        if params.top_k and len(order) < params.top_k and not last:
            continue
        cumulative = weights.cumsum()
        # not weights.sum(): added up in another order it may be larger, and a draw close to 1 pass all that is likely
        total = float(cumulative[-1]) if params.top_k or last else everything
        if params.top_p < 1.0:
            kept = int(np.searchsorted(cumulative, params.top_p * total, side="left")) + 1
            if kept > len(order) and not last:
                continue
            cumulative = cumulative[:kept]
            total = cumulative[-1]
        at = int(np.searchsorted(cumulative, drawn * total, side="right"))
        if at < len(cumulative):
            return int(order[at])
    raise AssertionError("drawn is below 1, and the last depth leaves nothing out")


def _below(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):  # -inf is far enough
        return logits - logits.max()


def _leading(
    below: NDArray[np.float32], params: SamplingParams, depth: float
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The top-k ids at most `depth` below the largest, in descending order, and their weights e^(below / temperature).

    below: logits minus the largest. That goes first, so that a tiny temperature sends the others to -inf and never
    makes inf - inf.
    """
    ids = np.flatnonzero(below >= -depth * params.temperature)
    with np.errstate(over="ignore"):
        scaled = below[ids].astype(np.float64) / params.temperature
    descending = np.argsort(-scaled, kind="stable")[: params.top_k or None]
    return ids[descending], np.exp(scaled[descending])


def _sum_of_all(below: NDArray[np.float32], temperature: float) -> float:
    """Sum of e^(below / temperature), right to seven digits: fp32 is several times as fast as fp64."""
    with np.errstate(over="ignore"):
        weights = np.exp(below / max(np.float32(temperature), _SMALLEST_TEMPERATURE))
    return float(weights.sum(dtype=np.float64))

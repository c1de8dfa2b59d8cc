"""Choose a token from one row of logits: greedy, temperature, top-k, top-p, seeded per request."""

import numpy as np
from numpy.typing import NDArray

from octavo.config import SamplingParams


class Sampler:
    """One request's choices. The same seed and logits give the same tokens, whatever else runs beside it."""

    def __init__(self, params: SamplingParams) -> None:
        self._params = params
        self._random = np.random.Generator(np.random.PCG64(params.seed))

    def choose(self, logits: NDArray[np.float32]) -> int:
        """logits: fp32 [vocab]. Ties go to the lowest id. Raises ValueError when no logit is finite."""
        if not np.isfinite(logits.max()):  # NaN and +inf, and the case that nothing is allowed
            raise ValueError("the model returned logits that are not numbers")
        if self._params.temperature == 0.0:
            return int(logits.argmax())
        ids, probabilities = candidates(logits, self._params)
        # one draw a token, by inversion: the number of random values used never depends on the logits
        cumulative = probabilities.cumsum()
        drawn = int(np.searchsorted(cumulative, self._random.random() * cumulative[-1], side="right"))
        return int(ids[min(drawn, len(ids) - 1)])


def candidates(logits: NDArray[np.float32], params: SamplingParams) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Token ids that may be drawn and their probabilities, most likely first.

    Temperature first, then the `top_k` largest (0: all), then the smallest set whose probability reaches `top_p`
    (Holtzman et al. 2020), renormalised. logits: fp32 [vocab]; temperature above 0.
    """
    # the largest goes first, so that a tiny temperature sends the others to -inf and never makes inf - inf
    with np.errstate(over="ignore"):
        scaled = (logits.astype(np.float64) - logits.max()) / params.temperature
    order = np.argsort(-scaled, kind="stable")
    if params.top_k:
        order = order[: params.top_k]
    weights = np.exp(scaled[order])
    probabilities = weights / weights.sum()
    if params.top_p < 1.0:
        kept = int(np.searchsorted(probabilities.cumsum(), params.top_p, side="left")) + 1
        order, probabilities = order[:kept], probabilities[:kept] / probabilities[:kept].sum()
    return order, probabilities

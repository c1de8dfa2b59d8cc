"""One token drawn from a row of logits: temperature, top-k, top-p, min-p, and inversion of what they leave.

`candidates` is the definition; `draw` looks at as little of the vocabulary as it can, and the CPU core does the same in
C++ (native/src/sampling.cpp), several times as fast. All three order tokens by logit, equal ones by id.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from octavo.config import SamplingParams
from octavo.native.library import usable_library

# How many temperatures below the largest a logit may lie to be looked at first; e^-4 is a fiftieth, e^-12 some
# millionths. A vocabulary has 10^5 entries of which few matter: sorting all would take as long as the model does.
_DEPTHS = (4.0, 8.0, 12.0, 18.0, 30.0)
_SMALLEST_TEMPERATURE = np.float32(1e-30)  # in fp32; the exact one is used for what may be drawn
_BLOCKS = 1024  # parts of a vocabulary, of which only the largest entries are compared at first


class Draw(NamedTuple):
    """A token to be drawn from row `row` of some logits, with the settings of `SamplingParams`; drawn: 0 to below 1."""

    row: int
    top_k: int
    temperature: float
    top_p: float
    min_p: float
    drawn: float


Settings = SamplingParams | Draw


def candidates(logits: NDArray[np.float32], params: Settings) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Token ids that may be drawn and their probabilities, likeliest first.

    Temperature first, then the `top_k` largest (0: all), of those the smallest set whose probability reaches `top_p`
    (Holtzman et al. 2020), then those with at least `min_p` of the largest probability (Nguyen et al. 2024);
    renormalised. logits: fp32 [vocab], one of them finite, none NaN; temperature above 0.
    """
    depths = _depths(logits)
    order = _sorted(depths, np.flatnonzero(np.isfinite(depths)))[: params.top_k or None]
    weights = _weights(depths[order], params)
    probabilities = weights / weights.sum()
    kept = len(order)
    if params.top_p < 1.0:
        kept = int(np.searchsorted(probabilities.cumsum(), params.top_p, side="left")) + 1
    if params.min_p > 0.0:
        kept = min(kept, int((depths[order] <= _least(params)).sum()))
    return order[:kept], probabilities[:kept] / probabilities[:kept].sum()


def draw_row(logits: NDArray[np.float32], how: Draw) -> int:
    """The token of one draw, by the core where there is one; -1 where the logits, fp32 [vocab], are not numbers."""
    best = int(logits.argmax())  # a NaN, if there is one
    if not np.isfinite(logits[best]):
        return -1
    if how.temperature == 0.0:
        return best
    core = usable_library()
    if core is None:
        return draw(logits, how, how.drawn)
    logits, largest = np.ascontiguousarray(logits), float(logits[best])
    return core.draw(logits, largest, how.temperature, how.top_k, how.top_p, how.min_p, how.drawn)


def draw(logits: NDArray[np.float32], params: Settings, drawn: float) -> int:
    """The candidate at which the summed probabilities, likeliest first, pass `drawn` (0 to below 1).

    logits: fp32 [vocab], one of them finite, none NaN; temperature above 0.
    """
    depths = _depths(logits)
    if params.top_k:
        return _all_of(likeliest(logits, params.top_k), depths, params, drawn)
    if params.top_p == 1.0 and params.min_p > 0.0:
        return _all_of(_sorted(depths, np.flatnonzero(depths <= _least(params))), depths, params, drawn)
    everything = _weight_of_all(depths, params.temperature)
    for deep in _DEPTHS:
        order = _sorted(depths, np.flatnonzero(depths <= deep * params.temperature))
        token = _pick(order, depths, params, drawn, everything)
        if token is not None:
            return token
    return _all_of(_sorted(depths, np.flatnonzero(np.isfinite(depths))), depths, params, drawn)


def likeliest(logits: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Ids of the `count` largest logits, largest first, equal ones by id; all of them if they are fewer.

    logits: fp32 [vocab], none NaN; count at least 1.
    """
    blocks = len(logits) // _BLOCKS * _BLOCKS
    floor = -np.inf
    if blocks and count <= _BLOCKS:
        # the count-th of the blocks' largest: at least so many are not below it, and seldom many more
        largest = logits[:blocks].reshape(-1, _BLOCKS).max(axis=0)
        floor = np.partition(largest, -count)[-count]
    ids = np.flatnonzero(logits >= floor)
    return ids[np.argsort(-logits[ids], kind="stable")[:count]]


def _all_of(order: NDArray[np.int64], depths: NDArray[np.float32], params: Settings, drawn: float) -> int:
    token = _pick(order, depths, params, drawn, None)
    assert token is not None  # drawn is below 1, and nothing is left out
    return token


def _pick(
    order: NDArray[np.int64],
    depths: NDArray[np.float32],
    params: Settings,
    drawn: float,
    total: float | None,
) -> int | None:
    """The token, or None if those in `order`, the first of them all, do not tell.

    total: the weight of all; None where `order` is all. Then it is the last of their running sums: adding them up in
    another order may give more, and a draw close to 1 would pass all that is likely.
    """
    cumulative = _weights(depths[order], params).cumsum()
    if complete := total is None:
        total = float(cumulative[-1])
    if params.top_p < 1.0:
        kept = int(np.searchsorted(cumulative, params.top_p * total, side="left")) + 1
        if kept > len(order) and not complete:
            return None
        cumulative = cumulative[:kept]
    if params.min_p > 0.0:
        cumulative = cumulative[: np.searchsorted(depths[order], np.float32(_least(params)), side="right")]
    if params.top_p < 1.0 or params.min_p > 0.0:
        total = float(cumulative[-1])
    at = int(np.searchsorted(cumulative, drawn * total, side="right"))
    return int(order[at]) if at < len(cumulative) else None


def _depths(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """How far each lies below the largest. That first, before the temperature: there is no inf - inf then."""
    with np.errstate(over="ignore"):  # infinitely far is far enough
        return logits.max() - logits


def _least(params: Settings) -> float:
    """The depth down to which min_p lets tokens be."""
    return -math.log(params.min_p) * params.temperature


def _sorted(depths: NDArray[np.float32], ids: NDArray[np.int64]) -> NDArray[np.int64]:
    return ids[np.argsort(depths[ids], kind="stable")]


def _weights(depths: NDArray[np.float32], params: Settings) -> NDArray[np.float64]:
    with np.errstate(over="ignore"):
        return np.exp(depths.astype(np.float64) / -params.temperature)


def _weight_of_all(depths: NDArray[np.float32], temperature: float) -> float:
    """Sum of e^(-depth / temperature), right to seven digits: fp32 is several times as fast as fp64."""
    with np.errstate(over="ignore"):
        weights = np.multiply(depths, -1 / max(np.float32(temperature), _SMALLEST_TEMPERATURE))
    return float(np.exp(weights, out=weights).sum())

"""How an expert's matrices are made from the parent's feed-forward: one matrix of one expert at a time.

A feed-forward is W2 (silu(W1 x) * (W3 x)) with F hidden units: unit i is row i of w1 [F, H], row i of w3 [F, H] and
column i of w2 [H, F]. Whatever is done to a unit is done to all three alike. Every choice is drawn from a generator
of its own, so that nothing depends on the order in which tensors are written.
"""

import numpy as np
import torch
from torch import Tensor

from octavo.errors import UserError

ROUTER_INITS = ("normal", "orthogonal")
ROUTER_STD = 0.02
_UNITS, _VALUES = 0, {"w1": 1, "w3": 2, "w2": 3}  # what a generator is for


def unit_axis(part: str) -> int:
    """The axis of w1, w3 or w2 along which the hidden units lie."""
    return 1 if part == "w2" else 0


def permuted(part: str, matrix: Tensor, seed: int, layer: int, expert: int) -> Tensor:
    """The parent's `part` with its hidden units in this expert's order; the function stays the same."""
    axis = unit_axis(part)
    order = torch.randperm(matrix.shape[axis], generator=_generator(seed, layer, expert, _UNITS))
    return matrix.index_select(axis, order)


def shard(part: str, matrix: Tensor, granularity: int, expert: int, dtype: torch.dtype) -> Tensor:
    """This expert's shard of the parent's `part`: number `expert` mod G of G, w2 times G.

    These are the virtual groups of He et al. 2024 (arXiv 2410.07524). The G experts of a group get 1/G of the weight
    that one expert would, so their sum needs G times w2. The paper spreads the factor over all three matrices, which
    changes the function, as silu is not homogeneous. Raises UserError when the scaled weights do not fit `dtype`, in
    which they will be stored.
    """
    axis = unit_axis(part)
    width = matrix.shape[axis] // granularity
    own = matrix.narrow(axis, expert % granularity * width, width)
    if part != "w2":
        return own
    scaled = own.float() * granularity  # fp32 first: 3 times a bf16 weight needs more digits than bf16 has
    largest = scaled.abs().max().item()
    if largest > torch.finfo(dtype).max:
        raise UserError(f"the parent's w2 has a weight of {largest / granularity:.3g}: {granularity} times that does "
                        f"not fit {str(dtype).removeprefix('torch.')}; use --dtype float32")  # fmt: skip
    return scaled


def dropped_count(units: int, share: float) -> int:
    """floor(share * units), the number of an expert's hidden units that are drawn anew."""
    return int(share * units + 1e-9)  # 0.29 * 100 is 28.999... in binary


def dropped_units(units: int, share: float, seed: int, layer: int, expert: int) -> Tensor:
    """Which of an expert's hidden units are drawn anew, int64 in ascending order."""
    order = torch.randperm(units, generator=_generator(seed, layer, expert, _UNITS))
    return order[: dropped_count(units, share)].sort().values


def dropped(part: str, matrix: Tensor, share: float, seed: int, layer: int, expert: int) -> Tensor:
    """The parent's `part` with a share of its hidden units drawn anew (Drop-Upcycling, Nakamura et al. 2025).

    New values come from N(mean, std) of those that they replace. All three matrices drop the same units, as the paper
    says; its released script draws a set for each, after which only (1 - share)^3 of the units are whole.
    """
    axis = unit_axis(part)
    units = dropped_units(matrix.shape[axis], share, seed, layer, expert)
    replaced = matrix.index_select(axis, units).float()
    std, mean = torch.std_mean(replaced, correction=0)
    values = replaced.normal_(mean.item(), std.item(), generator=_generator(seed, layer, expert, _VALUES[part]))
    return matrix.index_copy(axis, units, values.to(matrix.dtype))


def router(rows: int, hidden: int, granularity: int, init: str, seed: int, layer: int) -> Tensor:
    """fp32 [rows, hidden]; with granularity G, rows / G different ones, each G times in a row."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + layer)
    weight = torch.empty(rows // granularity, hidden)
    if init == "orthogonal":
        # rows as long as those of the normal initialisation, so that both route equally sharply
        torch.nn.init.orthogonal_(weight, ROUTER_STD * hidden**0.5, generator=generator)
    else:
        weight.normal_(0.0, ROUTER_STD, generator=generator)
    return weight.repeat_interleave(granularity, dim=0)


def _generator(seed: int, layer: int, expert: int, purpose: int) -> torch.Generator:
    # torch's CPU generator heeds 32 bits of its seed; SeedSequence spreads the four numbers over them
    state = np.random.SeedSequence((seed, layer, expert, purpose)).generate_state(1)
    return torch.Generator().manual_seed(int(state[0]))

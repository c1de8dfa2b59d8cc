"""How near one feed-forward is to another, hidden unit by hidden unit, and which unit is which.

A unit is row i of w1, row i of w3 and column i of w2, so all three are held here with units as rows: [F, H]. Two
units are the same if each of the three cosines between their parts says so, and as alike as the mean of the three. No
positive scale on one of the matrices changes that. Trap: turning a unit's signs in w3 and w2 leaves the function as it
is, but counts as another unit here.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from octavo.errors import UserError

PARTS = ("w1", "w3", "w2")
SKETCH = 256  # estimates a likeness to within 1 / sqrt(SKETCH) = 0.06, one standard deviation
RELATED, WHOLE = 0.05, 0.95  # shares of matched units: below the first unrelated, from the second on a whole copy
_FEWEST = 0.005  # share that is enough where the units found are not only related but the same
_SAME = 0.9  # likeness of such units
_BLOCK = 1024  # rows at a time: neither fp32 copies nor F x F likenesses are ever whole
_FLAT = 1e-6  # variance over mean square at which fp32 sums no longer tell a tensor from a constant


@dataclass(frozen=True)
class ExpertMatch:
    """How one expert relates to the feed-forward it is compared with.

    kind: copy, permuted, split, drop or unrelated. units, parent_units: how wide the two are. matched: share of the
    expert's units that are found in the parent; likeness: its mean over those. aligned: Pearson correlation of w1, w3
    and w2 with units as they are numbered, None when the widths differ. correlation: the same with each unit against
    the one that it is likest to (of all units, found or not). scale: least-squares factor on the parent's matrix, over
    matched units. first_unit: the parent's unit that comes first, where the units are consecutive ones of the parent.
    """

    kind: str
    units: int
    parent_units: int
    matched: float
    likeness: float
    aligned: dict[str, float] | None
    correlation: dict[str, float]
    scale: dict[str, float] | None
    first_unit: int | None


class FeedForward:
    """The three matrices of one expert or dense layer, each [F, H] in the precision of the file."""

    def __init__(self, parts: Mapping[str, Tensor]) -> None:
        self.parts = parts
        self.units, self.hidden = parts["w1"].shape

    @cached_property
    def sketch(self) -> Tensor:
        """fp32 [F, SKETCH] whose inner products estimate three times the likeness of units (random projection)."""
        generator = torch.Generator().manual_seed(0)
        sketch = torch.zeros(self.units, SKETCH)
        for part in PARTS:
            projection = torch.randn(self.hidden, SKETCH, generator=generator) / SKETCH**0.5
            for rows in _blocks(self.units):
                block = self.parts[part][rows].float()
                sketch[rows] += torch.nn.functional.normalize(block, dim=1) @ projection
        return sketch


def match(child: FeedForward, parent: FeedForward) -> ExpertMatch:
    """Compare an expert with a feed-forward of at least its width.

    Units that are not in their place are searched for. Raises UserError for weights that are not finite.
    """
    threshold = least_cosine(child.hidden)
    aligned = _sums(child, parent, None) if child.units == parent.units else None
    order, sums = None, aligned
    if aligned is None or _agree(aligned, threshold).double().mean() < WHOLE:
        order, sums = _search(child, parent, aligned, threshold)
    assert sums is not None
    matched, alike = _agree(sums, threshold), cosines(sums).mean(0)
    share = matched.double().mean().item()
    likeness = alike[matched].mean().item() if share else 0.0
    return ExpertMatch(
        kind=_kind(share, likeness, child.units < parent.units, order is not None),
        units=child.units,
        parent_units=parent.units,
        matched=share,
        likeness=likeness,
        aligned=None if aligned is None else {part: pearson(aligned[part]) for part in PARTS},
        correlation={part: pearson(sums[part]) for part in PARTS},
        scale={part: _slope(sums[part][matched]) for part in PARTS} if share else None,
        first_unit=_first_unit(order, matched),
    )


def least_cosine(hidden: int) -> float:
    """What each of the three cosines of two units must reach for them to count as the same.

    At least 0.25, and three standard deviations of chance: the cosine of two random vectors of n entries has the
    standard deviation 1 / sqrt(n), so all three reach that with a probability of 0.00135^3.
    """
    return max(0.25, 3 / hidden**0.5)


def row_sums(x: Tensor, y: Tensor, order: Tensor | None = None) -> Tensor:
    """fp64 [F, 6]: per row the count and the sums of x, y, x*x, y*y and x*y, which all figures come from.

    x: [F, H]; y: [F, H], or more rows of which `order` (int64 [F]) picks those to compare. Raises UserError when a
    sum is not finite.
    """
    sums = torch.empty(x.shape[0], 6, dtype=torch.float64)
    sums[:, 0] = x.shape[1]
    dtype = torch.float64 if x.shape[1] == 1 else torch.float32  # vectors are small, and norms nearly constant
    for rows in _blocks(x.shape[0]):
        a, b = x[rows].to(dtype), y[rows if order is None else order[rows]].to(dtype)
        for column, values in enumerate((a, b, a * a, b * b, a * b), start=1):
            sums[rows, column] = values.sum(1).double()
    if not sums.isfinite().all():
        raise UserError("the weights hold values that are not finite, which cannot be compared")
    return sums


def pearson(sums: Tensor) -> float:
    """Pearson's correlation over all rows of `row_sums`.

    Where a side is constant there is none: then 1 if the two are equal, else 0.
    """
    n, x, y, xx, yy, xy = sums.sum(0).tolist()
    var_x, var_y = xx - x * x / n, yy - y * y / n
    flat = _FLAT if sums[0, 0] > 1 else _FLAT**2  # rows of one entry were summed in fp64
    if var_x <= flat * xx or var_y <= flat * yy:
        return float(xx == yy == xy)
    return (xy - x * y / n) / (var_x * var_y) ** 0.5


def cosines(sums: Mapping[str, Tensor]) -> Tensor:
    """fp64 [3, F]: of each unit's three parts with those of its partner.

    Two parts that are zero are alike (1), a zero and another are not (0).
    """
    found = []
    for part in PARTS:
        _, _, _, xx, yy, xy = sums[part].unbind(1)
        found.append(torch.where(xx * yy > 0, xy / (xx * yy).sqrt(), (xx == yy).double()))
    return torch.stack(found)


def _agree(sums: Mapping[str, Tensor], threshold: float) -> Tensor:
    """bool [F]: units whose three parts are all alike."""
    return cosines(sums).min(0).values >= threshold


def _search(
    child: FeedForward, parent: FeedForward, aligned: dict[str, Tensor] | None, threshold: float
) -> tuple[Tensor | None, dict[str, Tensor]]:
    """For each unit of the child the parent's unit of likest sketch, or its own number where that is as good.

    Returns int64 [F], None if no unit has moved, and the sums of these pairs.
    """
    order = torch.cat([(child.sketch[rows] @ parent.sketch.T).argmax(1) for rows in _blocks(child.units)])
    sums = _sums(child, parent, order)
    if aligned is None:
        return order, sums
    # not only where it is lost at its own number: units that share directions agree with strangers now and then
    better = _agree(sums, threshold) & (cosines(sums).mean(0) > cosines(aligned).mean(0))
    order = torch.where(better, order, torch.arange(child.units))
    merged = {part: torch.where(better[:, None], sums[part], aligned[part]) for part in PARTS}
    return (order if better.any() else None), merged


def _sums(child: FeedForward, parent: FeedForward, order: Tensor | None) -> dict[str, Tensor]:
    return {part: row_sums(child.parts[part], parent.parts[part], order) for part in PARTS}


def _kind(share: float, likeness: float, narrower: bool, moved: bool) -> str:
    if share < (_FEWEST if likeness >= _SAME else RELATED):
        return "unrelated"
    if narrower:
        return "split"
    if share < WHOLE:
        return "drop"
    return "permuted" if moved else "copy"


def _slope(sums: Tensor) -> float:
    _, _, _, _, yy, xy = sums.sum(0).tolist()
    return xy / yy if yy else 1.0


def _first_unit(order: Tensor | None, matched: Tensor) -> int | None:
    if not matched.any():
        return None
    if order is None:
        return 0
    offsets = (order - torch.arange(len(order)))[matched]
    first = int(offsets.median())
    return first if (offsets == first).double().mean() >= WHOLE else None


def _blocks(rows: int) -> Iterator[slice]:
    return (slice(start, min(start + _BLOCK, rows)) for start in range(0, rows, _BLOCK))

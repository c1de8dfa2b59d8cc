"""How near one feed-forward is to another, hidden unit by hidden unit, and which unit is which.

A unit is row i of w1, row i of w3 and column i of w2, so all three are held here with units as rows: [F, H]. Two
units are as alike as the mean of the three cosines between their parts, which no scale on one of the matrices changes.
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
_IN_PLACE = 0.25  # share of units found at their own number that makes a search for others needless
_BLOCK = 1024  # rows at a time: neither fp32 copies nor F x F likenesses are ever whole
_FLAT = 1e-6  # variance over mean square at which fp32 sums no longer tell a tensor from a constant


@dataclass(frozen=True)
class ExpertMatch:
    """How one expert relates to the feed-forward it is compared with.

    kind: copy, permuted, split, drop or unrelated. units, parent_units: how wide the two are. matched: share of the
    expert's units that are found in the parent; likeness: their mean. aligned: Pearson correlation of w1, w3 and w2
    with units as they are numbered, None when the widths differ. correlation: the same with each unit against the one
    that it is likest to (of all units, found or not). scale: least-squares factor on the parent's matrix, over
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

    Units are searched for only when few are in their place. Raises UserError for weights that are not finite.
    """
    threshold = least_likeness(child.hidden)
    aligned = _sums(child, parent, None) if child.units == parent.units else None
    order, sums = None, aligned
    if aligned is None or (likeness(aligned) >= threshold).double().mean() < _IN_PLACE:
        found = _likest(child, parent)
        searched = _sums(child, parent, found)
        if aligned is None or _share(searched, threshold) > _share(aligned, threshold):
            order, sums = found, searched
    assert sums is not None
    alike = likeness(sums)
    matched = alike >= threshold
    share = matched.double().mean().item()
    return ExpertMatch(
        kind=_kind(share, child.units < parent.units, order is not None),
        units=child.units,
        parent_units=parent.units,
        matched=share,
        likeness=alike[matched].mean().item() if share else 0.0,
        aligned=None if aligned is None else {part: pearson(aligned[part]) for part in PARTS},
        correlation={part: pearson(sums[part]) for part in PARTS},
        scale={part: _slope(sums[part][matched]) for part in PARTS} if share else None,
        first_unit=_first_unit(order, matched),
    )


def least_likeness(hidden: int) -> float:
    """The likeness from which two units count as the same: six standard deviations of chance, and at least 0.25.

    The cosine of two random vectors of n entries has the standard deviation 1 / sqrt(n); here three are averaged.
    """
    return max(0.25, 6 / (3 * hidden) ** 0.5)


def row_sums(x: Tensor, y: Tensor, order: Tensor | None = None) -> Tensor:
    """fp64 [F, 6]: per row the count and the sums of x, y, x*x, y*y and x*y, which all figures come from.

    x: [F, H]; y: [F, H], or more rows of which `order` (int64 [F]) picks those to compare. Raises UserError when a
    sum is not finite.
    """
    sums = torch.empty(x.shape[0], 6, dtype=torch.float64)
    sums[:, 0] = x.shape[1]
    for rows in _blocks(x.shape[0]):
        a, b = x[rows].float(), y[rows if order is None else order[rows]].float()
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
    if var_x <= _FLAT * xx or var_y <= _FLAT * yy:
        return float(xx == yy == xy)
    return (xy - x * y / n) / (var_x * var_y) ** 0.5


def likeness(sums: Mapping[str, Tensor]) -> Tensor:
    """fp64 [F]: of each unit with its partner, the mean of the cosines of their three parts.

    Two parts that are zero are alike (1), a zero and another are not (0).
    """
    cosines = []
    for part in PARTS:
        _, _, _, xx, yy, xy = sums[part].unbind(1)
        cosines.append(torch.where(xx * yy > 0, xy / (xx * yy).sqrt(), (xx == yy).double()))
    return torch.stack(cosines).mean(0)


def _likest(child: FeedForward, parent: FeedForward) -> Tensor:
    """int64 [F]: for each unit of the child, the parent's unit with the likest sketch."""
    best = torch.empty(child.units, dtype=torch.int64)
    for rows in _blocks(child.units):
        best[rows] = (child.sketch[rows] @ parent.sketch.T).argmax(1)
    return best


def _sums(child: FeedForward, parent: FeedForward, order: Tensor | None) -> dict[str, Tensor]:
    return {part: row_sums(child.parts[part], parent.parts[part], order) for part in PARTS}


def _share(sums: Mapping[str, Tensor], threshold: float) -> float:
    return (likeness(sums) >= threshold).double().mean().item()


def _kind(share: float, narrower: bool, moved: bool) -> str:
    if share < RELATED:
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

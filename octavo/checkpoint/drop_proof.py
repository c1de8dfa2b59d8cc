"""The proof for Drop-Upcycling, whose child does not compute what its parent does.

Two comparisons. With the re-drawn hidden units put back from the parent, the child must equal it like any other: that
shows every kept unit and every other tensor to be the parent's. Then parent and child as stored: how far apart.
"""

from dataclasses import asdict, dataclass
from math import isfinite

import torch
from torch import Tensor

from octavo.checkpoint.card import percent
from octavo.checkpoint.expert_inits import dropped_units, unit_axis
from octavo.checkpoint.names import DENSE_NAMES, expert_of
from octavo.checkpoint.proof import Proof, compare
from octavo.checkpoint.source import Source
from octavo.errors import UserError
from octavo.progress import Progress, silent


@dataclass(frozen=True)
class DropProof(Proof):
    """A proof about the child with the parent's hidden units put back, and how far off the child is as stored.

    put_back_share: of each expert's hidden units. stored_...: differences of logits, which no bound is stated for.
    """

    put_back_share: float = 0.0
    stored_max_difference: float = 0.0
    stored_rms_difference: float = 0.0

    def summary(self) -> str:
        """What the terminal says: first that the two are not equal."""
        return (
            f"NOT the parent's function: {percent(self.put_back_share)} of each expert's hidden units are new, and "
            f"logits differ by up to {self.stored_max_difference:.2g} (RMS {self.stored_rms_difference:.2g}) on "
            f"{self.tokens} random ids. Proven: with the parent's units put back the difference is "
            f"{self.max_difference:.1e} (bound {self.max_bound:.0e})."
        )


def compare_restored(
    parent: Source,
    child: Source,
    share: float,
    seed: int,
    tokens: int,
    round_to: torch.dtype | None = None,
    progress: Progress = silent,
) -> DropProof:
    """Both comparisons; `share` and `seed` are those the child was made with, the rest as in `proof.compare`.

    Raises UserError when the child as stored computes values that are not finite.
    """
    restored = compare(parent, _Restored(parent, child, share, seed), seed, tokens, round_to, progress)
    stored = compare(parent, child, seed, tokens, round_to, progress)
    if not isfinite(stored.max_difference):
        raise UserError(f"{parent.label}: with new hidden units it computes values that are not finite; nothing was "
                        "written. Store it in a wider --dtype")  # fmt: skip
    return DropProof(
        **asdict(restored),
        put_back_share=share,
        stored_max_difference=stored.max_difference,
        stored_rms_difference=stored.rms_difference,
    )


class _Restored:
    """The child with its re-drawn hidden units taken from the parent."""

    def __init__(self, parent: Source, child: Source, share: float, seed: int) -> None:
        self._parent, self._child, self._share, self._seed = parent, child, share, seed
        self._last: dict[str, Tensor] = {}  # of each part, the parent's matrix that was used last
        self.config, self.label, self.licence, self.dtype = child.config, child.label, child.licence, child.dtype
        self.side_files, self.check = child.side_files, child.check

    def tensor(self, name: str) -> Tensor:
        value = self._child.tensor(name)
        if ".experts." not in name:
            return value
        layer, expert, part = expert_of(name)
        whole = self._whole(f"model.layers.{layer}.mlp.{DENSE_NAMES[part]}.weight", part)
        axis = unit_axis(part)
        units = dropped_units(whole.shape[axis], self._share, self._seed, layer, expert)
        return value.index_copy_(axis, units, whole.index_select(axis, units).to(value.dtype))

    def _whole(self, name: str, part: str) -> Tensor:
        if name not in self._last:
            self._last = {
                kept: tensor for kept, tensor in self._last.items() if kept.split(".")[2] == name.split(".")[2]
            }
            self._last[name] = self._parent.tensor(name)
        return self._last[name]

"""How the rows of a flat batch divide into sequences, and where each row stands in its own."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Packing:
    """Sequences laid end to end, without padding.

    query_lengths: rows each sequence contributes now. key_lengths: rows it can see, at least as many; the rest
    lies in a cache. positions: int64 [N], the place of each row in its own sequence, for the rotary embedding.
    """

    query_lengths: tuple[int, ...]
    key_lengths: tuple[int, ...]
    positions: Tensor

    @classmethod
    def from_lengths(
        cls, lengths: Sequence[int], cached: Sequence[int] | None = None, device: torch.device | str | None = None
    ) -> "Packing":
        """Sequences of `lengths` new rows, `cached[i]` rows of sequence i already in a cache (default none)."""
        cached = [0] * len(lengths) if cached is None else cached
        positions = [torch.arange(start, start + n) for start, n in zip(cached, lengths, strict=True)]
        totals = tuple(start + n for start, n in zip(cached, lengths, strict=True))
        flat = torch.cat(positions) if positions else torch.zeros(0, dtype=torch.int64)
        return cls(tuple(lengths), totals, flat.to(device))

    @classmethod
    def from_cu_seqlens(cls, cu_seqlens: Tensor) -> "Packing":
        """Whole documents from cumulative lengths: integer [documents + 1], starting at 0."""
        return cls.from_lengths(cu_seqlens.diff().tolist(), device=cu_seqlens.device)

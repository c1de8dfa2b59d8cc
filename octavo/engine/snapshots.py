"""Recurrent states outside of their slots: exact, or in int8 at a quarter of the bytes."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.engine.runner import Runner


@dataclass(frozen=True)
class Compressed:
    """States [layers, H, D, D] as int8, with a scale for each row of D numbers: within 1/254 of the row's largest."""

    values: NDArray[np.int8]
    scales: NDArray[np.float32]

    @property
    def nbytes(self) -> int:
        """Bytes of both arrays."""
        return self.values.nbytes + self.scales.nbytes

    @classmethod
    def of(cls, states: NDArray[np.float32]) -> "Compressed":
        """states: fp32 [..., D]."""
        scales = np.abs(states).max(-1, keepdims=True) / 127
        return cls(np.rint(states / np.where(scales > 0, scales, 1)).astype(np.int8), scales)

    def restored(self) -> NDArray[np.float32]:
        """The states, rounded."""
        return self.values * self.scales


class RunnerMemory:
    """A runner's memory as the scheduler uses it."""

    def __init__(self, runner: Runner, compress: bool = False) -> None:
        self._runner, self._compress = runner, compress

    def copy_page(self, source: int, target: int) -> None:
        """Copy a page's keys and values."""
        self._runner.copy_page(source, target)

    def save(self, slot: int, exact: bool = False) -> "NDArray[np.float32] | Compressed":
        """The states of a slot, `exact` even where snapshots are compressed."""
        states = self._runner.read_states(slot)
        return Compressed.of(states) if self._compress and not exact else states

    def restore(self, slot: int, states: Any, tokens: int) -> None:
        """Put states back, those after `tokens` tokens."""
        self._runner.write_states(slot, states.restored() if isinstance(states, Compressed) else states, tokens)

    def read_page(self, page: int) -> NDArray[np.uint8]:
        """A copy of a page's bytes."""
        return self._runner.read_page(page)

    def write_page(self, page: int, data: NDArray[np.uint8]) -> None:
        """Fill a page with what `read_page` gave."""
        self._runner.write_page(page, data)

    def to_bytes(self, states: "NDArray[np.float32] | Compressed") -> NDArray[np.uint8]:
        """What `save` gave, as bytes."""
        arrays: list[NDArray[Any]] = [states.values, states.scales] if isinstance(states, Compressed) else [states]
        return np.concatenate([array.reshape(-1).view(np.uint8) for array in arrays])

    def from_bytes(self, data: NDArray[np.uint8]) -> "NDArray[np.float32] | Compressed":
        """What `to_bytes` was given."""
        config = self._runner.config
        shape = (len(config.lightning_layers), config.num_heads, config.head_dim, config.head_dim)
        if not self._compress:
            return data.view(np.float32).reshape(shape)
        values, scales = np.split(data, [math.prod(shape)])
        return Compressed(values.view(np.int8).reshape(shape), scales.view(np.float32).reshape(*shape[:-1], 1))

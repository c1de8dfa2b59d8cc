"""What attention layers ask of a cache. The engine owns the implementation."""

from typing import Protocol

from torch import Tensor


class Cache(Protocol):
    """One step's view of the memory of its S sequences: keys and values of softmax layers, states of lightning layers.

    `layer` counts over all layers of the model.
    """

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store this step's rows [Q, Hk, D]; return all rows of every sequence of the step, [K, Hk, D]."""
        ...

    def states(self, layer: int) -> Tensor:
        """The state each sequence continues from, fp32 [S, H, Dk, Dv]: zeros for one that begins."""
        ...

    def store_states(self, layer: int, states: Tensor) -> None:
        """Keep the states after this step's last rows, fp32 [S, H, Dk, Dv]."""
        ...

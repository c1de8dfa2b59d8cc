"""Small modules that every decoder layer is built from."""

import torch
from torch import Tensor, nn

from octavo.ops.experts import swiglu
from octavo.ops.norm import rms_norm


class RMSNorm(nn.Module):
    """`ops.norm.rms_norm` with its weight."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., width]; same shape and dtype."""
        return rms_norm(x, self.weight, self.eps)


class DenseMLP(nn.Module):
    """SwiGLU feed-forward: down(silu(gate x) * up x), no biases (Shazeer 2020)."""

    def __init__(self, hidden: int, intermediate: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden, intermediate, bias=False)
        self.up_proj = nn.Linear(hidden, intermediate, bias=False)
        self.down_proj = nn.Linear(intermediate, hidden, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        """x: [N, H]; returns [N, H] and None, where a mixture returns its routing."""
        return self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x))), None

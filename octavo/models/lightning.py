"""Lightning attention as MiniMax-Text-01 has it (arXiv 2501.08313, section 2.2, and its released code)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from octavo.config import ModelConfig
from octavo.models.attention import Rotary
from octavo.models.cache import Cache
from octavo.models.layers import RMSNorm
from octavo.models.packing import Packing
from octavo.ops.linear_attention import decay_slopes, linear_attention

INNER_NORM_EPS = 1e-6  # a constant of MiniMax's code, whatever the config's rms_norm_eps (vLLM had 1e-5)


class LocalLinearAttention:
    """The lightning layers' inner call on one device. State passing between devices has the same method."""

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, slopes: Tensor, packing: Packing, initial: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """q, k, v: [N, H, D]; initial: fp32 [S, H, D, D]; returns fp32 [N, H, D] and the states [S, H, D, D]."""
        return linear_attention(q, k, v, slopes, packing.query_lengths, initial)


class LightningAttention(nn.Module):
    """Projections, norm and gate around `inner`, which may be replaced from outside. No rotary, no positions.

    Rows of `qkv_proj` are [q | k | v] of head 0, then of head 1, and so on.
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.num_layers, self.alibi = layer, config.num_layers, config.alibi_slopes
        self.num_heads, width = config.num_heads, config.num_heads * config.head_dim
        self.qkv_proj = nn.Linear(config.hidden_size, 3 * width, bias=False)
        self.output_gate = nn.Linear(config.hidden_size, width, bias=False)
        self.out_proj = nn.Linear(width, config.hidden_size, bias=False)
        self.norm = RMSNorm(width, INNER_NORM_EPS)
        self.inner = LocalLinearAttention()

    def slopes(self, device: torch.device | None = None) -> Tensor:
        """fp32 [H]. Computed at each use: a buffer would be cast to bf16 with the model, where many heads never decay,
        and left unfilled when a model built on the meta device is materialised."""
        return decay_slopes(self.num_heads, self.layer, self.num_layers, self.alibi, device)

    def forward(self, x: Tensor, rotary: Rotary, packing: Packing, cache: Cache | None) -> Tensor:
        """x: [N, H]; rotary is not used; returns [N, H]. From the inner call to the gate everything is fp32."""
        q, k, v = F.silu(self.qkv_proj(x)).unflatten(-1, (self.num_heads, 3, -1)).unbind(2)
        initial = None if cache is None else cache.states(self.layer)
        y, states = self.inner.attend(q, k, v, self.slopes(x.device), packing, initial)
        if cache is not None:
            cache.store_states(self.layer, states)
        # one norm over all heads together
        y = self.norm(y.flatten(-2)) * self.output_gate(x).sigmoid()
        return self.out_proj(y.to(x.dtype))

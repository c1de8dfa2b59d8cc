"""Softmax attention with grouped queries."""

from torch import Tensor, nn

from octavo.config import ModelConfig
from octavo.models.cache import Cache
from octavo.models.packing import Packing
from octavo.ops.attention import packed_attention
from octavo.ops.rotary import rotate

Rotary = tuple[Tensor, Tensor]


class LocalAttention:
    """The attention layers' inner call on one device. A ring over devices has the same method."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, packing: Packing, window: int | None) -> Tensor:
        """q: [Q, Hq, D]; k, v: [K, Hk, D]; returns [Q, Hq, D]."""
        return packed_attention(q, k, v, packing.query_lengths, packing.key_lengths, window)


class SoftmaxAttention(nn.Module):
    """Projections and rotary around `inner`, which may be replaced from outside."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.head_dim, self.window = layer, config.head_dim, config.sliding_window
        query, key = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, query, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, key, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, key, bias=False)
        self.o_proj = nn.Linear(query, config.hidden_size, bias=False)
        self.inner = LocalAttention()

    def forward(self, x: Tensor, rotary: Rotary, packing: Packing, cache: Cache | None) -> Tensor:
        """x: [N, H]; rotary: cos and sin [N, dim/2]; returns [N, H]. Keys are cached after the rotation."""
        q, k, v = (proj(x).unflatten(-1, (-1, self.head_dim)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        q, k = rotate(q, *rotary), rotate(k, *rotary)
        if cache is not None:
            k, v = cache.update(self.layer, k, v)
        return self.o_proj(self.inner.attend(q, k, v, packing, self.window).flatten(-2))

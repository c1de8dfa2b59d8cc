"""The shape of a decoder: a layer pattern (attention kind x feed-forward kind) and its widths."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from octavo.config.reader import require
from octavo.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class LayerSpec:
    """One place in the layer pattern: which attention, which feed-forward."""

    attention: Literal["softmax", "lightning"] = "softmax"
    mlp: Literal["dense", "experts"] = "dense"


@dataclass(frozen=True, kw_only=True)
class RopeConfig:
    """Rotary position embedding: base, rotated width per head (its first `dim` entries), optional frequency scaling.

    `scaling` is None, {"rope_type": "linear", "factor": f} or Llama 3's {"rope_type": "llama3", "factor",
    "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}.
    """

    theta: float
    dim: int
    scaling: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class ResidualConfig:
    """How sub-layers join the stream: alpha * r + beta * f(norm(x)); each pair is (alpha, beta).

    r is x itself, or norm(x) with `post_norm`: the shifted form of DeepNorm that MiniMax-Text-01 has (arXiv
    2501.08313, section 4.2, and its released code). The defaults are the plain pre-norm residual.
    """

    post_norm: bool = False
    softmax: tuple[float, float] = (1.0, 1.0)
    lightning: tuple[float, float] = (1.0, 1.0)
    mlp: tuple[float, float] = (1.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shape of one decoder. Raises UserError at construction for a field that cannot be right."""

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    layers: tuple[LayerSpec, ...]
    rope: RopeConfig
    max_positions: int
    norm_eps: float
    residual: ResidualConfig = field(default=ResidualConfig())
    sliding_window: int | None = None
    tie_embeddings: bool = False
    num_experts: int = 0
    top_k: int = 0
    shared_intermediate_size: int = 0
    router_aux_loss_coef: float = 0.001
    initializer_range: float = 0.02
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    pad_token_id: int | None = None

    def __post_init__(self) -> None:
        # messages use the names of config.json, which is where the value nearly always comes from
        positive = {
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "max_position_embeddings": self.max_positions,
            "rms_norm_eps": self.norm_eps,
        }
        for name, value in positive.items():
            require(value > 0, name, value, "it must be above 0")
        require(len(self.layers) > 0, "num_hidden_layers", 0, "it must be above 0")
        require(self.num_heads % self.num_kv_heads == 0, "num_key_value_heads", self.num_kv_heads,
                 f"it must divide num_attention_heads ({self.num_heads})")  # fmt: skip
        rotary_ok = 0 < self.rope.dim <= self.head_dim and self.rope.dim % 2 == 0
        require(rotary_ok, "rotary dim", self.rope.dim, f"it must be even and at most head_dim ({self.head_dim})")
        window = self.sliding_window
        require(window is None or window > 0, "sliding_window", window, "it must be above 0 or null")
        if self.has_experts:
            require(self.num_experts > 0, "num_local_experts", self.num_experts, "it must be above 0")
            if not 0 < self.top_k <= self.num_experts:
                raise UsageError(
                    f"num_experts_per_tok (top-k) is {self.top_k}: it must be between 1 and the number of experts "
                    f"({self.num_experts})"
                )

    @property
    def num_layers(self) -> int:
        """Number of layers in the pattern."""
        return len(self.layers)

    @property
    def has_experts(self) -> bool:
        """Whether any layer routes tokens to experts."""
        return any(layer.mlp == "experts" for layer in self.layers)

    @property
    def softmax_layers(self) -> tuple[int, ...]:
        """Indices of the layers that keep keys and values, in order."""
        return tuple(i for i, layer in enumerate(self.layers) if layer.attention == "softmax")

    @property
    def lightning_layers(self) -> tuple[int, ...]:
        """Indices of the layers that keep a recurrent state, in order."""
        return tuple(i for i, layer in enumerate(self.layers) if layer.attention == "lightning")

    @property
    def alibi_slopes(self) -> bool:
        """Which slopes lightning layers have where the number of heads is no power of two: ALiBi's (MiniMax's own
        code), or 2^(-8h/H) for any H (transformers' `minimax`)."""
        return self.family != "minimax"

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """End tokens as a tuple, empty when the config names none."""
        eos = self.eos_token_id
        return () if eos is None else (eos,) if isinstance(eos, int) else tuple(eos)

"""What a model is: the dataclasses every room reads, and Hugging Face's config.json in and out.

A `ModelConfig` is a layer pattern (attention kind x feed-forward kind) and its widths. `from_hf` refuses
every field that would change the maths and that the decoder does not compute, because a model that loads
and is silently wrong costs its user more than one that does not load.
"""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from octavo.errors import UsageError, UserError

logger = logging.getLogger(__name__)

MAX_LAYERS = 10_000  # far above any model; a damaged count must not fill the memory
FAMILIES = ("llama", "mistral", "mixtral")
ARCHITECTURES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "mixtral": "MixtralForCausalLM"}

# Defaults of transformers 5.18's config classes: what a field means when the file leaves it out.
_FAMILY_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {"max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "rope_theta": 1e4},
    "mistral": {"max_position_embeddings": 131072, "rms_norm_eps": 1e-6, "rope_theta": 1e4,
                "num_key_value_heads": 8, "sliding_window": 4096},
    "mixtral": {"max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 1e6,
                "num_key_value_heads": 8, "sliding_window": None},
}  # fmt: skip

# Fields that change the maths of a Llama-type model, with the only values under which they do not.
_MUST_BE: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"),
    "is_causal": (True, None),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "qkv_bias": (False, None),
    "use_qk_norm": (False, None),
    "partial_rotary_factor": (1, 1.0, None),
    "quantization_config": (None,),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "logits_scaling": (1, 1.0, None),
    "embedding_multiplier": (1, 1.0, None),
    "residual_multiplier": (1, 1.0, None),
    "attention_multiplier": (None,),
    "router_jitter_noise": (0, 0.0, None),
}


def home() -> Path:
    """Where octavo keeps models it made itself: $OCTAVO_HOME, else `octavo` in the XDG data directory."""
    if own := os.environ.get("OCTAVO_HOME"):
        return Path(own).expanduser()
    shared = os.environ.get("XDG_DATA_HOME")
    return (Path(shared) if shared else Path.home() / ".local" / "share") / "octavo"


@dataclass(frozen=True, kw_only=True)
class LayerSpec:
    """One place in the layer pattern: which attention, which feed-forward."""

    attention: Literal["softmax"] = "softmax"
    mlp: Literal["dense", "experts"] = "dense"


@dataclass(frozen=True, kw_only=True)
class RopeConfig:
    """Rotary position embedding: base, rotated width per head, and an optional frequency scaling.

    `scaling` is None, {"rope_type": "linear", "factor": f} or Llama 3's {"rope_type": "llama3", "factor",
    "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}.
    """

    theta: float
    dim: int
    scaling: Mapping[str, Any] | None = None


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
            _require(value > 0, name, value, "it must be above 0")
        _require(len(self.layers) > 0, "num_hidden_layers", 0, "it must be above 0")
        _require(self.num_heads % self.num_kv_heads == 0, "num_key_value_heads", self.num_kv_heads,
                 f"it must divide num_attention_heads ({self.num_heads})")  # fmt: skip
        rotary_ok = 0 < self.rope.dim <= self.head_dim and self.rope.dim % 2 == 0
        _require(rotary_ok, "rotary dim", self.rope.dim, f"it must be even and at most head_dim ({self.head_dim})")
        window = self.sliding_window
        _require(window is None or window > 0, "sliding_window", window, "it must be above 0 or null")
        if self.has_experts:
            _require(self.num_experts > 0, "num_local_experts", self.num_experts, "it must be above 0")
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
    def eos_token_ids(self) -> tuple[int, ...]:
        """End tokens as a tuple, empty when the config names none."""
        eos = self.eos_token_id
        return () if eos is None else (eos,) if isinstance(eos, int) else tuple(eos)


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How one request wants its tokens chosen. Temperature 0 is greedy. Raises UsageError on nonsense."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = field(default=())
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            raise UsageError(f"stop is {self.stop!r}: it must be a sequence of strings")
        checks = (
            ("seed", self.seed is None or self.seed >= 0, "it must be 0 or above"),
            ("max_new_tokens", self.max_new_tokens >= 1, "it must be at least 1"),
            ("temperature", 0.0 <= self.temperature <= 100.0, "it must be between 0 (greedy) and 100"),
            ("top_k", self.top_k >= 0, "it must be 0 (off) or above"),
            ("top_p", 0.0 < self.top_p <= 1.0, "it must be above 0 and at most 1"),
            ("stop", all(self.stop), "a stop string must not be empty"),
        )
        for name, good, remedy in checks:
            if not good:
                raise UsageError(f"{name} is {getattr(self, name)!r}: {remedy}")


def from_hf(hf: Mapping[str, Any], where: str = "config.json") -> ModelConfig:
    """ModelConfig of a Hugging Face config.json (Llama, Mistral or Mixtral; v4 and v5 spellings).

    `where` names the file in messages. Raises UserError for a model_type we do not know, a field that changes
    the maths in a way the decoder does not compute, a missing field or a value of the wrong kind.
    """
    try:
        return _from_hf(hf, where)
    except UserError as error:
        raise type(error)(f"{where}: {error}") from None


def _from_hf(hf: Mapping[str, Any], where: str) -> ModelConfig:
    if not isinstance(hf, Mapping):
        raise UserError(f"expected a JSON object, found {type(hf).__name__}")
    family = _family(hf, where)
    for name, allowed in _MUST_BE.items():
        if name in hf and hf[name] not in allowed:
            raise UserError(f"{name} is {hf[name]!r}, which octavo does not compute for {family} models")
    kinds = set(map(str, hf.get("layer_types") or ()))
    if len(kinds) > 1 or (kinds == {"full_attention"} and hf.get("sliding_window")):
        raise UserError(
            f"layer_types {sorted(kinds)} departs from sliding_window, which no {family} model of ours does"
        )
    read = _Reader({**_FAMILY_DEFAULTS[family], **hf})
    heads, hidden = read.integer("num_attention_heads"), read.integer("hidden_size")
    head_dim = read.integer("head_dim", hidden // max(heads, 1))
    experts = family == "mixtral"
    depth = read.integer("num_hidden_layers")
    _require(0 < depth <= MAX_LAYERS, "num_hidden_layers", depth, f"it must be between 1 and {MAX_LAYERS}")
    return ModelConfig(
        family=family,
        vocab_size=read.integer("vocab_size"),
        hidden_size=hidden,
        intermediate_size=read.integer("intermediate_size"),
        num_heads=heads,
        num_kv_heads=read.integer("num_key_value_heads", heads),
        head_dim=head_dim,
        layers=(LayerSpec(mlp="experts" if experts else "dense"),) * depth,
        rope=_rope(read, head_dim),
        max_positions=read.integer("max_position_embeddings"),
        norm_eps=read.number("rms_norm_eps"),
        # transformers' Llama has no window whatever the file says
        sliding_window=None if family == "llama" else read.optional_integer("sliding_window"),
        tie_embeddings=read.boolean("tie_word_embeddings", False),
        num_experts=read.integer("num_local_experts", read.integer("num_experts", 8)) if experts else 0,
        top_k=read.integer("num_experts_per_tok", 2) if experts else 0,
        router_aux_loss_coef=read.number("router_aux_loss_coef", 0.001),
        initializer_range=read.number("initializer_range", 0.02),
        bos_token_id=read.token_id("bos_token_id"),
        eos_token_id=_eos(hf.get("eos_token_id")),
        pad_token_id=read.token_id("pad_token_id"),
    )


def to_hf(config: ModelConfig, dtype: str = "float32") -> dict[str, Any]:
    """config.json content that transformers (v4 and v5), vLLM and llama.cpp's converter read.

    Raises UserError for a decoder that no Hugging Face family can express.
    """
    kinds = set(config.layers)
    expected = {LayerSpec(mlp="experts" if config.family == "mixtral" else "dense")}
    if kinds != expected or config.rope.dim != config.head_dim or config.shared_intermediate_size:
        raise UserError(
            f"a {config.family} config.json cannot express this layer pattern, rotary width or shared expert"
        )
    eos = config.eos_token_id
    hf: dict[str, Any] = {
        "architectures": [ARCHITECTURES[config.family]],
        "model_type": config.family,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope.theta,
        "rope_scaling": dict(config.rope.scaling) if config.rope.scaling else None,
        "tie_word_embeddings": config.tie_embeddings,
        "initializer_range": config.initializer_range,
        "attention_dropout": 0.0,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": list(eos) if isinstance(eos, tuple) else eos,
        "pad_token_id": config.pad_token_id,
        "torch_dtype": dtype,
        "use_cache": True,
    }
    if config.family == "llama":
        hf |= {"attention_bias": False, "mlp_bias": False}
    else:
        hf["sliding_window"] = config.sliding_window
    if config.family == "mixtral":
        hf |= {
            "num_local_experts": config.num_experts,
            "num_experts_per_tok": config.top_k,
            "router_aux_loss_coef": config.router_aux_loss_coef,
            "output_router_logits": False,
        }
    return hf


def _require(good: bool, name: str, value: object, remedy: str) -> None:
    if not good:
        raise UserError(f"{name} is {value!r}: {remedy}")


def _family(hf: Mapping[str, Any], where: str) -> str:
    family = hf.get("model_type")
    if family in FAMILIES:
        if "auto_map" in hf:
            logger.warning("%s: auto_map is ignored; octavo has its own %s and never runs code from a checkpoint",
                           where, family)  # fmt: skip
        return str(family)
    code = " It brings its own code (auto_map), which octavo never runs." if "auto_map" in hf else ""
    raise UserError(f"model_type {family!r} is not supported (known: {', '.join(FAMILIES)}).{code}")


def _rope(read: "_Reader", head_dim: int) -> RopeConfig:
    """v4 keeps rope_theta and rope_scaling apart; v5 folds both into rope_parameters."""
    older, newer = (_object(read.values.get(name), name) for name in ("rope_scaling", "rope_parameters"))
    if older and newer and any(older.get(name, value) != value for name, value in newer.items()):
        raise UserError("rope_scaling and rope_parameters contradict each other: keep one of them")
    scaling = {**older, **newer}
    kind = scaling.get("rope_type", "default")
    numbers = _Reader({"rope_theta": read.values["rope_theta"], **scaling})
    if scaling.get("partial_rotary_factor", 1) != 1:
        raise UserError(f"partial_rotary_factor is {scaling['partial_rotary_factor']!r}: only 1 is supported")
    needed = {
        "default": (),
        "linear": ("factor",),
        "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    }
    if not isinstance(kind, str) or kind not in needed:
        raise UserError(f"rope_scaling type {kind!r} is not supported (known: {', '.join(needed)})")
    if kind == "llama3" and "original_max_position_embeddings" in read.values:
        raise UserError("original_max_position_embeddings stands outside rope_scaling: move it inside")
    kept = {"rope_type": kind, **{name: numbers.positive(name) for name in needed[kind]}}
    return RopeConfig(theta=numbers.positive("rope_theta"), dim=head_dim, scaling=None if kind == "default" else kept)


def _object(value: object, name: str) -> dict[str, Any]:
    if value is not None and not isinstance(value, Mapping):
        raise UserError(f"{name} is {value!r}: expected an object or null")
    fields = dict(value or {})
    if "type" in fields:  # its name before transformers 4.45
        fields.setdefault("rope_type", fields.pop("type"))
    return fields


def _eos(value: object) -> int | tuple[int, ...] | None:
    items: list[Any] = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(item, int) and not isinstance(item, bool) for item in items):
        raise UserError(f"eos_token_id is {value!r}: expected an integer or a list of integers")
    ids = tuple(int(item) for item in items if item >= 0)  # -1 is "none" in old Llama configs
    if not ids:
        return None
    return ids if isinstance(value, list) else ids[0]


_MISSING = object()


class _Reader:
    """Typed look-ups in a config dict, with messages that name field and value."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values

    def integer(self, name: str, default: object = _MISSING) -> int:
        value = self.values.get(name)
        value = default if value is None else value
        if value is _MISSING:
            raise UserError(f"the field {name!r} is missing")
        if not isinstance(value, int) or isinstance(value, bool):
            raise UserError(f"{name} is {value!r}: expected an integer")
        return value

    def optional_integer(self, name: str) -> int | None:
        return None if self.values.get(name) is None else self.integer(name)

    def number(self, name: str, default: float | None = None) -> float:
        value = self.values.get(name, default)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise UserError(f"{name} is {value!r}: expected a number")
        return float(value)

    def positive(self, name: str) -> float:
        if not 0 < self.number(name) < float("inf"):
            raise UserError(f"{name} is {self.values[name]!r}: it must be a number above 0")
        value: float = self.values[name]  # as written: transformers wants the integers among them back as integers
        return value

    def boolean(self, name: str, default: bool) -> bool:
        value = self.values.get(name)
        if value is not None and not isinstance(value, bool):
            raise UserError(f"{name} is {value!r}: expected true or false")
        return default if value is None else value

    def token_id(self, name: str) -> int | None:
        value = self.optional_integer(name)
        return value if value is not None and value >= 0 else None

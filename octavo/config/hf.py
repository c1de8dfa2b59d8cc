"""Hugging Face's config.json in and out.

`from_hf` refuses every field that would change the maths and that the decoder does not compute, because a model that
loads and is silently wrong costs its user more than one that does not load.
"""

import logging
from collections.abc import Mapping
from typing import Any, Literal

from octavo.config import minimax
from octavo.config.model import LayerSpec, ModelConfig, ResidualConfig, RopeConfig
from octavo.config.quantization import quantization_bits
from octavo.config.reader import Reader, require
from octavo.errors import UserError

logger = logging.getLogger(__name__)

MAX_LAYERS = 10_000  # far above any model; a damaged count must not fill the memory
ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "minimax": "MiniMaxForCausalLM",
    "minimax_text_01": "MiniMaxText01ForCausalLM",
}
FAMILIES = tuple(ARCHITECTURES)
WITH_EXPERTS = ("mixtral", *minimax.LAYOUTS)
_ALIASES = {"MiniMaxText01": "minimax_text_01"}  # as MiniMax's configuration class calls itself

# Defaults of transformers 5.18's config classes and MiniMax's own: what a field means when the file leaves it out.
_FAMILY_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {"max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "rope_theta": 1e4},
    "mistral": {"max_position_embeddings": 131072, "rms_norm_eps": 1e-6, "rope_theta": 1e4,
                "num_key_value_heads": 8, "sliding_window": 4096},
    "mixtral": {"max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 1e6,
                "num_key_value_heads": 8, "sliding_window": None},
    **{layout: {"max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 1e6, "num_key_value_heads": 8}
       for layout in minimax.LAYOUTS},
}  # fmt: skip

# Fields that change the maths, with the only values under which they do not.
_MUST_BE: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"),
    "is_causal": (True, None),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "qkv_bias": (False, None),
    "use_qk_norm": (False, None),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "logits_scaling": (1, 1.0, None),
    "embedding_multiplier": (1, 1.0, None),
    "residual_multiplier": (1, 1.0, None),
    "attention_multiplier": (None,),
    "router_jitter_noise": (0, 0.0, None),
}


def from_hf(hf: Mapping[str, Any], where: str = "config.json") -> ModelConfig:
    """ModelConfig of a config.json (Llama, Mistral, Mixtral, MiniMax-Text-01; v4 and v5 spellings).

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
    quantization_bits(hf)  # of the weights, not of the shape: refused where they cannot be read
    read = Reader({**_FAMILY_DEFAULTS[family], **hf})
    heads, hidden = read.integer("num_attention_heads"), read.integer("hidden_size")
    head_dim = read.integer("head_dim", hidden // max(heads, 1))
    experts, hybrid = family in WITH_EXPERTS, family in minimax.LAYOUTS
    mlp: Literal["dense", "experts"] = "experts" if experts else "dense"
    depth = read.integer("num_hidden_layers")
    require(0 < depth <= MAX_LAYERS, "num_hidden_layers", depth, f"it must be between 1 and {MAX_LAYERS}")
    pattern = minimax.read_pattern(read, family, depth) if hybrid else _softmax_only(hf, family, depth)
    return ModelConfig(
        family=family,
        vocab_size=read.integer("vocab_size"),
        hidden_size=hidden,
        intermediate_size=read.integer("intermediate_size"),
        num_heads=heads,
        num_kv_heads=read.integer("num_key_value_heads", heads),
        head_dim=head_dim,
        layers=tuple(LayerSpec(attention=attention, mlp=mlp) for attention in pattern),
        rope=_rope(read, head_dim, hybrid),
        max_positions=read.integer("max_position_embeddings"),
        norm_eps=read.number("rms_norm_eps"),
        residual=minimax.read_residual(read, family) if hybrid else ResidualConfig(),
        # transformers' Llama has no window whatever the file says
        sliding_window=None if family == "llama" else read.optional_integer("sliding_window"),
        tie_embeddings=read.boolean("tie_word_embeddings", False),
        num_experts=read.integer("num_local_experts", read.integer("num_experts", 8)) if experts else 0,
        top_k=read.integer("num_experts_per_tok", 2) if experts else 0,
        shared_intermediate_size=minimax.read_shared_width(read, family) if hybrid else 0,
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
    _check_expressible(config)
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
    if config.family in WITH_EXPERTS:
        hf |= {
            "num_local_experts": config.num_experts,
            "num_experts_per_tok": config.top_k,
            "router_aux_loss_coef": config.router_aux_loss_coef,
            "output_router_logits": False,
        }
    return hf | minimax.write_fields(config) if config.family in minimax.LAYOUTS else hf


def _check_expressible(config: ModelConfig) -> None:
    """Raise UserError for a decoder that its family's config.json has no fields for."""
    hybrid = config.family in minimax.LAYOUTS
    mlp = "experts" if config.family in WITH_EXPERTS else "dense"
    plain = config.rope.dim == config.head_dim and not config.shared_intermediate_size and not config.lightning_layers
    plain = plain and config.residual == ResidualConfig()
    if not (plain or hybrid) or any(layer.mlp != mlp for layer in config.layers):
        raise UserError(
            f"a {config.family} config.json cannot express this layer pattern, residual, rotary width or shared expert"
        )


def _softmax_only(hf: Mapping[str, Any], family: str, depth: int) -> list[minimax.Attention]:
    """The pattern of a family that has no other attention; a file may still describe its windows layer by layer."""
    kinds = set(map(str, hf.get("layer_types") or ()))
    if len(kinds) > 1 or (kinds == {"full_attention"} and hf.get("sliding_window")):
        raise UserError(
            f"layer_types {sorted(kinds)} departs from sliding_window, which no {family} model of ours does"
        )
    return ["softmax"] * depth


def _family(hf: Mapping[str, Any], where: str) -> str:
    family = hf.get("model_type")
    family = _ALIASES.get(str(family), family)
    if family in FAMILIES:
        if "auto_map" in hf:
            logger.warning("%s: auto_map is ignored; octavo has its own %s and never runs code from a checkpoint",
                           where, family)  # fmt: skip
        return str(family)
    code = " It brings its own code (auto_map), which octavo never runs." if "auto_map" in hf else ""
    raise UserError(f"model_type {family!r} is not supported (known: {', '.join(FAMILIES)}).{code}")


def _rope(read: Reader, head_dim: int, partial: bool) -> RopeConfig:
    """v4 keeps rope_theta and rope_scaling apart; v5 folds both into rope_parameters."""
    older, newer = (_object(read.values.get(name), name) for name in ("rope_scaling", "rope_parameters"))
    if older and newer and any(older.get(name, value) != value for name, value in newer.items()):
        raise UserError("rope_scaling and rope_parameters contradict each other: keep one of them")
    scaling = {**older, **newer}
    kind = scaling.get("rope_type", "default")
    numbers = Reader({"rope_theta": read.values["rope_theta"], **scaling})
    factor = scaling.get("partial_rotary_factor", read.values.get("partial_rotary_factor"))
    require(partial or factor in (1, None), "partial_rotary_factor", factor, "only 1 is supported for this model_type")
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
    return RopeConfig(
        theta=numbers.positive("rope_theta"),
        dim=minimax.read_rotary_dim(read, scaling, head_dim) if partial else head_dim,
        scaling=None if kind == "default" else kept,
    )


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

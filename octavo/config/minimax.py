"""What only MiniMax-Text-01's config.json has, in its two layouts.

`minimax_text_01` is MiniMax's own (`attn_type_list`, `layernorm_*`, `postnorm`), `minimax` is transformers'
(`layer_types`, `*_factor`, always post-norm). The weights and their names are the same. Trap: transformers ignores
`rotary_dim` and rotates whole heads, so what it computes for the released weights is wrong; here `rotary_dim` counts in
both layouts, and without it whole heads are rotated.
"""

import logging
from collections.abc import Mapping
from typing import Any, Literal

from octavo.config.model import ModelConfig, ResidualConfig
from octavo.config.reader import Reader, require
from octavo.errors import UserError

logger = logging.getLogger(__name__)

LAYOUTS = ("minimax_text_01", "minimax")
Attention = Literal["softmax", "lightning"]

# how each layout writes the pattern: its field, and its word for each kind
_PATTERN: dict[str, tuple[str, dict[Attention, int | str]]] = {
    "minimax_text_01": ("attn_type_list", {"lightning": 0, "softmax": 1}),
    "minimax": ("layer_types", {"lightning": "linear_attention", "softmax": "full_attention"}),
}
# and the alpha and beta of each kind of sub-layer
_RESIDUAL: dict[str, dict[str, tuple[str, str]]] = {
    "minimax_text_01": {
        kind: (f"layernorm_{name}_alpha", f"layernorm_{name}_beta")
        for kind, name in (("softmax", "full_attention"), ("lightning", "linear_attention"), ("mlp", "mlp"))
    },
    "minimax": {
        kind: (f"{name}_alpha_factor", f"{name}_beta_factor")
        for kind, name in (("softmax", "full_attn"), ("lightning", "linear_attn"), ("mlp", "mlp"))
    },
}


def read_pattern(read: Reader, layout: str, depth: int) -> list[Attention]:
    """Attention kind of each of `depth` layers. Raises UserError for a missing, impossible or ambiguous pattern."""
    pattern = _pattern(read, layout, depth)
    other = _PATTERN[_other(layout)][0]
    if read.values.get(other) is not None and _pattern(read, _other(layout), depth) != pattern:
        raise UserError(f"{other} contradicts {_PATTERN[layout][0]}, which counts for model_type {layout}: remove it")
    return pattern


def _pattern(read: Reader, layout: str, depth: int) -> list[Attention]:
    field, words = _PATTERN[layout]
    kinds = {word: kind for kind, word in words.items()}
    pattern = read.values.get(field)
    if not isinstance(pattern, list):
        # transformers would assume a pattern that no released model has
        raise UserError(f"{field} is {pattern!r}: expected a list of {_choice(kinds)}, one a layer")
    require(len(pattern) == depth, f"the length of {field}", len(pattern), f"num_hidden_layers is {depth}")
    for layer, word in enumerate(pattern):
        known = isinstance(word, int | str) and not isinstance(word, bool) and word in kinds
        require(known, f"{field}[{layer}]", word, f"it must be {_choice(kinds)}")
    return [kinds[word] for word in pattern]


def read_residual(read: Reader, layout: str) -> ResidualConfig:
    """How sub-layers join the stream. Defaults are those of the code each layout belongs to."""
    official = layout == "minimax_text_01"
    post_norm = read.boolean("postnorm", not official)
    require(post_norm or official, "postnorm", post_norm, "transformers' minimax is always post-norm")
    scales: dict[str, tuple[float, float]] = {}
    for kind, names in _RESIDUAL[layout].items():
        alpha, beta = (read.finite(name, 1.0) for name in names)
        scales[kind] = alpha, beta
        for name, value, other in zip(names, (alpha, beta), _RESIDUAL[_other(layout)][kind], strict=True):
            given = read.finite(other, value)
            require(given == value, other, given, f"for model_type {layout} this is {name}, which is {value}")
    return ResidualConfig(post_norm=post_norm, **scales)


def read_shared_width(read: Reader, layout: str) -> int:
    """Hidden width of the shared expert, 0 for none. Raises UserError where the layout has none, or another mix."""
    width = read.integer("shared_intermediate_size", 0)
    require(width >= 0, "shared_intermediate_size", width, "it must be 0 (no shared expert) or above")
    if width:
        mode = read.values.get("shared_moe_mode", "sigmoid")
        require(layout == "minimax_text_01", "shared_intermediate_size", width, "transformers' minimax has none")
        require(mode == "sigmoid", "shared_moe_mode", mode, "only 'sigmoid' is computed")
    return width


def read_rotary_dim(read: Reader, rope: Mapping[str, Any], head_dim: int) -> int:
    """Rotated entries of each head: `rotary_dim`, or `partial_rotary_factor` of a head, or all of it.

    Either may stand at the top or in `rope`, the object of rotary's parameters; all that are there must agree.
    """
    said: list[tuple[str, float]] = []
    for values in (read.values, rope):
        if values.get("rotary_dim") is not None:
            said.append(("rotary_dim", Reader(values).integer("rotary_dim")))
        if values.get("partial_rotary_factor") is not None:
            factor = Reader(values).positive("partial_rotary_factor")
            said.append((f"partial_rotary_factor {factor} of head_dim {head_dim}", factor * head_dim))
    for what, width in said:
        if width != said[0][1] or width != int(width):
            raise UserError(f"{said[0][0]} is {said[0][1]:g} and {what} is {width:g}: they must be one whole number")
    return int(said[0][1]) if said else head_dim


def write_fields(config: ModelConfig) -> dict[str, Any]:
    """The fields of `config` that only this layout has. Raises UserError for what it cannot express."""
    layout, residual = config.family, config.residual
    official = layout == "minimax_text_01"
    if not official and (config.shared_intermediate_size or not residual.post_norm):
        raise UserError("transformers' minimax has neither a shared expert nor a pre-norm residual")
    if not official and config.rope.dim != config.head_dim:
        rotated = f"{config.rope.dim} of {config.head_dim}"
        logger.warning("transformers' minimax ignores rotary_dim (%s): it computes something else from this", rotated)
    field, words = _PATTERN[layout]
    fields: dict[str, Any] = {field: [words[layer.attention] for layer in config.layers]}
    for kind, (alpha, beta) in _RESIDUAL[layout].items():
        fields[alpha], fields[beta] = getattr(residual, kind)
    fields["rotary_dim"] = config.rope.dim
    if official:
        shared = {"shared_intermediate_size": config.shared_intermediate_size, "shared_moe_mode": "sigmoid"}
        return fields | {"postnorm": residual.post_norm} | shared
    return fields | {"block_size": 256}


def _other(layout: str) -> str:
    return LAYOUTS[1 - LAYOUTS.index(layout)]


def _choice(kinds: Mapping[int | str, Attention]) -> str:
    return " or ".join(f"{word!r} ({kind})" for word, kind in kinds.items())

"""Tensor names: one table per family, read both ways.

The canonical names are those of Hugging Face's files with one tensor per expert (`...experts.3.w1.weight`).
Every source presents itself under them and every writer writes them, so each conversion is told once.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from octavo.config import FormBits, ModelConfig

DENSE_NAMES = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}  # an expert's matrices, as dense layers call them
Index = tuple[Any, ...]  # how a tensor lies inside a larger one: expert number and rows; () is the whole


@dataclass(frozen=True)
class TensorEntry:
    """One canonical tensor: its shape, the decoder parameter (and part of it) it fills, and the name (same part)
    transformers v5 gives it when experts are saved fused."""

    shape: tuple[int, ...]
    parameter: str
    index: Index = ()
    fused_name: str | None = None


def tensor_table(config: ModelConfig) -> dict[str, TensorEntry]:
    """Every canonical tensor of a model, in file order: embeddings, layers, final norm, head."""
    hidden = config.hidden_size
    table = {"model.embed_tokens.weight": TensorEntry((config.vocab_size, hidden), "embed.weight")}
    for layer in range(config.num_layers):
        table.update(_layer_entries(config, layer))
    table["model.norm.weight"] = TensorEntry((hidden,), "norm.weight")
    if not config.tie_embeddings:
        table["lm_head.weight"] = TensorEntry((config.vocab_size, hidden), "lm_head.weight")
    return table


def expert_of(name: str) -> tuple[int, int, str]:
    """(layer, expert, w1 | w3 | w2) of `model.layers.{layer}.block_sparse_moe.experts.{expert}.{part}.weight`."""
    _, _, layer, _, _, expert, part, _ = name.split(".")
    return int(layer), int(expert), part


def is_quantized_name(name: str) -> bool:
    """Whether a canonical tensor is quantised where a model is: every matrix but routers and shared experts' gates."""
    part = name.split(".")[-2]
    return not (part.endswith("norm") or part in ("gate", "coefficient"))


def matrix_bits(name: str, bits: FormBits) -> FormBits:
    """Bits of a canonical matrix in a model whose form is `bits`: in 4 bits, embedding and head have 8.

    They are read by every token, and rounding them costs most: 40 % of what int4 adds to SmolLM2-135M's perplexity.
    """
    return 8 if bits == 4 and name in ("model.embed_tokens.weight", "lm_head.weight") else bits


def _layer_entries(config: ModelConfig, layer: int) -> Iterator[tuple[str, TensorEntry]]:
    theirs, ours = f"model.layers.{layer}.", f"layers.{layer}."
    spec, hidden = config.layers[layer], config.hidden_size
    yield f"{theirs}input_layernorm.weight", TensorEntry((hidden,), f"{ours}attention_norm.weight")
    shapes = _softmax_shapes(config) if spec.attention == "softmax" else _lightning_shapes(config)
    for name, shape in shapes.items():
        yield f"{theirs}self_attn.{name}.weight", TensorEntry(shape, f"{ours}attention.{name}.weight")
    yield f"{theirs}post_attention_layernorm.weight", TensorEntry((hidden,), f"{ours}mlp_norm.weight")
    feed_forward = _dense_entries if spec.mlp == "dense" else _expert_entries
    yield from feed_forward(config, theirs, ours)


def _softmax_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    hidden, query, key = config.hidden_size, config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    return {"q_proj": (query, hidden), "k_proj": (key, hidden), "v_proj": (key, hidden), "o_proj": (hidden, query)}


def _lightning_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    hidden, inner = config.hidden_size, config.num_heads * config.head_dim
    return {"qkv_proj": (3 * inner, hidden), "output_gate": (inner, hidden), "out_proj": (hidden, inner),
            "norm": (inner,)}  # fmt: skip


def _dense_entries(config: ModelConfig, theirs: str, ours: str) -> Iterator[tuple[str, TensorEntry]]:
    for name, shape in _swiglu_shapes(config.hidden_size, config.intermediate_size):
        yield f"{theirs}mlp.{name}.weight", TensorEntry(shape, f"{ours}mlp.{name}.weight")


def _swiglu_shapes(hidden: int, inner: int) -> tuple[tuple[str, tuple[int, int]], ...]:
    return ("gate_proj", (inner, hidden)), ("up_proj", (inner, hidden)), ("down_proj", (hidden, inner))


def _expert_entries(config: ModelConfig, theirs: str, ours: str) -> Iterator[tuple[str, TensorEntry]]:
    inner, hidden = config.intermediate_size, config.hidden_size
    router = TensorEntry((config.num_experts, hidden), f"{ours}mlp.router.weight", (), f"{theirs}mlp.gate.weight")
    yield f"{theirs}block_sparse_moe.gate.weight", router
    # tensor by tensor, not expert by expert: an upcycle then reads each source tensor once for all experts
    gate, up = slice(0, inner), slice(inner, 2 * inner)
    for name, shape, part, rows in (
        ("w1", (inner, hidden), "gate_up", (gate,)),
        ("w3", (inner, hidden), "gate_up", (up,)),
        ("w2", (hidden, inner), "down", ()),
    ):
        for expert in range(config.num_experts):
            yield (
                f"{theirs}block_sparse_moe.experts.{expert}.{name}.weight",
                TensorEntry(shape, f"{ours}mlp.experts.{part}", (expert, *rows), f"{theirs}mlp.experts.{part}_proj"),
            )
    if config.shared_intermediate_size:
        for name, shape in _swiglu_shapes(hidden, config.shared_intermediate_size):
            yield f"{theirs}shared_mlp.{name}.weight", TensorEntry(shape, f"{ours}mlp.shared.mlp.{name}.weight")
        yield f"{theirs}coefficient.weight", TensorEntry((1, hidden), f"{ours}mlp.shared.coefficient.weight")

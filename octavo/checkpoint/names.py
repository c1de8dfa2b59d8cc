"""Tensor names: one table per family, read both ways.

The canonical names are those of Hugging Face's files with one tensor per expert (`...experts.3.w1.weight`).
Every source presents itself under them and every writer writes them, so each conversion is told once.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from octavo.config import ModelConfig

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


def _layer_entries(config: ModelConfig, layer: int) -> Iterator[tuple[str, TensorEntry]]:
    theirs, ours = f"model.layers.{layer}.", f"layers.{layer}."
    hidden = config.hidden_size
    query, key = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    plain = (
        ("input_layernorm.weight", "attention_norm.weight", (hidden,)),
        ("self_attn.q_proj.weight", "attention.q_proj.weight", (query, hidden)),
        ("self_attn.k_proj.weight", "attention.k_proj.weight", (key, hidden)),
        ("self_attn.v_proj.weight", "attention.v_proj.weight", (key, hidden)),
        ("self_attn.o_proj.weight", "attention.o_proj.weight", (hidden, query)),
        ("post_attention_layernorm.weight", "mlp_norm.weight", (hidden,)),
    )
    for their_name, our_name, shape in plain:
        yield theirs + their_name, TensorEntry(shape, ours + our_name)
    feed_forward = _dense_entries if config.layers[layer].mlp == "dense" else _expert_entries
    yield from feed_forward(config, theirs, ours)


def _dense_entries(config: ModelConfig, theirs: str, ours: str) -> Iterator[tuple[str, TensorEntry]]:
    wide = (config.intermediate_size, config.hidden_size)
    for name, shape in (("gate_proj", wide), ("up_proj", wide), ("down_proj", wide[::-1])):
        yield f"{theirs}mlp.{name}.weight", TensorEntry(shape, f"{ours}mlp.{name}.weight")


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

"""Tensors of GGUF's architecture `llama` against Hugging Face's: names, row order, rotary scaling, read both ways."""

from collections.abc import Callable, Iterator, Mapping
from math import pi
from typing import Any

import numpy as np
import numpy.typing as npt

# Tables of names: GGUF's, Hugging Face's, axes. E experts, F expert or feed-forward width, H hidden, V vocabulary,
# Q heads * head_dim, K key-value heads * head_dim.
_LAYER = (
    ("attn_norm", "input_layernorm", "H"), ("attn_q", "self_attn.q_proj", "QH"), ("attn_k", "self_attn.k_proj", "KH"),
    ("attn_v", "self_attn.v_proj", "KH"), ("attn_output", "self_attn.o_proj", "HQ"),
    ("ffn_norm", "post_attention_layernorm", "H"),
)  # fmt: skip
_DENSE = (("ffn_gate", "mlp.gate_proj", "FH"), ("ffn_up", "mlp.up_proj", "FH"), ("ffn_down", "mlp.down_proj", "HF"))
_ROUTER = (("ffn_gate_inp", "block_sparse_moe.gate", "EH"),)
_EXPERT = (("ffn_gate", "w1", "FH"), ("ffn_up", "w3", "FH"), ("ffn_down", "w2", "HF"))

ROPE_FREQS = "rope_freqs.weight"  # Llama 3.1's scaling, as the divisors of the rotary frequencies [head_dim / 2]
# The one set of parameters, beside the factor, with which Llama 3.1 and later were released.
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def tensor_names(
    layers: int, experts: int, tied: bool, stacked: Callable[[str], bool]
) -> Iterator[tuple[str, str, str, int | None]]:
    """Canonical name, stored name, stored axes and expert of every tensor, in Hugging Face's order.

    stacked tells of a layer ("blk.0.") whether its experts lie in one tensor [E, ...]. Lazy, because a damaged count
    of layers or experts must meet its first missing tensor before it fills the memory.
    """
    yield "model.embed_tokens.weight", "token_embd.weight", "VH", None
    for layer in range(layers):
        block, place = f"blk.{layer}.", f"model.layers.{layer}."
        for stored, name, axes in _LAYER + (_ROUTER if experts else _DENSE):
            yield f"{place}{name}.weight", f"{block}{stored}.weight", axes, None
        together = stacked(block)
        for stored, name, axes in _EXPERT:
            for expert in range(experts):
                canonical = f"{place}block_sparse_moe.experts.{expert}.{name}.weight"
                if together:
                    yield canonical, f"{block}{stored}_exps.weight", "E" + axes, expert
                else:
                    yield canonical, f"{block}{stored}.{expert}.weight", axes, None
    yield "model.norm.weight", "output_norm.weight", "H", None
    if not tied:
        yield "lm_head.weight", "output.weight", "VH", None


def permuted_heads(stored: str, heads: int, kv_heads: int) -> int | None:
    """Over how many heads the rows of a stored tensor are permuted; None for all but queries and keys."""
    return {"attn_q": heads, "attn_k": kv_heads}.get(stored.split(".")[-2])


def stored_rows(rows: int, heads: int | None) -> npt.NDArray[np.int64]:
    """Which canonical row lies at each stored row, int64 [rows].

    Hugging Face has a head's rows as (half, pair), llama.cpp as (pair, half): it rotates neighbours.
    """
    order = np.arange(rows)
    return order if heads is None else order.reshape(heads, 2, -1).swapaxes(1, 2).reshape(-1)


def llama3_divisors(head_dim: int, theta: float, factor: float, scaling: Mapping[str, Any]) -> npt.NDArray[np.float64]:
    """What Llama 3.1's scaling divides each rotary frequency by, [head_dim / 2]; `scaling` has the keys of LLAMA3.

    As transformers' _compute_llama3_parameters: long waves are divided, short ones kept, with a ramp between them.
    """
    low, high, length = (scaling[name] for name in LLAMA3)
    frequencies = theta ** (-np.arange(0, head_dim, 2) / head_dim)
    ramp = np.clip((length * frequencies / (2 * pi) - low) / (high - low), 0, 1)
    return 1 / ((1 - ramp) / factor + ramp)

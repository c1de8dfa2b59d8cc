"""MiniMax-Text-01 once more, in numpy and float64, a token at a time: written from the paper and the released code.

It takes a config.json of the official layout and the tensors of its files, imports nothing of octavo and shares no code
with it: what both compute alike is right or wrong for two independent reasons.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

Array = np.ndarray


def logits(config: Mapping[str, Any], tensors: Mapping[str, Array], ids: Array) -> Array:
    """[len(ids), vocab] for one document."""
    weights = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
    x = weights["model.embed_tokens.weight"][ids]
    for layer, kind in enumerate(config["attn_type_list"]):
        mine = {
            name.removeprefix(f"model.layers.{layer}."): tensor
            for name, tensor in weights.items()
            if name.startswith(f"model.layers.{layer}.")
        }
        x = _layer(config, mine, layer, kind, x)
    return _rms(x, weights["model.norm.weight"], config["rms_norm_eps"]) @ weights["lm_head.weight"].T


def _layer(config: Mapping[str, Any], weights: Mapping[str, Array], layer: int, kind: int, x: Array) -> Array:
    name = "full" if kind == 1 else "linear"
    u = _rms(x, weights["input_layernorm.weight"], config["rms_norm_eps"])
    attended = _softmax_attention(config, weights, u) if kind == 1 else _lightning(config, weights, layer, u)
    kept = u if config["postnorm"] else x
    alpha, beta = (config[f"layernorm_{name}_attention_{greek}"] for greek in ("alpha", "beta"))
    x = alpha * kept + beta * attended
    w = _rms(x, weights["post_attention_layernorm.weight"], config["rms_norm_eps"])
    kept = w if config["postnorm"] else x
    return config["layernorm_mlp_alpha"] * kept + config["layernorm_mlp_beta"] * _mixture(config, weights, w)


def _rms(x: Array, weight: Array, eps: float) -> Array:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weight


def _sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def _silu(x: Array) -> Array:
    return x * _sigmoid(x)


def _lightning(config: Mapping[str, Any], weights: Mapping[str, Array], layer: int, u: Array) -> Array:
    heads, width = config["num_attention_heads"], config["head_dim"]
    projected = _silu(u @ weights["self_attn.qkv_proj.weight"].T)
    out = np.zeros((len(u), heads * width))
    depth = config["num_hidden_layers"]
    for head, base in enumerate(_base_slopes(heads)):
        decay = math.exp(-base * (1 - layer / (depth - 1) + 1e-5))
        state = np.zeros((width, width))
        for t, row in enumerate(projected):
            q, k, v = row[head * 3 * width : (head + 1) * 3 * width].reshape(3, width)
            state = decay * state + np.outer(k, v)
            out[t, head * width : (head + 1) * width] = q @ state
    normed = _rms(out, weights["self_attn.norm.weight"], 1e-6)
    gate = _sigmoid(u @ weights["self_attn.output_gate.weight"].T)
    return (gate * normed) @ weights["self_attn.out_proj.weight"].T


def _base_slopes(heads: int) -> list[float]:
    if math.log2(heads).is_integer():
        start = 2 ** (-(2 ** -(math.log2(heads) - 3)))
        return [start * start**i for i in range(heads)]
    closest = 2 ** math.floor(math.log2(heads))
    return _base_slopes(closest) + _base_slopes(2 * closest)[0::2][: heads - closest]


def _softmax_attention(config: Mapping[str, Any], weights: Mapping[str, Array], u: Array) -> Array:
    heads, groups, width = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]
    q, k, v = (
        (u @ weights[f"self_attn.{name}_proj.weight"].T).reshape(len(u), count, width)
        for name, count in (("q", heads), ("k", groups), ("v", groups))
    )
    q, k = _rotate(config, q), _rotate(config, k)
    out = np.zeros((len(u), heads, width))
    for head in range(heads):
        group = head // (heads // groups)
        for t in range(len(u)):
            scores = k[: t + 1, group] @ q[t, head] / math.sqrt(width)
            shares = np.exp(scores - scores.max())
            out[t, head] = shares / shares.sum() @ v[: t + 1, group]
    return out.reshape(len(u), -1) @ weights["self_attn.o_proj.weight"].T


def _rotate(config: Mapping[str, Any], x: Array) -> Array:
    """Pairs (i, i + dim/2) inside the first rotary_dim entries, as complex numbers; the rest stays."""
    dim = config["rotary_dim"]
    half = dim // 2
    angles = np.arange(len(x))[:, None] * config["rope_theta"] ** (-2 * np.arange(half) / dim)
    turned = (x[..., :half] + 1j * x[..., half:dim]) * np.exp(1j * angles)[:, None, :]
    return np.concatenate((turned.real, turned.imag, x[..., dim:]), axis=-1)


def _mixture(config: Mapping[str, Any], weights: Mapping[str, Array], w: Array) -> Array:
    scores = w @ weights["block_sparse_moe.gate.weight"].T
    out = np.zeros_like(w)
    for t, row in enumerate(scores):
        chosen = np.argsort(-row)[: config["num_experts_per_tok"]]
        shares = np.exp(row[chosen] - row[chosen].max())
        for share, expert in zip(shares / shares.sum(), chosen, strict=True):
            w1, w2, w3 = (weights[f"block_sparse_moe.experts.{expert}.w{i}.weight"] for i in (1, 2, 3))
            out[t] += share * (w2 @ (_silu(w1 @ w[t]) * (w3 @ w[t])))
    if config["shared_intermediate_size"]:
        gate, up, down = (weights[f"shared_mlp.{name}_proj.weight"] for name in ("gate", "up", "down"))
        mix = _sigmoid(w @ weights["coefficient.weight"].T)
        out = (1 - mix) * out + mix * ((_silu(w @ gate.T) * (w @ up.T)) @ down.T)
    return out

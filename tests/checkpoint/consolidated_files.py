"""Folders in Mistral's layouts, written from a decoder by other means than octavo's own tables."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from octavo.models import Decoder
from tests.tiny import tiny_config, tiny_tokenizer_files

WHOLE = "consolidated.safetensors"


def tiny_decoder(layout: str = "per-expert", **changes: object) -> Decoder:
    family = "mistral" if layout == "dense" else "mixtral"
    fixed = {"bos_token_id": 1, "max_positions": 32768} | changes  # what every params.json means
    return Decoder(tiny_config(family, **fixed)).initialise(5).eval()


def interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Row by row: of a head of width D, rows i and i + D/2 are a rotary pair, and go to 2i and 2i + 1."""
    stored, width = torch.empty_like(weight), weight.shape[0] // heads
    for head in range(heads):
        for i in range(width // 2):
            stored[head * width + 2 * i] = weight[head * width + i]
            stored[head * width + 2 * i + 1] = weight[head * width + width // 2 + i]
    return stored


def stored_tensors(decoder: Decoder, layout: str = "per-expert") -> dict[str, torch.Tensor]:
    """A decoder's parameters as the layout has them; nothing of octavo's tables is used."""
    config = decoder.config
    out = {"tok_embeddings.weight": decoder.embed.weight, "norm.weight": decoder.norm.weight}
    if not config.tie_embeddings:
        out["output.weight"] = decoder.lm_head.weight
    for number, layer in enumerate(decoder.layers):
        attention, mlp, prefix = layer.attention, layer.mlp, f"layers.{number}."
        out[f"{prefix}attention_norm.weight"] = layer.attention_norm.weight
        out[f"{prefix}ffn_norm.weight"] = layer.mlp_norm.weight
        out[f"{prefix}attention.wq.weight"] = interleaved(attention.q_proj.weight, config.num_heads)
        out[f"{prefix}attention.wk.weight"] = interleaved(attention.k_proj.weight, config.num_kv_heads)
        out[f"{prefix}attention.wv.weight"] = attention.v_proj.weight
        out[f"{prefix}attention.wo.weight"] = attention.o_proj.weight
        if layout == "dense":
            for name, linear in (("w1", mlp.gate_proj), ("w2", mlp.down_proj), ("w3", mlp.up_proj)):
                out[f"{prefix}feed_forward.{name}.weight"] = linear.weight
            continue
        w1, w3 = mlp.experts.gate_up.chunk(2, dim=1)
        matrices = {"w1": w1, "w2": mlp.experts.down, "w3": w3}
        room = "block_sparse_moe" if layout == "stacked" else "feed_forward"
        out[f"{prefix}{room}.gate.weight"] = mlp.router.weight
        for name, experts in matrices.items():
            if layout == "stacked":
                rows = [expert.T if name == "w2" else expert for expert in experts]
                out[f"{prefix}{room}.{name}"] = torch.cat(rows)
            else:
                out |= {f"{prefix}{room}.experts.{e}.{name}.weight": expert for e, expert in enumerate(experts)}
    return {name: tensor.detach().clone().contiguous() for name, tensor in out.items()}


def params_of(decoder: Decoder) -> dict[str, object]:
    config = decoder.config
    params: dict[str, object] = {
        "dim": config.hidden_size, "n_layers": config.num_layers, "head_dim": config.head_dim,
        "hidden_dim": config.intermediate_size, "n_heads": config.num_heads, "n_kv_heads": config.num_kv_heads,
        "norm_eps": config.norm_eps, "vocab_size": config.vocab_size, "rope_theta": config.rope.theta,
    }  # fmt: skip
    if config.num_experts:
        params["moe"] = {"num_experts_per_tok": config.top_k, "num_experts": config.num_experts}
    if config.sliding_window:
        params["sliding_window"] = str(config.sliding_window)  # some of the real files have it as a string
    if config.tie_embeddings:
        params["tied_embeddings"] = True
    return params


def write(
    out: Path, decoder: Decoder, layout: str = "per-expert", parts: int = 1, index: bool = False, tokenizer: bool = True
) -> Path:
    """A folder in `layout`, of one file or of `parts` that each hold every parts-th tensor."""
    out.mkdir()
    tensors = stored_tensors(decoder, layout)
    files = {f"consolidated.{part:02d}.safetensors": list(tensors)[part::parts] for part in range(parts)}
    for file, names in files.items() if parts > 1 else [(WHOLE, list(tensors))]:
        save_file({name: tensors[name] for name in names}, out / file)
    if index:
        weight_map = {name: file for file, names in files.items() for name in names}
        (out / f"{WHOLE}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (out / "params.json").write_text(json.dumps(params_of(decoder)))
    for name, content in tiny_tokenizer_files().items() if tokenizer else ():
        (out / name).write_bytes(content)
    return out


def edit_params(folder: Path, **changes: object) -> None:
    params = json.loads((folder / "params.json").read_text()) | changes
    (folder / "params.json").write_text(json.dumps({k: v for k, v in params.items() if v != "ABSENT"}))


def edit_tensors(folder: Path, **changes: torch.Tensor | None) -> None:
    tensors = load_file(folder / WHOLE) | {name.replace("__", "."): tensor for name, tensor in changes.items()}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, folder / WHOLE)

"""Read Mistral's own layout: params.json and consolidated*.safetensors, as mistral-inference has them.

Three things differ from the canonical tensors beside the names. Rotary's pairs are (2i, 2i+1), so the rows of wq and
wk are reordered. A layer's experts may lie stacked, as in the first Mixtral files: w1, w2 and w3 each one matrix
[E * F, H] (E experts of width F, H hidden). And w2 is then transposed, for it too has F rows an expert.
"""

import re
from pathlib import Path

from octavo.checkpoint.folder import weight_files
from octavo.checkpoint.json_files import read_json
from octavo.checkpoint.names import TensorEntry, tensor_table
from octavo.checkpoint.safetensors_folder import Place, SafetensorsFolder
from octavo.checkpoint.shards import StoredTensor, find_shards, read_headers
from octavo.config import ModelConfig, from_params
from octavo.errors import UserError

PARAMS = "params.json"
_NAMES = {
    "model.embed_tokens": "tok_embeddings",
    "model.norm": "norm",
    "lm_head": "output",
    "input_layernorm": "attention_norm",
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
}
_EXPERTS = "block_sparse_moe."
_STACKED = re.compile(r"experts\.(\d+)\.(w[123])")


def is_consolidated(folder: Path) -> bool:
    """Whether a folder's weights are in this layout and not in Hugging Face's, which is taken where there are both."""
    if not ((folder / PARAMS).is_file() and any(folder.glob("consolidated*"))):
        return False
    others = weight_files(folder) or (folder / "model.safetensors.index.json").exists()
    return not ((folder / "config.json").exists() and others)


class ConsolidatedSource(SafetensorsFolder):
    """A folder in Mistral's layout as a `Source`. Everything but the tensors' data is checked at construction."""

    config_name, tied_field, head_name = PARAMS, "tied_embeddings", "output.weight"

    def __init__(self, path: Path, label: str | None = None) -> None:
        files = _stored_tensors(path)
        config = from_params(read_json(path / PARAMS), str(path / PARAMS))
        stacked = any(f".{_EXPERTS}" in name for name in files)
        places = {name: _place(name, entry, config, stacked) for name, entry in tensor_table(config).items()}
        super().__init__(path, label, config, files, places)


def _place(name: str, entry: TensorEntry, config: ModelConfig, stacked: bool) -> Place:
    """Where the canonical tensor `name` lies; `stacked` as in the first Mixtral files."""
    found = re.fullmatch(r"(?:model\.(layers\.\d+\.))?(.+)\.weight", name)
    assert found, name
    layer, inner = found[1] or "", found[2]
    expert = _STACKED.fullmatch(inner.removeprefix(_EXPERTS))
    if stacked and expert:
        return _stacked_place(f"{layer}{_EXPERTS}{expert[2]}", int(expert[1]), expert[2] == "w2", config)
    if inner.startswith(_EXPERTS) and not stacked:
        inner = f"feed_forward.{inner.removeprefix(_EXPERTS)}"
    heads = {"self_attn.q_proj": config.num_heads, "self_attn.k_proj": config.num_kv_heads}.get(inner)
    return Place(f"{layer}{_NAMES.get(inner, inner)}.weight", entry.shape, heads=heads)


def _stacked_place(stored: str, expert: int, transposed: bool, config: ModelConfig) -> Place:
    width, hidden = config.intermediate_size, config.hidden_size
    rows = slice(expert * width, (expert + 1) * width)
    # the whole shape too: the rows of a narrower expert would be found in a wider one's
    whole = (config.num_experts * width, hidden)
    return Place(stored, (width, hidden), (rows,), whole, transposed=transposed)


def _stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    shards = find_shards(folder, "consolidated", [path.name for path in folder.glob("consolidated*.safetensors")])
    if not shards.names:
        pickled = sorted(path.name for path in folder.glob("consolidated*") if path.suffix in (".pt", ".pth"))
        if pickled:
            raise UserError(f"{folder}: only pickled weights ({pickled[0]}), which can run code and are never opened; "
                            "convert each file elsewhere to safetensors with the same tensor names, as "
                            f"{Path(pickled[0]).stem}.safetensors")  # fmt: skip
        raise UserError(f"{folder}: no consolidated*.safetensors files; is the download complete?")
    # The conversion scripts merge the shards as one dictionary, where the later one wins. A tensor that two shards
    # share is harmless; one whose values differ is a part of a split matrix, or of another model.
    return read_headers(folder, shards, equal_repeats=True)

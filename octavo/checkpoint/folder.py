"""Read a Hugging Face model folder: config.json, safetensors (one or many, per-expert or fused), tokenizer."""

import re
from collections.abc import Mapping
from pathlib import Path

from octavo.checkpoint.json_files import read_json
from octavo.checkpoint.names import TensorEntry, tensor_table
from octavo.checkpoint.safetensors_folder import Place, SafetensorsFolder
from octavo.checkpoint.shards import StoredTensor, find_shards, read_headers
from octavo.config import from_hf
from octavo.errors import UserError

# Buffers that transformers saves, or once saved; recomputed here. The decays of lightning layers among them may have
# gone through bf16, in which many heads never decay.
_IGNORED = re.compile(r"\.rotary_emb\.inv_freq$|\.self_attn\.(slope_rate|query_decay|key_decay|diagonal_decay)$")


class FolderSource(SafetensorsFolder):
    """A Hugging Face folder as a `Source`. Everything but the tensors' data is checked at construction."""

    config_name, tied_field, head_name = "config.json", "tie_word_embeddings", "lm_head.weight"

    def __init__(self, path: Path, label: str | None = None) -> None:
        config = from_hf(read_json(path / self.config_name), str(path / self.config_name))
        files = _stored_tensors(path)
        places = {name: _place(name, entry, files) for name, entry in tensor_table(config).items()}
        _check_slopes(files, config.num_heads)
        super().__init__(path, label, config, files, places, ignored=list(filter(_IGNORED.search, files)))


def weight_files(folder: Path) -> list[str]:
    """Names of the safetensors files in a folder, sorted, without Mistral's second copy (consolidated*)."""
    return sorted(path.name for path in folder.glob("*.safetensors") if not path.name.startswith("consolidated"))


def _check_slopes(files: Mapping[str, StoredTensor], heads: int) -> None:
    """Stored slopes are not used, but their number tells whether weights and config belong together."""
    for name, (path, shape, _) in files.items():
        if name.endswith(".self_attn.slope_rate") and shape[:1] != (heads,):
            raise UserError(
                f"{path}: {name} has shape {list(shape)}, but num_attention_heads in config.json is {heads}"
            )


def _place(name: str, entry: TensorEntry, files: dict[str, StoredTensor]) -> Place:
    """Each expert lies by itself, as on the hub, or inside a fused tensor, as transformers v5 saves them."""
    fused = entry.fused_name
    if name not in files and fused is not None and fused in files:
        return Place(fused, entry.shape, entry.index)
    return Place(name, entry.shape)


def _stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    shards = find_shards(folder, "model", weight_files(folder))
    if not shards.names:
        pickled = [path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern)]
        if pickled:
            raise UserError(f"{folder}: only pickled weights ({pickled[0]}), which can run code and are never opened; "
                            "ask for or convert to safetensors")  # fmt: skip
        raise UserError(f"{folder}: no *.safetensors files; is the download complete?")
    return read_headers(folder, shards)

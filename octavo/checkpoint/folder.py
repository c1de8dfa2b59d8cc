"""Read a Hugging Face model folder: config.json, safetensors (one or many, per-expert or fused), tokenizer."""

import re
from pathlib import Path

from octavo.checkpoint.names import TensorEntry, tensor_table
from octavo.checkpoint.safetensors_folder import Place, SafetensorsFolder
from octavo.checkpoint.shards import StoredTensor, find_shards, read_headers, read_json
from octavo.config import from_hf
from octavo.errors import UserError

# Buffers old transformers versions saved; recomputed here.
_IGNORED = re.compile(r"\.rotary_emb\.inv_freq$")


class FolderSource(SafetensorsFolder):
    """A Hugging Face folder as a `Source`. Everything but the tensors' data is checked at construction."""

    config_name, tied_field, head_name = "config.json", "tie_word_embeddings", "lm_head.weight"

    def __init__(self, path: Path, label: str | None = None) -> None:
        config = from_hf(read_json(path / self.config_name), str(path / self.config_name))
        files = _stored_tensors(path)
        places = {name: _place(name, entry, files) for name, entry in tensor_table(config).items()}
        super().__init__(path, label, config, files, places, ignored=list(filter(_IGNORED.search, files)))


def _place(name: str, entry: TensorEntry, files: dict[str, StoredTensor]) -> Place:
    """Each expert lies by itself, as on the hub, or inside a fused tensor, as transformers v5 saves them."""
    fused = entry.fused_name
    if name not in files and fused is not None and fused in files:
        return Place(fused, entry.shape, entry.index)
    return Place(name, entry.shape)


def _stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    # Mistral's own layout (consolidated*) holds the same weights a second time
    others = [path.name for path in folder.glob("*.safetensors") if not path.name.startswith("consolidated")]
    shards = find_shards(folder, "model", others)
    if not shards.names:
        pickled = [path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern)]
        if pickled:
            raise UserError(f"{folder}: only pickled weights ({pickled[0]}), which can run code and are never opened; "
                            "ask for or convert to safetensors")  # fmt: skip
        raise UserError(f"{folder}: no *.safetensors files; is the download complete?")
    return read_headers(folder, shards)

"""Read a Hugging Face model folder: config.json, safetensors (one or many, per-expert or fused), tokenizer."""

import json
import re
from collections.abc import Mapping
from functools import cached_property, reduce
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from octavo.checkpoint.checksums import CHECKSUMS, check_sums
from octavo.checkpoint.names import Index, tensor_table
from octavo.config import ModelConfig, from_hf
from octavo.errors import UserError
from octavo.progress import Progress, silent

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

SIDE_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model",
    "vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json", "generation_config.json", "LICENSE",
)  # fmt: skip

# Buffers that transformers saves, or once saved; recomputed here. The decays of lightning layers among them may have
# gone through bf16, in which many heads never decay.
_IGNORED = re.compile(r"\.rotary_emb\.inv_freq$|\.self_attn\.(slope_rate|query_decay|key_decay|diagonal_decay)$")


def read_json(path: Path) -> Any:
    """The JSON in a file. Raises UserError naming the file when it is missing or damaged."""
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path.parent}: {path.name} is missing; is this a model folder?") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check what it is and its permissions") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: damaged JSON ({error}); download or convert it again") from None


def weight_files(folder: Path) -> list[str]:
    """Names of the safetensors files in a folder, sorted, without Mistral's second copy (consolidated*)."""
    return sorted(path.name for path in folder.glob("*.safetensors") if not path.name.startswith("consolidated"))


class FolderSource:
    """A Hugging Face folder as a `Source`. Everything but the tensors' data is checked at construction."""

    def __init__(self, path: Path, label: str | None = None) -> None:
        self.path, self.label = path, label or str(path)
        self.config: ModelConfig = from_hf(read_json(path / "config.json"), str(path / "config.json"))
        self._files = _tensor_files(path)
        self._places = self._locate()
        self._check_tied_head()

    @cached_property
    def dtype(self) -> torch.dtype:
        """The narrowest type that holds every stored tensor exactly; files may mix bf16 matrices and fp32 norms."""
        stored = {DTYPES[self._files[name][2]] for name, _ in self._places.values()}
        return reduce(torch.promote_types, stored)

    @property
    def licence(self) -> str | None:
        """The licence its model card's front matter states, if any."""
        card = self.path / "README.md"
        text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
        found = re.match(r"---\n(?:.*\n)*?license: *[\"']?([\w.-]+)", text)
        return found.group(1) if found else None

    def check(self, progress: Progress = silent) -> None:
        """Compare every file with SHA256SUMS if the folder has one; raises UserError on a difference."""
        if (self.path / CHECKSUMS).is_file():
            check_sums(self.path, progress)

    def tensor(self, name: str) -> Tensor:
        """One canonical tensor, in the file's precision, with memory of its own."""
        stored, index = self._places[name]
        path = self._files[stored][0]
        return self._read(path, stored, index)

    def _read(self, path: Path, stored: str, index: Index = ()) -> Tensor:
        # opened anew each time: a mapping that stays open keeps every page it has touched resident
        try:
            with safe_open(path, framework="pt") as file:
                return file.get_slice(stored)[index or ...].clone()
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: cannot read {stored} ({error}); download or convert it again") from None

    def side_files(self) -> Mapping[str, bytes]:
        """Tokenizer, chat template and licence files that are there, by file name."""
        found = [self.path / name for name in SIDE_FILES if (self.path / name).is_file()]
        try:
            return {path.name: path.read_bytes() for path in found}
        except OSError as error:
            raise UserError(f"{error.filename}: cannot be read ({error.strerror}); check its permissions") from None

    def _check_tied_head(self) -> None:
        """A tied config beside a head of its own means one thing to some readers and another to others."""
        head, embedding = "lm_head.weight", "model.embed_tokens.weight"
        if self.config.tie_embeddings and head in self._files:
            stored = self._read(self._files[head][0], head)
            if not torch.equal(stored, self.tensor(embedding)):
                raise UserError(f"{self.label}: config.json ties the embeddings, but {head} is stored and differs from "
                                f"{embedding}: set tie_word_embeddings to false, or remove the head")  # fmt: skip

    def _check_slopes(self) -> None:
        """Stored slopes are not used, but their number tells whether the file and the config belong together."""
        heads = self.config.num_heads
        for name, (path, shape, _) in self._files.items():
            if name.endswith(".self_attn.slope_rate") and shape[:1] != (heads,):
                raise UserError(
                    f"{path}: {name} has shape {list(shape)}, but config.json says num_attention_heads is {heads}"
                )

    def _locate(self) -> dict[str, tuple[str, Index]]:
        """Where each canonical tensor lies: stored name and part. Refuses missing, misshapen and left-over ones."""
        places: dict[str, tuple[str, Index]] = {}
        consumed: set[str] = set()
        for name, entry in tensor_table(self.config).items():
            fused = name not in self._files and entry.fused_name in self._files
            stored = entry.fused_name if fused and entry.fused_name else name
            if stored not in self._files:
                raise UserError(
                    f"{self.label}: tensor {name} is missing; config.json and weights do not belong together"
                )
            path, shape, _ = self._files[stored]
            found = _part_shape(shape, entry.index) if fused else shape
            if found != entry.shape:
                implied = f"config.json implies {list(entry.shape)} for {name}"
                raise UserError(f"{path}: {stored} has shape {list(shape)}, {implied}")
            places[name] = (stored, entry.index if fused else ())
            consumed.add(stored)
        self._check_slopes()
        tied = {"lm_head.weight"} if self.config.tie_embeddings else set()
        left_over = [name for name in self._files if name not in consumed | tied and not _IGNORED.search(name)]
        if left_over:
            shown = ", ".join(left_over[:3]) + (", …" if len(left_over) > 3 else "")
            raise UserError(f"{self.label}: {len(left_over)} tensors belong to nothing in config.json: {shown}")
        return places


def _part_shape(shape: tuple[int, ...], index: Index) -> tuple[int, ...] | None:
    """Shape of `tensor[index]`, None when the index does not fit."""
    try:
        return tuple(torch.empty(shape, device="meta")[index].shape)
    except IndexError:
        return None


def _tensor_files(folder: Path) -> dict[str, tuple[Path, tuple[int, ...], str]]:
    """Every stored tensor: its file, shape and dtype name. Headers only."""
    index_path = folder / "model.safetensors.index.json"
    weight_map: dict[str, str] = {}
    # transformers' order; Mistral's own layout (consolidated*) holds the same weights a second time
    if (folder / "model.safetensors").is_file():
        shards = ["model.safetensors"]
    elif index_path.exists():
        weight_map = _weight_map(index_path)
        shards = sorted(set(weight_map.values()))
    else:
        shards = weight_files(folder)
    if not shards:
        pickled = [path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern)]
        if pickled:
            raise UserError(f"{folder}: only pickled weights ({pickled[0]}), which can run code and are never opened; "
                            "ask for or convert to safetensors")  # fmt: skip
        raise UserError(f"{folder}: no *.safetensors files; is the download complete?")
    tensors: dict[str, tuple[Path, tuple[int, ...], str]] = {}
    for shard in shards:
        if not (folder / shard).is_file():
            raise UserError(f"{folder}: shard {shard} is missing, though {index_path.name} names it; download it again")
        for name, shape, dtype in _header(folder / shard):
            if name in tensors:
                raise UserError(f"{folder}: tensor {name} is in {tensors[name][0].name} and again in {shard}")
            if dtype not in DTYPES:
                raise UserError(f"{folder / shard}: {name} is stored as {dtype}; only {', '.join(DTYPES)} are read")
            tensors[name] = (folder / shard, shape, dtype)
    absent = [name for name in weight_map if name not in tensors]
    if absent:
        raise UserError(f"{index_path}: names {absent[0]}, which its shard does not hold; download it again")
    return tensors


def _weight_map(index_path: Path) -> dict[str, str]:
    content = read_json(index_path)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index_path}: has no weight_map; download it again")
    for shard in weight_map.values():
        if not isinstance(shard, str) or Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise UserError(f"{index_path}: {shard!r} is not the name of a safetensors file in this folder")
    return weight_map


def _header(path: Path) -> list[tuple[str, tuple[int, ...], str]]:
    try:
        with safe_open(path, framework="pt") as file:
            slices = ((name, file.get_slice(name)) for name in file.keys())  # noqa: SIM118 (not a dict)
            return [(name, tuple(part.get_shape()), part.get_dtype()) for name, part in slices]
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: truncated or damaged ({error}); download or convert it again") from None

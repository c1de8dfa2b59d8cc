"""Safetensors files of a folder, whatever their tensors are called: index, headers, reading a part."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from octavo.checkpoint.json_files import read_json
from octavo.checkpoint.names import Index
from octavo.errors import UserError

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class StoredTensor(NamedTuple):
    """One tensor of a file as its header describes it."""

    path: Path
    shape: tuple[int, ...]
    dtype: str


class Shards(NamedTuple):
    """A checkpoint's files by name, and the index that says what they hold (no weight map: there is none)."""

    names: list[str]
    index_name: str
    weight_map: Mapping[str, str]


def read_part(path: Path, stored: str, index: Index = ()) -> Tensor:
    """`stored[index]` with memory of its own; no more than that part is read. Raises UserError when it cannot be."""
    # opened anew each time: a mapping that stays open keeps every page it has touched resident
    try:
        with safe_open(path, framework="pt") as file:
            return file.get_slice(stored)[index or ...].clone()
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: cannot read {stored} ({error}); download or convert it again") from None


def find_shards(folder: Path, stem: str, others: Sequence[str]) -> Shards:
    """The weight files, in transformers' order: `stem`.safetensors, or else those of its index, or else `others`.

    Raises UserError for a damaged index.
    """
    whole, index_name = f"{stem}.safetensors", f"{stem}.safetensors.index.json"
    if (folder / whole).is_file():
        return Shards([whole], index_name, {})
    if (folder / index_name).exists():
        weight_map = _weight_map(folder / index_name)
        return Shards(sorted(set(weight_map.values())), index_name, weight_map)
    return Shards(sorted(others), index_name, {})


def read_headers(
    folder: Path, shards: Shards, equal_repeats: bool = False, dtypes: Mapping[str, torch.dtype] = DTYPES
) -> dict[str, StoredTensor]:
    """Every tensor of `shards` by name, from the headers. `equal_repeats`: a name may come again with equal values.
    `dtypes`: what safetensors calls the types that are read.

    Raises UserError for a shard that is missing or damaged, a name that comes twice, a dtype that is not read and a
    tensor that the index promises and no shard holds.
    """
    tensors: dict[str, StoredTensor] = {}
    for shard in shards.names:
        if not (folder / shard).is_file():
            raise UserError(
                f"{folder}: shard {shard} is missing, though {shards.index_name} names it; download it again"
            )
        for name, stored in _header(folder / shard):
            if stored.dtype not in dtypes:
                known = ", ".join(dtypes)
                raise UserError(f"{folder / shard}: {name} is stored as {stored.dtype}; only {known} are read")
            if name not in tensors:
                tensors[name] = stored
            elif not (equal_repeats and _same(name, tensors[name], stored)):
                differs = ", not the same: join a split matrix first, keep one of two models" if equal_repeats else ""
                raise UserError(
                    f"{folder}: tensor {name} is in {tensors[name].path.name} and again in {shard}{differs}"
                )
    absent = [name for name in shards.weight_map if name not in tensors]
    if absent:
        raise UserError(
            f"{folder / shards.index_name}: names {absent[0]}, which its shard does not hold; download it again"
        )
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


def _header(path: Path) -> list[tuple[str, StoredTensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            slices = ((name, file.get_slice(name)) for name in file.keys())  # noqa: SIM118 (not a dict)
            return [(name, StoredTensor(path, tuple(part.get_shape()), part.get_dtype())) for name, part in slices]
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: truncated or damaged ({error}); download or convert it again") from None


def _same(name: str, first: StoredTensor, second: StoredTensor) -> bool:
    """Whether two files hold the same tensor under one name, NaN for NaN."""
    if first[1:] != second[1:]:
        return False
    one, other = (read_part(tensor.path, name) for tensor in (first, second))
    return torch.equal(one.flatten().view(torch.uint8), other.flatten().view(torch.uint8))

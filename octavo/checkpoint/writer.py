"""Write a Hugging Face model folder as a stream: sharded safetensors, index, checksums, one tensor in memory.

The safetensors library only writes dictionaries that are already in memory, hence our own few lines for the
format: eight bytes of header length, a JSON header, the tensors' bytes end to end.
"""

import errno
import fcntl
import json
import os
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from octavo.checkpoint.checksums import HashedFile
from octavo.errors import UsageError, UserError
from octavo.progress import Progress, silent

MAX_SHARD_BYTES = 4 * 2**30
_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_STORED = {**_NAMES, torch.int8: "I8", torch.uint8: "U8"}  # what a tensor with a type of its own may have
_NO_SPACE = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor to be written: its name and shape now, its values when its turn comes.

    dtype: what it is stored as, whatever the others are; None for the folder's.
    """

    name: str
    shape: tuple[int, ...]
    read: Callable[[], Tensor]
    dtype: torch.dtype | None = None


@contextmanager
def staged_folder(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out` that becomes `out` when the block ends well, and vanishes when it does not.

    Raises UsageError when `out` exists or appears meanwhile, and UserError in place of a full disk.
    """
    with _staging(out) as staging:
        yield staging
        os.rename(staging, out)


@contextmanager
def staged_file(out: Path) -> Iterator[Path]:
    """`staged_folder` for one file: the path to write it to, which becomes `out` when the block ends well."""
    with _staging(out) as staging:
        path = staging / out.name
        yield path
        try:
            os.link(path, out)  # unlike a rename, it never replaces a file that came meanwhile
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links
            os.rename(path, out)


@contextmanager
def _staging(out: Path) -> Iterator[Path]:
    """A locked temporary folder beside `out`, removed at the end; its block puts `out` in its place."""
    if os.path.lexists(out):
        raise UsageError(f"{out}: exists already; choose another name or remove it first")
    prefix = f".{out.name}.partial-"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(out.parent, prefix)
        staging = Path(tempfile.mkdtemp(prefix=prefix, dir=out.parent))
        staging.chmod(0o777 & ~_umask())  # mkdtemp's is for its owner only
    except OSError as error:
        raise UserError(f"{out.parent}: cannot write here ({error.strerror}); choose another place") from None
    lock = _locked(staging)
    try:
        yield staging
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise UserError(f"{out}: the disk is full or a size limit was hit ({error.strerror}); free space, or write "
                            "to another disk; nothing was left behind") from None  # fmt: skip
        if os.path.lexists(out) and error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise UsageError(f"{out}: was made by someone else meanwhile; choose another name") from None
        raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def write_weights(
    folder: Path,
    tensors: Sequence[PlannedTensor],
    dtype: torch.dtype,
    progress: Progress = silent,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    stem: str = "model",
) -> None:
    """Shards `model-0000x-of-0000y.safetensors` (or another stem), their index, and their lines in SHA256SUMS.

    Values are cast to `dtype` unless the tensor has its own. Raises UserError when the disk has too little room,
    UsageError for a dtype that safetensors folders do not hold.
    """
    if dtype not in _NAMES:
        raise UsageError(f"dtype {dtype}: choose one of {', '.join(str(known) for known in _NAMES)}")
    shards = _plan_shards(tensors, dtype, max_shard_bytes)
    total = sum(_size(tensor, dtype) for tensor in tensors)
    require_space(folder, total)
    done, weight_map = 0, {}
    for number, shard in enumerate(shards, start=1):
        name = f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors"
        weight_map.update({tensor.name: name for tensor in shard})
        with HashedFile(folder, name) as file:
            file.write(_header(shard, dtype))
            for tensor in shard:
                file.write(_bytes(tensor, dtype))
                done += _size(tensor, dtype)
                progress("writing weights", done, total)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    write_file(folder, f"{stem}.safetensors.index.json", json_bytes(index))


def require_space(folder: Path, nbytes: int) -> None:
    """Raise UserError when the disk of the temporary folder `folder` has less than `nbytes` bytes left."""
    free = shutil.disk_usage(folder).free
    if free < nbytes:
        raise UserError(
            f"{folder.parent}: {nbytes / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB free; choose another disk"
        )


def write_file(folder: Path, name: str, content: bytes) -> None:
    """One small file and its line in SHA256SUMS."""
    with HashedFile(folder, name) as file:
        file.write(content)


def json_bytes(value: Mapping[str, Any]) -> bytes:
    """JSON as people and diffs like it: two spaces, UTF-8, a closing newline."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def _plan_shards(tensors: Sequence[PlannedTensor], dtype: torch.dtype, limit: int) -> list[list[PlannedTensor]]:
    shards: list[list[PlannedTensor]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + _size(tensor, dtype) > limit:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += _size(tensor, dtype)
    return shards


def _size(tensor: PlannedTensor, dtype: torch.dtype) -> int:
    return torch.Size(tensor.shape).numel() * (tensor.dtype or dtype).itemsize


def _header(shard: Sequence[PlannedTensor], dtype: torch.dtype) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in shard:
        end = offset + _size(tensor, dtype)
        stored = _STORED[tensor.dtype or dtype]
        header[tensor.name] = {"dtype": stored, "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data then starts on an 8-byte border
    return struct.pack("<Q", len(text)) + text


def _bytes(planned: PlannedTensor, dtype: torch.dtype) -> memoryview:
    tensor = planned.read()
    if tuple(tensor.shape) != planned.shape:
        raise UserError(f"{planned.name}: has shape {list(tensor.shape)}, {list(planned.shape)} was announced")
    flat = tensor.to(planned.dtype or dtype).contiguous().flatten()
    return flat.view(torch.uint8).numpy().data


def _remove_abandoned(parent: Path, prefix: str) -> None:
    """Temporary folders of earlier runs that were killed before they could tidy up: those nobody has locked."""
    for path in parent.glob(f"{prefix}*"):
        lock = _locked(path)
        if lock is not None:
            shutil.rmtree(path, ignore_errors=True)
            os.close(lock)


def _locked(folder: Path) -> int | None:
    """A descriptor that holds the folder's lock for as long as the process lives, None if another one does."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current

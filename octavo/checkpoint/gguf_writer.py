"""Write a GGUF file as a stream: metadata, tensor table, then the data with one canonical tensor in memory.

gguf.GGUFWriter wants each stored tensor whole (a layer's experts are one), hence our own few lines for the format:
the mirror of `gguf.py`, whose tables they use. Block formats are the gguf library's.
"""

import hashlib
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from octavo.checkpoint.gguf import ARRAY, SCALARS, STRING
from octavo.checkpoint.gguf_names import stored_rows
from octavo.errors import UserError
from octavo.progress import Progress, silent

Fields = Mapping[str, Any]  # metadata by key: str, bool, int, float, or a list of one of them
# llama.cpp wants these kinds and no others: ids and counts are unsigned, but the types of tokens are not.
_KINDS: dict[type, int] = {bool: 7, int: 4, float: 6, str: STRING}
_LIST_KINDS = {**_KINDS, int: 5}
_VERSION, _ALIGNMENT = 3, 32
_CHUNK = 1 << 22  # values encoded at a time: what writing needs beside the tensor


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of the file, before it is read.

    shape is torch's; kind a gguf.GGMLQuantizationType; parts read the canonical tensors whose rows it holds end to
    end (the experts of a stacked tensor, or one); the rows of each are permuted over `heads`, None for as they are.
    """

    name: str
    shape: tuple[int, ...]
    kind: Any
    parts: tuple[Callable[[], Tensor], ...]
    heads: int | None = None

    @property
    def nbytes(self) -> int:
        """Its size in the file, without the padding behind it."""
        from gguf.constants import GGML_QUANT_SIZES

        block, size = GGML_QUANT_SIZES[self.kind]
        return prod(self.shape) // block * int(size)

    @property
    def padded_nbytes(self) -> int:
        """Its size in the file with the padding behind it."""
        return -(-self.nbytes // _ALIGNMENT) * _ALIGNMENT


def write_gguf(path: Path, fields: Fields, tensors: Sequence[StoredTensor], progress: Progress = silent) -> None:
    """Write the new file `path` and compare what then lies on the disk with what was written.

    Raises UserError when a tensor does not have the shape that was announced or the disk gives back other bytes.
    """
    total, done, digest = sum(tensor.nbytes for tensor in tensors), 0, hashlib.sha256()
    with path.open("xb") as file:
        start = file.write(_header(fields, tensors))
        for tensor in tensors:
            for read in tensor.parts:
                for values in _encoded(tensor, read()):
                    block = values.data
                    file.write(block)
                    digest.update(block)
                    done += block.nbytes
                    progress("writing weights", done, total)
            padding = bytes(tensor.padded_nbytes - tensor.nbytes)
            file.write(padding)
            digest.update(padding)
    with path.open("rb") as file:
        file.seek(start)
        if hashlib.file_digest(file, "sha256").digest() != digest.digest():
            raise UserError(f"{path.name}: the disk gives back other bytes than were written; write to another one")


def rewrite_fields(path: Path, fields: Fields, tensors: Sequence[StoredTensor]) -> None:
    """Replace the metadata of a file that `write_gguf` has written by `fields`, which must take as many bytes."""
    header = _header(fields, tensors)
    data = sum(tensor.padded_nbytes for tensor in tensors)
    with path.open("r+b") as file:
        assert len(header) + data == path.stat().st_size, "the data would be overwritten or moved"
        file.write(header)


def rounded(values: Tensor, kind: Any) -> Tensor:
    """`values` [..., columns] as they come out of a file that stores them as `kind`, in float32."""
    from gguf.quants import dequantize

    stored = StoredTensor("", tuple(values.shape), kind, ())
    with np.errstate(all="ignore"):  # as in _encoded
        blocks = [torch.from_numpy(dequantize(block, kind)) for block in _encoded(stored, values)]
    return torch.cat(blocks).reshape(values.shape)


def _encoded(tensor: StoredTensor, values: Tensor) -> Iterator[npt.NDArray[Any]]:
    """One part of a tensor as the file has it, some rows at a time."""
    from gguf.quants import quantize

    shape = tensor.shape[len(tensor.shape) - values.dim() :]
    if tuple(values.shape) != shape:
        raise UserError(f"{tensor.name}: has shape {list(values.shape)}, {list(shape)} was announced")
    rows = values.reshape(-1, shape[-1])
    order = torch.from_numpy(stored_rows(len(rows), tensor.heads))
    step = max(1, _CHUNK // shape[-1])
    for some in order.split(step):
        with np.errstate(all="ignore"):  # what is not finite is found by the proof
            yield quantize(rows[some].float().numpy(), tensor.kind)


def _header(fields: Fields, tensors: Sequence[StoredTensor]) -> bytes:
    """All before the data, padded to where the data begins."""
    parts = [b"GGUF", struct.pack("<IQQ", _VERSION, len(tensors), len(fields))]
    for key, value in fields.items():
        parts += [_string(key), _value(value)]
    offset = 0
    for tensor in tensors:
        dimensions = tensor.shape[::-1]  # the contiguous axis first
        parts += [_string(tensor.name), struct.pack(f"<I{len(dimensions)}Q", len(dimensions), *dimensions)]
        parts += [struct.pack("<IQ", int(tensor.kind), offset)]
        offset += tensor.padded_nbytes
    header = b"".join(parts)
    return header + bytes(-len(header) % _ALIGNMENT)


def _value(value: Any) -> bytes:
    """A metadata value with its kind in front."""
    if not isinstance(value, list):
        return struct.pack("<I", _KINDS[type(value)]) + _packed([value], _KINDS)
    kind = _LIST_KINDS[type(value[0])] if value else STRING
    return struct.pack("<IIQ", ARRAY, kind, len(value)) + _packed(value, _LIST_KINDS)


def _packed(values: Sequence[Any], kinds: Mapping[type, int]) -> bytes:
    if values and isinstance(values[0], str):
        return b"".join(map(_string, values))
    return b"".join(struct.pack("<" + SCALARS[kinds[type(value)]], value) for value in values)


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data

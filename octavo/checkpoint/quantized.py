"""Read a quantised model folder: each matrix as `<name>.qweight` and `<name>.scales`, the rest as fp32."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from octavo.checkpoint.json_files import read_json
from octavo.checkpoint.names import TensorEntry, is_quantized_name, matrix_bits, tensor_table
from octavo.checkpoint.safetensors_folder import Place, SafetensorsFolder
from octavo.checkpoint.shards import DTYPES, StoredTensor, find_shards, read_headers
from octavo.checkpoint.source import Source
from octavo.config import Bits, from_hf, quantization_bits
from octavo.errors import UserError
from octavo.ops.quantize import GROUP, Quantized, dequantize, quantize

__all__ = [
    "STEM",
    "QuantizedFolder",
    "QuantizedSource",
    "is_quantized_folder",
    "is_quantized_name",
    "parts",
    "quantized_bits",
    "read_quantized",
]

STEM = "quantized"  # of the weight files' names: transformers looks for `model`, and would not know what it reads
_INTEGERS = {4: "U8", 8: "I8"}


@runtime_checkable
class QuantizedSource(Source, Protocol):
    """A source that has its matrices as a model of `bits` bits has them."""

    bits: Bits

    def quantized(self, name: str) -> Quantized:
        """One canonical matrix as it is. Raises UserError for what is damaged."""
        ...


def parts(name: str, shape: tuple[int, ...], bits: Bits) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Stored name, shape and dtype of both halves of the canonical matrix `name`, its integers and its scales, in a
    model of `bits` bits."""
    stem, (rows, columns) = name.removesuffix(".weight"), shape
    qweight = ((rows, columns), torch.int8) if matrix_bits(name, bits) == 8 else ((rows, -(-columns // 2)), torch.uint8)
    return {f"{stem}.qweight": qweight, f"{stem}.scales": ((rows, -(-columns // GROUP)), torch.float16)}


def quantized_bits(name: str, bits: Bits) -> Bits:
    """`matrix_bits` of a quantised model."""
    return 8 if matrix_bits(name, bits) == 8 else 4


def read_quantized(source: Source, name: str, bits: Bits) -> Quantized:
    """The canonical matrix `name` of a model of `bits` bits: bit for bit where `source` has it so, else quantised now.

    Raises UserError naming the tensor when its values are damaged, not finite or too large.
    """
    if isinstance(source, QuantizedSource) and source.bits == bits:
        return source.quantized(name)
    weight = source.tensor(name)
    try:
        return quantize(weight, quantized_bits(name, bits))
    except ValueError as error:
        raise UserError(f"{source.label}: {name} cannot be quantised: {error}; check its weights") from None


def is_quantized_folder(path: Path) -> bool:
    """Whether the config.json of a folder says that octavo quantised it. Raises UserError as `read_json`, and for
    another method or version."""
    file = path / QuantizedFolder.config_name
    hf = read_json(file)
    try:
        return isinstance(hf, Mapping) and quantization_bits(hf) is not None
    except UserError as error:
        raise UserError(f"{file}: {error}") from None


class QuantizedFolder(SafetensorsFolder):
    """A folder that `octavo convert --quant` wrote, as a `Source` of dequantised fp32 tensors.

    Everything but the tensors' data is checked at construction, the data of a tensor when it is read.
    """

    config_name, tied_field = "config.json", "tie_word_embeddings"
    head_name = ""  # a tied head beside the embedding is a tensor too many here, since octavo never writes one

    def __init__(self, path: Path, label: str | None = None) -> None:
        hf = read_json(path / self.config_name)
        config, bits = from_hf(hf, str(path / self.config_name)), quantization_bits(hf)
        if bits is None:
            raise UserError(f"{path / self.config_name}: has no quantization_config; the weights are not quantised")
        self.bits: Bits = bits
        self._table = tensor_table(config)
        files = _stored_tensors(path, bits)
        places = {}
        for name, entry in self._table.items():
            for stored, (shape, dtype) in _stored_parts(name, entry, bits).items():
                places[stored] = Place(stored, shape)
                _check_dtype(files, stored, dtype)
        super().__init__(path, label, config, files, places)

    @property
    def dtype(self) -> torch.dtype:
        """fp32, as for a GGUF: a narrower type would round the dequantised values."""
        return torch.float32

    def tensor(self, name: str) -> Tensor:
        """One canonical tensor, dequantised to fp32. Raises UserError as `quantized` does."""
        if not is_quantized_name(name):
            return super().tensor(name)
        return dequantize(self.quantized(name), self._table[name].shape[-1])

    def quantized(self, name: str) -> Quantized:
        """One canonical matrix as it is stored. Raises UserError for scales and integers that cannot be."""
        qweight, scales = (
            super(QuantizedFolder, self).tensor(stored) for stored in parts(name, self._table[name].shape, self.bits)
        )
        bits, problem = quantized_bits(name, self.bits), None
        if not scales.isfinite().all():
            problem = "scales holds numbers that are not finite"
        elif bits == 8 and (qweight == -128).any():
            problem = "qweight holds -128, and 8 bits reach from -127 to 127"
        if problem:
            raise UserError(f"{self.label}: {name.removesuffix('weight')}{problem}: damaged; convert it again")
        return Quantized(qweight, scales, bits)


def _stored_parts(name: str, entry: TensorEntry, bits: Bits) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    return parts(name, entry.shape, bits) if is_quantized_name(name) else {name: (entry.shape, torch.float32)}


def _check_dtype(files: Mapping[str, StoredTensor], stored: str, dtype: torch.dtype) -> None:
    """A missing tensor is told of elsewhere."""
    if stored in files and _DTYPES[files[stored].dtype] != dtype:
        path, _, found = files[stored]
        raise UserError(
            f"{path}: {stored} is stored as {found}, {str(dtype).removeprefix('torch.')} is needed: convert it again"
        )


_DTYPES = {**DTYPES, "I8": torch.int8, "U8": torch.uint8}


def _stored_tensors(folder: Path, bits: Bits) -> dict[str, StoredTensor]:
    shards = find_shards(folder, STEM, [path.name for path in folder.glob(f"{STEM}*.safetensors")])
    if not shards.names:
        raise UserError(f"{folder}: no {STEM}*.safetensors files, though config.json says they are quantised to "
                        f"{bits} bits; is the download complete?")  # fmt: skip
    return read_headers(folder, shards, dtypes=_DTYPES)

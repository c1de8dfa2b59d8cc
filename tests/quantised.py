"""The torch model that the CPU core must equal, and packs of models that were never on a disk."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from octavo.checkpoint.names import tensor_table
from octavo.checkpoint.pack import Pack, write_pack
from octavo.config import Bits, FormBits, ModelConfig
from octavo.models import Decoder
from octavo.models.attention import LocalAttention, SoftmaxAttention
from octavo.models.moe import Experts
from octavo.models.packing import Packing
from octavo.native.library import library
from octavo.ops.experts import swiglu
from octavo.ops.quantize import dequantize, quantize, quantized_linear


class MemorySource:
    """A decoder's tensors as a `Source`."""

    label, dtype, licence = "memory", torch.float32, None

    def __init__(self, decoder: Decoder) -> None:
        self.config = decoder.config
        self._parameters, self._table = dict(decoder.named_parameters()), tensor_table(decoder.config)

    def tensor(self, name: str) -> Tensor:
        entry = self._table[name]
        return self._parameters[entry.parameter].detach()[entry.index or ...].clone()

    def side_files(self) -> dict[str, bytes]:
        return {"tokenizer.json": b"{}", "notes.bin": bytes(range(256))}


def random_decoder(config: ModelConfig, seed: int = 0) -> Decoder:
    """As `initialise`, and with random norms: by norms of 1 a 4-bit embedding's values, which are whole steps, would
    lie on the border between two activations again and again, and the last bit of a float would decide."""
    decoder = Decoder(config).initialise(seed).eval()
    generator = torch.Generator().manual_seed(seed)
    for parameter in decoder.parameters():
        if parameter.ndim == 1:
            parameter.data.uniform_(0.5, 1.5, generator=generator)
    return decoder


def packed(decoder: Decoder, path: Path, bits: FormBits) -> Pack:
    """The decoder's pack, for the kernels in use."""
    write_pack(MemorySource(decoder), bits, path)
    return Pack(path)


def altered(path: Path, out: Path, change: Callable[[dict[str, Any], np.ndarray], None]) -> Path:
    """A copy of a pack whose header, or bytes [all tensors], `change` has changed in place, with checksums that fit."""
    data = np.fromfile(path, np.uint8)
    end = len(data) - 24
    start = end - int.from_bytes(data[end : end + 8].tobytes(), "little")
    header, tensors, magic = json.loads(data[start:end].tobytes()), data[:start].copy(), data[end + 16 :]
    change(header, tensors)
    for entry in header["tensors"].values():
        entry["crc"] = library().crc32c(tensors[entry["offset"] : entry["offset"] + entry["bytes"]])
    text = json.dumps(header).encode()
    lengths = len(text), library().crc32c(np.frombuffer(text, np.uint8))
    trailer = b"".join(number.to_bytes(8, "little") for number in lengths) + magic.tobytes()
    out.write_bytes(tensors.tobytes() + text + trailer)
    return out


class _Linear(nn.Module):
    def __init__(self, weight: Tensor, bits: Bits) -> None:
        super().__init__()
        self.columns, self.quantized = weight.shape[1], quantize(weight.detach(), bits)

    def forward(self, x: Tensor) -> Tensor:
        return quantized_linear(x, self.quantized, self.columns)


class _Experts(nn.Module):
    def __init__(self, experts: Experts, bits: Bits) -> None:
        super().__init__()
        self.gate_up, self.down = (
            nn.ModuleList(_Linear(matrix, bits) for matrix in stack) for stack in (experts.gate_up, experts.down)
        )

    def forward(self, rows: Tensor, counts: Tensor) -> Tensor:
        parts = zip(rows.split(counts.tolist()), self.gate_up, self.down, strict=True)
        return torch.cat([down(swiglu(*gate_up(x).chunk(2, dim=-1))) for x, gate_up, down in parts])


class _Int8Attention(LocalAttention):
    """Keys and values [K, Hk, D] in int8, with a scale for each token and head."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, packing: Packing, window: int | None) -> Tensor:
        k, v = ((x * (127 / top)).round() * (top / 127) for x, top in ((x, x.abs().amax(-1, True)) for x in (k, v)))
        return super().attend(q, k, v, packing, window)


def quantised(decoder: Decoder, bits: FormBits, kv: str = "float32") -> Decoder:
    """A copy that computes as the core should: every matrix and what it is multiplied with quantised, with 16 bits the
    matrices rounded to bf16 alone, and with `kv` "int8" keys and values too."""
    decoder = copy.deepcopy(decoder)
    if bits == 16:
        for name, parameter in decoder.named_parameters():
            if parameter.ndim > 1 and "router" not in name and "coefficient" not in name:
                parameter.data = parameter.data.bfloat16().float()
    for module in list(decoder.modules()):
        if kv == "int8" and isinstance(module, SoftmaxAttention):
            module.inner = _Int8Attention()
        for name, child in list(module.named_children()):
            if bits == 16:
                continue
            if isinstance(child, nn.Linear) and name not in ("lm_head", "coefficient"):
                setattr(module, name, _Linear(child.weight, bits))
            elif isinstance(child, Experts):
                setattr(module, name, _Experts(child, bits))
    if bits == 16:
        return decoder.eval()
    table = decoder.embed.weight
    head = _Linear(table if decoder.config.tie_embeddings else decoder.lm_head.weight, 8)
    decoder.__dict__["logits"] = head  # a module set as an attribute would not come before the class's method
    table.data = dequantize(quantize(table.detach(), 8), table.shape[1])
    return decoder.eval()

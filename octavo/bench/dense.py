"""Dense models beside a mixture: as wide as the experts that a token is sent to, or as all of them; random weights.

Of each there is only a pack, written once: nobody but our own runner is measured on them.
"""

import hashlib
import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from octavo.bench.shapes import random_tensor
from octavo.bench.workers.own import QUANTS
from octavo.checkpoint.names import tensor_table
from octavo.checkpoint.pack import DamagedPack, Pack, write_pack
from octavo.checkpoint.quantized import parts, quantized_bits
from octavo.config import FormBits, LayerSpec, ModelConfig
from octavo.errors import UsageError
from octavo.native.library import library
from octavo.ops.quantize import Quantized
from octavo.progress import Progress, silent

_INTEGERS: dict[int, tuple[int, int]] = {4: (0, 256), 8: (-127, 128)}  # what a byte may hold: two weights, or one
_DEVIATION = {4: (255 / 12) ** 0.5, 8: ((255**2 - 1) / 12) ** 0.5}  # of one weight's integer, all equally likely


def dense_shapes(config: ModelConfig, model: str) -> dict[str, ModelConfig]:
    """The shapes called `active` and `total`: as `config`, but each layer of experts is a dense one, as wide as `top_k`
    or all of them together, a shared expert added to both. What is left out is the router.

    Raises UsageError for a model with dense layers; `model` is its name.
    """
    dense = sum(layer.mlp == "dense" for layer in config.layers)
    if dense:
        raise UsageError(
            f"--dense: {model} has no experts in {dense} of its {config.num_layers} layers; name a mixture of experts "
            "as MODEL, or leave --dense out"
        )
    return {
        size: replace(
            config,
            layers=tuple(LayerSpec(attention=layer.attention) for layer in config.layers),
            intermediate_size=experts * config.intermediate_size + config.shared_intermediate_size,
            shared_intermediate_size=0,
            num_experts=0,
            top_k=0,
        )
        for size, experts in (("active", config.top_k), ("total", config.num_experts))
    }


def dense_pack(config: ModelConfig, quant: str, folder: Path, progress: Progress = silent) -> Path:
    """The pack in `folder` of a model of this shape with random weights in the form `quant`, which has bits.

    Its name carries a digest of the shape. Made where it is missing, damaged or of another version, one matrix in
    memory. Raises UserError when it cannot be written or read.
    """
    bits = QUANTS[quant]
    assert bits is not None, f"{quant} has no pack"
    digest = hashlib.sha256(repr(config).encode()).hexdigest()[:12]
    path = folder / f"dense-{digest}-{quant}-x{library().lanes}.pack"
    try:
        Pack(path)
    except DamagedPack:
        write_pack(RandomSource(config, bits), bits, path, progress)
    return path


class RandomSource:
    """A `Source` of random weights with the standard deviation `initializer_range`, and norms of 1.

    For 4 and 8 bits it is a `QuantizedSource`: all integers are equally likely and share one scale, for quantising
    searches long for what nobody needs here.
    """

    label, licence, dtype = "random weights", None, torch.float32

    def __init__(self, config: ModelConfig, bits: FormBits) -> None:
        self.config, self.bits = config, bits
        self._table = tensor_table(config)

    def check(self, progress: Progress = silent) -> None:
        """Nothing to compare."""

    def tensor(self, name: str) -> Tensor:
        """One canonical tensor, not quantised: fp32."""
        return random_tensor(self.config, name, self._table[name].shape)

    def quantized(self, name: str) -> Quantized:
        """One canonical matrix; the same for a name on every machine."""
        assert self.bits != 16
        (width, _), (groups, _) = parts(name, self._table[name].shape, self.bits).values()
        bits = quantized_bits(name, self.bits)
        low, high = _INTEGERS[bits]
        random = np.random.default_rng(zlib.crc32(name.encode()))
        integers = random.integers(low, high, width, np.uint8 if bits == 4 else np.int8)
        scale = self.config.initializer_range / _DEVIATION[bits]
        return Quantized(torch.from_numpy(integers), torch.full(groups, scale, dtype=torch.float16), bits)

    def side_files(self) -> Mapping[str, bytes]:
        """None: nobody talks to it."""
        return {}

"""Quantise a checkpoint into a model folder of 4 or 8 bits a weight."""

import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from octavo.checkpoint.convert import display_name, write_model
from octavo.checkpoint.load import load_tokenizer
from octavo.checkpoint.names import is_quantized_name, tensor_table
from octavo.checkpoint.proof import Proof, Rounded, compare
from octavo.checkpoint.quantized import QuantizedFolder, parts, quantized_bits, read_quantized
from octavo.checkpoint.source import Source
from octavo.checkpoint.writer import PlannedTensor
from octavo.config import Bits
from octavo.ops.quantize import Quantized, dequantize, quantize
from octavo.progress import Progress, silent

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class QuantizedProof(Proof):
    """A proof about the parent with its weights rounded in the same way.

    unrounded_...: differences of logits from the parent's as it is, which no bound is stated for.
    """

    bits: int = 0
    unrounded_max_difference: float = 0.0
    unrounded_rms_difference: float = 0.0

    def summary(self) -> str:
        """What the terminal says: what was proven, and how far the model now is from its parent."""
        return (
            f"Logits equal those of the parent rounded to int{self.bits} within {self.max_difference:.1e} (bound "
            f"{self.max_bound:.0e}) on {self.tokens} random ids. From the parent's own they differ by up to "
            f"{self.unrounded_max_difference:.2g} (RMS {self.unrounded_rms_difference:.2g}) at logits up to "
            f"{self.largest_logit:.0f}."
        )


def quantize_model(source: Source, out: Path, bits: Bits, progress: Progress = silent) -> Proof:
    """Write `source` as the new folder `out` with every matrix in `bits` bits (names.matrix_bits), routers and norms in
    fp32.

    A source that is quantised so already is copied bit for bit; one of other bits is dequantised first, with a notice.
    Raises as `convert` does, and UserError for weights that are not finite or too large for fp16 scales.
    """
    load_tokenizer(source)
    if isinstance(source, QuantizedFolder) and source.bits != bits:
        logger.warning("%s: is quantised to int%d already, and its weights are rounded again: the errors of both add "
                       "up. Quantise the original where you have it", source.label, source.bits)  # fmt: skip

    def prove(child: Source) -> QuantizedProof:
        rounded = compare(_rounded(source, bits), child, progress=progress)
        plain = compare(source, child, progress=progress)
        return QuantizedProof(
            **asdict(rounded),
            bits=bits,
            unrounded_max_difference=plain.max_difference,
            unrounded_rms_difference=plain.rms_difference,
        )

    lineage = {"made_by": f"octavo convert --quant int{bits}", "parent": display_name(source)}
    planned = list(_planned(source, bits))
    return write_model(out, source, source.config, planned, torch.float32, prove, lineage, progress, bits)


def _planned(source: Source, bits: Bits) -> Iterator[PlannedTensor]:
    """Every tensor to be written, with integers and scales of a matrix one after the other."""
    quantiser = _Quantiser(source, bits)
    for name, entry in tensor_table(source.config).items():
        if not is_quantized_name(name):
            yield PlannedTensor(name, entry.shape, partial(source.tensor, name))
            continue
        for half, (stored, (shape, dtype)) in enumerate(parts(name, entry.shape, bits).items()):
            yield PlannedTensor(stored, shape, partial(quantiser.half, name, half), dtype)


class _Quantiser:
    """Quantises one matrix at a time and keeps it until the next one's turn, for it is written in two halves."""

    def __init__(self, source: Source, bits: Bits) -> None:
        self._source, self._bits = source, bits
        self._last: tuple[str, Quantized] | None = None

    def half(self, name: str, half: int) -> Tensor:
        """The integers (0) or the scales (1) of a canonical matrix."""
        if self._last is None or self._last[0] != name:
            self._last = None  # before the next one is made, so that there are never two
            self._last = name, read_quantized(self._source, name, self._bits)
        quantized = self._last[1]
        return (quantized.qweight, quantized.scales)[half]


def _rounded(source: Source, bits: Bits) -> Source:
    """The source as its child should compute: matrices quantised and dequantised again, unless they are stored so."""
    if isinstance(source, QuantizedFolder) and source.bits == bits:
        return source

    def rounding(name: str, values: Tensor) -> Tensor:
        if not is_quantized_name(name):
            return values
        return dequantize(quantize(values, quantized_bits(name, bits)), values.shape[-1])

    return Rounded(source, rounding)

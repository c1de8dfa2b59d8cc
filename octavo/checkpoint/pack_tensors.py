"""What goes into a pack: a source's tensors quantised and interleaved, and the small fp32 ones."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from octavo.checkpoint.names import tensor_table
from octavo.checkpoint.pack import Part, PlannedMatrix
from octavo.checkpoint.quantized import read_quantized
from octavo.checkpoint.source import Source
from octavo.config import FormBits
from octavo.errors import UserError
from octavo.native.cores import cores
from octavo.native.library import UNIT, library
from octavo.ops.linear_attention import decay_slopes
from octavo.ops.rotary import inverse_frequencies

_SMALL = {  # names in the pack of a layer's fp32 tensors, by their names in the decoder
    "attention_norm.weight": "attention_norm",
    "attention.norm.weight": "inner_norm",
    "mlp_norm.weight": "mlp_norm",
    "mlp.router.weight": "router",
    "mlp.shared.coefficient.weight": "shared_gate",
}


def packed_matrix(source: Source, matrix: PlannedMatrix, bits: FormBits) -> NDArray[np.uint8]:
    """The bytes of a planned matrix of a model of `bits` bits. Raises UserError as reading the source does."""
    rows = matrix.count * -(-matrix.rows // UNIT) * UNIT
    packed = np.empty(library().packed_bytes(rows, matrix.cols, matrix.bits(bits)), np.uint8)

    def put(part: Part) -> None:
        if bits == 16:
            library().pack(packed, _bf16(source, part.name), None, matrix.cols, part.first, part.step)
            return
        quantized = read_quantized(source, part.name, bits)
        qweight, scales = quantized.qweight.numpy(), quantized.scales.numpy()
        library().pack(packed, qweight, scales, matrix.cols, part.first, part.step)

    # a thread a core, each with torch on that core alone: quantising works on pieces too small for torch's own threads
    with ThreadPoolExecutor(cores(), initializer=torch.set_num_threads, initargs=(1,)) as workers:
        list(workers.map(put, matrix.parts))
    return packed


def _bf16(source: Source, name: str) -> NDArray[np.uint16]:
    weight = source.tensor(name).to(torch.bfloat16)
    if not weight.isfinite().all():
        raise UserError(f"{source.label}: {name} is not finite in bf16; check its weights")
    bits: NDArray[np.uint16] = weight.contiguous().view(torch.int16).numpy().view(np.uint16)
    return bits


def float_tensors(source: Source) -> Iterator[tuple[str, NDArray[Any]]]:
    """(name, fp32 array) of everything that is not a packed matrix, what is computed from the config included."""
    config = source.config
    for name, entry in tensor_table(config).items():
        if entry.parameter == "norm.weight":
            yield "final_norm", source.tensor(name).float().numpy()
        elif entry.parameter.startswith("layers."):
            _, number, parameter = entry.parameter.split(".", 2)
            if parameter in _SMALL:
                yield f"{number}.{_SMALL[parameter]}", source.tensor(name).float().numpy()
    yield "frequencies", inverse_frequencies(config.rope).numpy()
    for layer in config.lightning_layers:
        slopes = decay_slopes(config.num_heads, layer, config.num_layers, config.alibi_slopes)
        yield f"{layer}.decays", (-slopes).exp().numpy()

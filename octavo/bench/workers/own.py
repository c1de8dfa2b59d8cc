"""octavo as a party: loads a model once, then answers metrics.

python -m octavo.bench.workers.own MODEL QUANT PAGES SLOTS THREADS
"""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from octavo import __version__
from octavo.bench.bounds import HEAD_BYTES, WEIGHT_BYTES
from octavo.bench.measure import SyntheticRunner, measure
from octavo.bench.metrics import CHUNK, parse_metric
from octavo.bench.workers.protocol import serve
from octavo.checkpoint.pack import Pack
from octavo.checkpoint.pack_cache import open_pack
from octavo.config import FORMS, FormBits
from octavo.engine.native_runner import NativeRunner

TORCH_KEY_VALUE_BYTES = 4.0  # fp32
QUANTS: dict[str, FormBits | None] = {"fp32": None, **FORMS}  # bits of the weights; fp32 runs in torch


def load_runner(model: str, quant: str, num_pages: int, num_slots: int, threads: int) -> SyntheticRunner:
    """The model on octavo's fastest runner for the CPU, with its weights as `quant`; a `.pack` is taken as it is.

    Raises UserError if it cannot."""
    bits = QUANTS[quant]
    if bits is None:
        import torch

        from octavo.checkpoint.load import load_decoder
        from octavo.checkpoint.source import open_source
        from octavo.engine.torch_runner import TorchRunner

        torch.set_num_threads(threads)
        return TorchRunner(load_decoder(open_source(model)), num_pages, num_slots)
    pack = Pack(Path(model)) if model.endswith(".pack") else open_pack(model, bits)
    return NativeRunner(pack, num_pages, num_slots, threads)


def main(model: str, quant: str, pages: str, slots: str, threads: str) -> int:
    """Load, run each kind of step once, then answer."""

    def load() -> tuple[dict[str, Any], Any]:
        runner = load_runner(model, quant, int(pages), int(slots), int(threads))
        for name in (f"prefill_{CHUNK}", "decode_1"):
            measure(runner, parse_metric(name), steps=1)
        about = {
            "version": f"octavo {__version__}",
            "runner": type(runner).__name__,
            "weight_bytes": WEIGHT_BYTES[quant],
            "head_bytes": HEAD_BYTES[quant],
            "key_value_bytes": getattr(runner, "key_value_bytes", TORCH_KEY_VALUE_BYTES),
        }
        return about, lambda request: asdict(measure(runner, parse_metric(request["metric"]), request["steps"]))

    return serve(load)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

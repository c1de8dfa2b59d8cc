"""Hugging Face transformers as a party: fp32, experts as grouped matrix products, at depth 0.

python -m octavo.bench.workers.transformers_worker FOLDER THREADS
"""

import sys
import time
from typing import Any

from octavo.bench.bounds import WEIGHT_BYTES
from octavo.bench.measure import random_ids
from octavo.bench.metrics import CHUNK, WARM_STEPS
from octavo.bench.workers.protocol import serve


def main(folder: str, threads: str) -> int:
    """Load, run each kind of step once, then answer."""

    def load() -> tuple[dict[str, Any], Any]:
        import torch
        import transformers

        torch.set_num_threads(int(threads))
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        # a dense model refuses to be given a way to compute experts
        experts = {"experts_implementation": "grouped_mm"} if getattr(config, "num_local_experts", 0) else {}
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, **experts
        ).eval()
        for kind, count in (("prefill", CHUNK), ("decode", 1)):
            measure(model, kind, count, 0, 1)
        about = {"version": f"transformers {transformers.__version__}", "weight_bytes": WEIGHT_BYTES["fp32"],
                 "key_value_bytes": 4.0}  # fmt: skip
        return about, lambda request: measure(
            model, request["kind"], request["count"], request["depth"], request["steps"]
        )

    return serve(load)


def measure(model: Any, kind: str, count: int, depth: int, steps: int) -> dict[str, Any]:
    """Seconds and tokens of one metric; a prompt is one pass, as users run it. Raises ValueError at a depth."""
    import torch

    if depth:
        raise ValueError("transformers is measured at depth 0 only")
    vocab_size = model.config.vocab_size
    with torch.inference_mode():
        if kind == "prefill":
            ids = torch.from_numpy(random_ids(vocab_size, count).T.copy())
            began = time.perf_counter()
            model(input_ids=ids, use_cache=True, logits_to_keep=1)
            return {"seconds": time.perf_counter() - began, "tokens": count}
        rows = torch.from_numpy(random_ids(vocab_size, WARM_STEPS + steps, count))
        cache, began = None, 0.0
        for step, row in enumerate(rows):
            if step == WARM_STEPS:
                began = time.perf_counter()
            cache = model(input_ids=row[:, None], past_key_values=cache, use_cache=True).past_key_values
        return {"seconds": time.perf_counter() - began, "tokens": count * steps}


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

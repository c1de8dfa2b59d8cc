"""What the engine itself costs, and what its prefix cache saves, on the CPU core.

    python bench/engine.py ./SmolLM2-8x135M-Instruct --quant int4

Overhead: with 1, 8 and 32 sequences decoding, the share of the time that is spent outside of `Runner.step`. Turns: a
conversation of ten turns with a system prompt of 400 tokens, 200 tokens in and 64 out a turn; the median time to the
first token of turns 2 to 10 with and without the prefix cache, on MODEL and on a hybrid of its widths with random
weights (seven lightning layers to each softmax layer).

Disk: seconds to the first token for a conversation of 2,000 tokens and 20 new ones that memory had to forget, computed
again, read from a file that the system has in memory, and from one that it has not; milliseconds to forget a page.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from octavo import Engine, EngineOptions, SamplingParams
from octavo.bench.dense import dense_pack
from octavo.checkpoint.pack import Pack
from octavo.config import FORMS, LayerSpec
from octavo.engine.native_runner import NativeRunner
from octavo.engine.open import OpenModel, open_model

SAMPLINGS = {"greedy": {}, "top-p": {"temperature": 0.8, "top_p": 0.95, "seed": 1}}
# texts as people write them: how long a draw takes depends on how sure the model is
OPENINGS = ("The history of", "A short story about", "What I like best about", "Two reasons to study")
SUBJECTS = ("Rome", "the sea", "trains", "honey bees", "mathematics", "old maps", "bread", "the moon")


def overhead(opened: OpenModel, batch: int, sampling: dict[str, float], tokens: int = 96) -> dict[str, float]:
    """Milliseconds a step with `batch` sequences that decode, and how many of them are not the runner's."""
    options = EngineOptions(context=1024, memory_tokens=batch * 512, max_running=batch, speculate=0)
    with Engine(opened, options) as engine:
        steps: list[tuple[float, float, int]] = []
        compute = engine.runner.step

        def timed(rows):
            began = time.perf_counter()
            result = compute(rows)
            steps.append((began, time.perf_counter(), len(rows.ids)))
            return result

        engine.runner.step = timed
        prompts = [f"{opening} {subject}" for subject in SUBJECTS for opening in OPENINGS][:batch]
        params = SamplingParams(max_new_tokens=tokens, ignore_eos=True, **sampling)
        engine.generate(prompts, params, progress=lambda *_: None)
    full = [index for index, step in enumerate(steps[:-1]) if step[2] == batch and steps[index + 1][2] == batch]
    whole = statistics.median(steps[index + 1][0] - steps[index][0] for index in full)
    outside = statistics.median(steps[index + 1][0] - steps[index][1] for index in full)
    return {"step_ms": 1e3 * whole, "outside_ms": 1e3 * outside, "share": outside / whole}


def turns(opened: OpenModel, prefix_cache: bool, vocabulary: int = 10_000) -> list[float]:
    """Seconds to the first token of each of ten turns."""
    options = EngineOptions(context=4096, prefix_cache=prefix_cache)
    random = np.random.default_rng(0)
    history, seconds = random.integers(100, vocabulary, 400).tolist(), []
    params = SamplingParams(max_new_tokens=64, ignore_eos=True)
    with Engine(opened, options) as engine:
        for _ in range(10):
            history += random.integers(100, vocabulary, 200).tolist()
            began = time.perf_counter()
            pieces = engine.stream(history, params)
            answer = [next(pieces)]
            seconds.append(time.perf_counter() - began)
            answer += pieces
            history += [piece.token_id for piece in answer]
    return seconds


def resumed(opened: OpenModel, disk_bytes: int, repeats: int = 3, tokens: int = 2000) -> dict[str, object]:
    """Seconds to the first token of a conversation that was forgotten, and milliseconds to forget one of its pages."""
    random = np.random.default_rng(0)
    ids, params = random.integers(100, 10_000, tokens).tolist(), SamplingParams(max_new_tokens=1)
    found: dict[str, object] = {}
    with Engine(opened, EngineOptions(context=4096, memory_tokens=4096, disk_bytes=disk_bytes)) as engine:
        cache, everything = engine.core.scheduler.cache, engine.core.scheduler.pool.num_pages
        engine.complete(ids, params)
        for system in ("warm", "cold") if disk_bytes else ("none",):
            seconds = []
            for _ in range(repeats):
                time.sleep(0.1)  # an answer is given before its pages are
                pages, began = engine.statistics().pages_cached, time.perf_counter()
                cache.make_room(everything)  # the engine's thread sleeps
                found.setdefault("forget_page_ms", 1e3 * (time.perf_counter() - began) / pages)
                if system == "cold":
                    os.fsync(cache.disk._file.fileno())
                    os.posix_fadvise(cache.disk._file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                began = time.perf_counter()
                done = engine.complete(ids + random.integers(100, 10_000, 20).tolist(), params)
                seconds.append(time.perf_counter() - began)
            found |= {system: seconds, f"{system}_cached_tokens": done.cached_tokens}
        found["disk_bytes"] = engine.statistics().disk_bytes
    return found


def hybrid(opened: OpenModel, quant: str, folder: Path) -> OpenModel:
    """A model of MiniMax-Text-01's pattern with this one's widths, heads and experts, and random weights."""
    config = opened.config
    pattern = ["softmax" if layer % 8 == 7 else "lightning" for layer in range(config.num_layers)]
    layers = tuple(LayerSpec(attention=kind, mlp="experts") for kind in pattern)
    heads = 2 ** (config.num_heads - 1).bit_length()
    config = replace(config, family="minimax_text_01", layers=layers, num_heads=heads, num_kv_heads=heads // 4)
    pack = Pack(dense_pack(config, quant, folder))
    return OpenModel(config, opened.tokenizer, lambda pages, slots: NativeRunner(pack, pages, slots), "random")


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--quant", default="int4")
    parser.add_argument("--only", choices=["overhead", "turns", "disk"])
    arguments = parser.parse_args()
    opened = open_model(arguments.model, FORMS[arguments.quant])
    found: dict[str, object] = {}
    if arguments.only in (None, "overhead"):
        for name, sampling in SAMPLINGS.items():
            for batch in (1, 8, 32):
                found[f"overhead of {batch}, {name}"] = overhead(opened, batch, sampling)
                print(batch, name, found[f"overhead of {batch}, {name}"], flush=True)
    with tempfile.TemporaryDirectory() as folder:
        models = {"mixture": opened}
        if arguments.only != "overhead":
            models["hybrid"] = hybrid(opened, arguments.quant, Path(folder))
        for name, model in models.items():
            if arguments.only in (None, "turns"):
                with_cache, without = turns(model, True), turns(model, False)
                ratio = statistics.median(without[1:]) / statistics.median(with_cache[1:])
                found[f"turns, {name}"] = {"with": with_cache, "without": without, "ratio": ratio}
                print(name, found[f"turns, {name}"], flush=True)
            if arguments.only in (None, "disk"):
                found[f"disk, {name}"] = {"again": resumed(model, 0), "disk": resumed(model, 2**30)}
                print(name, found[f"disk, {name}"], flush=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main()

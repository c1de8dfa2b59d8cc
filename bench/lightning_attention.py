"""One lightning layer of ours beside transformers' in-tree one: same weights, same inputs, one run, fp32 on the CPU.

    python bench/lightning_attention.py [--heads 16 --head-dim 64 --hidden 1024 --tokens 4096 --repeats 7]

Both layers' results are compared before anything is timed. Prints a Markdown table of medians. Each pair of timings is
taken in turns, so that a change of the machine's speed meets both.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import MiniMaxConfig
from transformers.models.minimax.modeling_minimax import MiniMaxCache, MiniMaxLightningAttention

from octavo.config import LayerSpec, ModelConfig, RopeConfig
from octavo.models import Packing
from octavo.models.lightning import LightningAttention

LAYERS, LAYER = 80, 40


class Memory:
    """A cache of one sequence's state, as the engine would hold it."""

    def __init__(self) -> None:
        self.state: Tensor | None = None

    def states(self, layer: int) -> Tensor | None:
        """The state to continue from."""
        return self.state

    def store_states(self, layer: int, states: Tensor) -> None:
        """Keep it."""
        self.state = states


def layers(options: argparse.Namespace) -> tuple[LightningAttention, MiniMaxLightningAttention]:
    """Both layers with the same weights."""
    shape = {"hidden_size": options.hidden, "head_dim": options.head_dim}
    theirs = MiniMaxLightningAttention(
        MiniMaxConfig(**shape, num_attention_heads=options.heads, num_hidden_layers=LAYERS, num_key_value_heads=8),
        LAYER,
    ).eval()
    ours = LightningAttention(
        ModelConfig(
            **shape, family="minimax", vocab_size=8, intermediate_size=8, num_heads=options.heads, num_kv_heads=8,
            layers=(LayerSpec(attention="lightning"),) * LAYERS, rope=RopeConfig(theta=1e4, dim=options.head_dim),
            max_positions=8, norm_eps=1e-5,
        ),
        LAYER,
    )  # fmt: skip
    ours.load_state_dict({name: weight for name, weight in theirs.state_dict().items() if name.endswith("weight")})
    return ours, theirs


def turns(first: Callable[[], Any], second: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """Median milliseconds of both, taken in turns after one round to warm up."""
    times: tuple[list[float], list[float]] = ([], [])
    for round_ in range(repeats + 1):
        for run, kept in zip((first, second), times, strict=True):
            began = time.perf_counter()
            run()
            if round_:
                kept.append(1000 * (time.perf_counter() - began))
    return statistics.median(times[0]), statistics.median(times[1])


def main() -> None:
    """Compare, time, print."""
    parser = argparse.ArgumentParser()
    for name, default in (("heads", 16), ("head-dim", 64), ("hidden", 1024), ("tokens", 4096), ("repeats", 7)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    torch.manual_seed(0)
    ours, theirs = layers(options)
    x = torch.randn(options.tokens, options.hidden)
    continued, one = x[:256], x[:1]

    packings = {rows: Packing.from_lengths([rows]) for rows in (1, 256, 300, options.tokens)}  # one a step, not a layer

    def mine(x: Tensor, memory: Memory | None = None) -> Tensor:
        return ours(x, None, packings[len(x)], memory)

    def other(x: Tensor, cache: MiniMaxCache | None = None) -> Tensor:
        return theirs(x[None], None, None, past_key_values=cache)[0][0]

    def caches() -> tuple[Memory, MiniMaxCache]:
        """Both after the same prompt."""
        memory, cache = Memory(), MiniMaxCache()
        mine(x[:300], memory)
        other(x[:300], cache)
        return memory, cache

    def trained(run: Callable[[Tensor], Tensor]) -> None:
        run(x.clone().requires_grad_()).sum().backward()

    with torch.no_grad():
        memory, cache = caches()
        pairs = {
            "whole": (mine(x), other(x)),
            "continued": (mine(continued, memory), other(continued, cache)),
        }
        for name, (a, b) in pairs.items():
            assert (a - b).norm() / b.norm() < 1e-4, f"{name}: the layers disagree"
        rows = [(f"prompt of {options.tokens} tokens", turns(lambda: mine(x), lambda: other(x), options.repeats))]
        memory, cache = caches()
        work = turns(lambda: mine(continued, memory), lambda: other(continued, cache), options.repeats)
        rows.append(("256 more tokens of a prompt", work))
        memory, cache = caches()
        work = turns(lambda: mine(one, memory), lambda: other(one, cache), 20 * options.repeats)
        rows.append(("one token", work))
    work = turns(lambda: trained(mine), lambda: trained(other), options.repeats)
    rows.append((f"forward and backward, {options.tokens} tokens", work))
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {options}\n")
    print("| | octavo, ms | transformers, ms | ratio |\n| --- | --- | --- | --- |")
    for name, (a, b) in rows:
        print(f"| {name} | {a:.2f} | {b:.2f} | {b / a:.2f} |")


if __name__ == "__main__":
    main()

"""Time one metric on a runner. Numpy only, as the runner's interface is."""

import time
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from octavo.bench.metrics import CHUNK, WARM_STEPS, Metric
from octavo.engine.runner import PAGE_TOKENS, Runner, StepBatch, StepResult

IDS_SEED = 0  # every party feeds the same ids, so that the same experts are hit


class SyntheticRunner(Runner, Protocol):
    """A runner whose memory can be filled without computing what would lie there."""

    def fill_synthetic(self, page_table_row: NDArray[np.int64], tokens: int, state_slot: int) -> None:
        """Make the pages (and the slot, where there are states) hold random values as after `tokens` tokens."""
        ...


@dataclass(frozen=True)
class Timing:
    """`tokens` were computed in `seconds`, in `steps` steps; `expert_reads` is how many experts' weights a step read,
    all layers together, on average (0 for a dense model)."""

    seconds: float
    tokens: int
    steps: int
    expert_reads: float


def pages_needed(metric: Metric, steps: int) -> int:
    """Pages of all sequences of a metric."""
    return metric.sequences * _pages(metric, steps)


def measure(runner: SyntheticRunner, metric: Metric, steps: int) -> Timing:
    """Run the metric once. Decoding: `steps` timed steps after WARM_STEPS; prefill: one prompt in chunks of CHUNK.

    Sequence s has the pages from s * n on and slot s. Raises ValueError where the runner has too few of them.
    """
    width = _pages(metric, steps)
    tables = np.arange(metric.sequences * width).reshape(metric.sequences, width)
    slots = np.arange(metric.sequences) if runner.num_slots else np.full(metric.sequences, -1)
    if metric.depth:
        for table, slot in zip(tables, slots.tolist(), strict=True):
            runner.fill_synthetic(table, metric.depth, slot)
    run = _prefill if metric.kind == "prefill" else _decode
    return run(runner, metric, steps, tables, slots)


def random_ids(vocab_size: int, count: int, width: int = 1) -> NDArray[np.int64]:
    """int64 [count, width], the same for everyone who asks."""
    return np.random.default_rng(IDS_SEED).integers(0, vocab_size, (count, width))


def _pages(metric: Metric, steps: int) -> int:
    return -(-metric.tokens_held(steps) // PAGE_TOKENS)


def _prefill(runner: Runner, metric: Metric, _: int, tables: NDArray[np.int64], slots: NDArray[np.int64]) -> Timing:
    ids = random_ids(runner.config.vocab_size, metric.count)[:, 0]
    results = []
    began = time.perf_counter()
    for start in range(0, metric.count, CHUNK):
        part = ids[start : start + CHUNK]
        last = start + len(part) == metric.count
        results.append(runner.step(StepBatch(
            ids=part,
            cu_seqlens=np.array([0, len(part)]),
            positions=metric.depth + np.arange(start, start + len(part)),
            page_table=tables,
            state_slots=slots,
            logit_rows=np.array([len(part) - 1] if last else [], np.int64),
        )))  # fmt: skip
    return _timing(time.perf_counter() - began, metric.count, results)


def _decode(runner: Runner, metric: Metric, steps: int, tables: NDArray[np.int64], slots: NDArray[np.int64]) -> Timing:
    sequences = metric.count
    ids = random_ids(runner.config.vocab_size, WARM_STEPS + steps, sequences)
    bounds, rows = np.arange(sequences + 1), np.arange(sequences)
    results = []
    began = 0.0
    for step in range(WARM_STEPS + steps):
        if step == WARM_STEPS:
            began = time.perf_counter()
        positions = np.full(sequences, metric.depth + step)
        results.append(runner.step(StepBatch(ids[step], bounds, positions, tables, slots, logit_rows=rows)))
    return _timing(time.perf_counter() - began, sequences * steps, results[WARM_STEPS:])


def _timing(seconds: float, tokens: int, results: list[StepResult]) -> Timing:
    reads = [np.count_nonzero(result.expert_counts) for result in results]
    return Timing(seconds, tokens, len(results), float(np.mean(reads)))

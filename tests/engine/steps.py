"""Batches for any runner, batches that every runner refuses, and runs that cut requests up at random."""

from collections.abc import Callable
from typing import Any

import numpy as np

from octavo.engine.runner import PAGE_TOKENS, Runner, StepBatch

PAGES = 40
Part = tuple[np.ndarray, int, list[int]]


def tokens(length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 331, length)


def batch(parts: list[Part], slots: list[int] | None = None, **rows: np.ndarray) -> StepBatch:
    """parts: (new ids, position of the first, pages) of each sequence; its slot has its first page's number, or that
    in `slots`."""
    lengths = [len(ids) for ids, _, _ in parts]
    width = max(len(pages) for _, _, pages in parts)
    table = np.full((len(parts), width), -1)
    for row, (_, _, pages) in zip(table, parts, strict=True):
        row[: len(pages)] = pages
    return StepBatch(
        ids=np.concatenate([ids for ids, _, _ in parts]),
        cu_seqlens=np.array([0, *np.cumsum(lengths)]),
        positions=np.concatenate([np.arange(start, start + len(ids)) for ids, start, _ in parts]),
        page_table=table,
        state_slots=np.array(slots or [pages[0] for _, _, pages in parts]),
        **rows,
    )


GOOD = batch([(np.array([1, 2, 3]), 0, [0]), (np.array([4]), 0, [1])], logit_rows=np.array([3]))
# Changes to GOOD that make it contradict itself, or a vocabulary of 331, PAGES pages or 2 slots; and what is said then.
CONTRADICTIONS: list[tuple[dict[str, Any], str]] = [
    ({"ids": np.array([1, 2, 3, 331])}, "token ids must lie between 0 and 330"),
    ({"ids": np.array([1, 2, 3, -1])}, "token ids must lie"),
    ({"ids": np.array([1, 2, 3, 4], np.int32)}, "ids is int32"),
    ({"ids": np.array([1.0, 2.0, 3.0, np.nan])}, "ids is float64"),
    ({"ids": np.zeros((4, 0), np.int64)}, r"ids is int64 \[4, 0\]"),
    ({"ids": np.array([1, 2, 3])}, "cu_seqlens .* does not divide 3 rows"),
    ({"cu_seqlens": np.array([0, 3])}, "cu_seqlens .* does not divide 4 rows"),
    ({"cu_seqlens": np.array([1, 3, 4])}, "cu_seqlens .* does not divide"),
    ({"cu_seqlens": np.array([0, 4, 4])}, "cu_seqlens .* does not divide"),
    ({"cu_seqlens": np.array([0, 0, 4])}, "cu_seqlens .* does not divide"),
    ({"cu_seqlens": np.array([0.0, 3.0, 4.0])}, "cu_seqlens is float64"),
    ({"positions": np.array([0, 1, 2, -1])}, "positions must be consecutive"),
    ({"positions": np.array([0, 1, 3, 0])}, "positions must be consecutive"),
    ({"positions": np.array([0, 1, 2, 0], np.uint64)}, "positions is uint64"),
    ({"positions": np.array([0, 1, 2, 32])}, r"page_table row \[1\] does not cover position 32"),
    ({"positions": np.array([30, 31, 32, 0])}, r"page_table row \[0\] does not cover position 32"),
    ({"positions": np.array([0, 1, 2, 2**40])}, "page_table row .* does not cover"),
    ({"page_table": np.array([[0], [PAGES]])}, "page_table row .* does not cover"),
    ({"page_table": np.array([[0], [-1]])}, "page_table row .* does not cover"),
    ({"page_table": np.array([[0], [0]])}, r"new rows of two places go to pages \[0\]"),
    ({"page_table": np.zeros((2, 0), np.int64)}, "page_table row .* does not cover"),
    ({"page_table": np.array([0, 1])}, r"page_table is int64 \[2\]"),
    ({"page_table": np.array([[0]])}, "page_table and state_slots need one row a sequence"),
    ({"state_slots": np.array([0])}, "page_table and state_slots need one row a sequence"),
    ({"state_slots": np.array([1, 1])}, "state_slots .* must be different numbers from 0 to 1"),
    ({"state_slots": np.array([0, 2])}, "state_slots .* must be different"),
    ({"state_slots": np.array([-1, 0])}, "state_slots .* must be different"),
    ({"logit_rows": np.array([4])}, r"logit_rows \[4\] must lie between 0 and 3"),
    ({"logit_rows": np.array([-1])}, "logit_rows .* must lie"),
    ({"logit_rows": np.array([[3]])}, r"logit_rows is int64 \[1, 1\]"),
    ({"logit_rows": np.array([3.0])}, "logit_rows is float64"),
    ({"hidden_rows": np.array([0, 4])}, "hidden_rows .* must lie"),
    ({"hidden_rows": np.array([True])}, "hidden_rows is bool"),
]


def contradicting(change: dict[str, Any]) -> StepBatch:
    """GOOD with some of its arrays replaced."""
    return StepBatch(**{**vars(GOOD), **change})


def cut_up(
    runner: Runner, requests: list[np.ndarray], seed: int, longest: int, free: Callable[[int], None] | None = None
) -> list[np.ndarray]:
    """The logits [length, vocab] of every row of each request, in steps of which each takes up to `longest` more tokens
    of some requests, which begin at different steps, in any order, on pages and slots drawn by lot. `free` is called
    for each page that has come to lie behind the model's window; the page table no longer names it."""
    generator = np.random.default_rng(seed)
    pages = iter(generator.permutation(runner.num_pages).tolist())
    tables = [[next(pages) for _ in range(-(-len(ids) // PAGE_TOKENS))] for ids in requests]
    slots = generator.permutation(max(runner.num_slots, len(requests)))[: len(requests)].tolist()
    done, logits = [0] * len(requests), [[] for _ in requests]
    while unfinished := [s for s, ids in enumerate(requests) if done[s] < len(ids)]:
        chosen = generator.permutation(unfinished)[: generator.integers(1, len(unfinished) + 1)].tolist()
        for s in chosen if free else ():
            for number in range(max(0, done[s] - runner.config.sliding_window + 1) // PAGE_TOKENS):
                if tables[s][number] >= 0:
                    free(tables[s][number])
                    tables[s][number] = -1
        sizes = [min(int(generator.integers(1, longest + 1)), len(requests[s]) - done[s]) for s in chosen]
        parts = [(requests[s][done[s] : done[s] + n], done[s], tables[s]) for s, n in zip(chosen, sizes, strict=True)]
        rows = np.arange(sum(sizes))
        result = runner.step(batch(parts, [slots[s] for s in chosen], logit_rows=rows)).logits
        for s, size, of in zip(chosen, sizes, np.split(result, np.cumsum(sizes)[:-1]), strict=True):
            logits[s].append(of)
            done[s] += size
    return [np.concatenate(parts) for parts in logits]

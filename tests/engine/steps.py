"""Batches for any runner, and runs that cut requests up at random."""

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


def cut_up(runner: Runner, requests: list[np.ndarray], seed: int, longest: int) -> list[np.ndarray]:
    """The logits [length, vocab] of every row of each request, in steps of which each takes up to `longest` more tokens
    of some requests, which begin at different steps, in any order, on pages and slots drawn by lot."""
    generator = np.random.default_rng(seed)
    pages = iter(generator.permutation(runner.num_pages).tolist())
    tables = [[next(pages) for _ in range(-(-len(ids) // PAGE_TOKENS))] for ids in requests]
    slots = generator.permutation(max(runner.num_slots, len(requests)))[: len(requests)].tolist()
    done, logits = [0] * len(requests), [[] for _ in requests]
    while unfinished := [s for s, ids in enumerate(requests) if done[s] < len(ids)]:
        chosen = generator.permutation(unfinished)[: generator.integers(1, len(unfinished) + 1)].tolist()
        sizes = [min(int(generator.integers(1, longest + 1)), len(requests[s]) - done[s]) for s in chosen]
        parts = [(requests[s][done[s] : done[s] + n], done[s], tables[s]) for s, n in zip(chosen, sizes, strict=True)]
        rows = np.arange(sum(sizes))
        result = runner.step(batch(parts, [slots[s] for s in chosen], logit_rows=rows)).logits
        for s, size, of in zip(chosen, sizes, np.split(result, np.cumsum(sizes)[:-1]), strict=True):
            logits[s].append(of)
            done[s] += size
    return [np.concatenate(parts) for parts in logits]

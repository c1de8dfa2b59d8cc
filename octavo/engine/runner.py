"""The one interface behind which every backend lives: `Runner.step(StepBatch) -> StepResult`.

Numpy only: a scheduler that plans steps, and a backend that has no torch, both speak it. Who owns what: the
caller decides which pages hold which tokens (the page table) and which slots hold which states; the runner only
reads and writes what the batch names.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from octavo.config import ModelConfig
from octavo.engine.draw import Draw

_INT64 = np.dtype(np.int64)
PAGE_TOKENS = 32  # tokens a page holds, in every softmax layer at once


def _no_rows() -> NDArray[np.int64]:
    return np.zeros(0, np.int64)


@dataclass(frozen=True)
class StepBatch:
    """One forward pass over S sequences with N new tokens in all, laid end to end without padding.

    ids: int64 [N]. cu_seqlens: int64 [S + 1], where each sequence's rows begin; every sequence has at least one.
    positions: int64 [N], consecutive within a sequence; what lies before a sequence's first position is already in
    its pages. page_table: int64 [S, P]; token t of sequence s lies in page page_table[s, t // PAGE_TOKENS]. Entries
    past the sequence's end are not read, nor are those of pages that lie wholly behind the sliding window of its first
    row (a row at position p sees p - window + 1 .. p): both may be -1. Sequences may share pages that they only read,
    never one that holds new rows. state_slots: int64 [S], where each sequence's recurrent states lie, -1
    for models without any. A sequence at position 0 begins with zeros whatever its slot held; at any other position the
    slot must hold the state of just that many tokens: unlike pages, a state cannot be rolled back. logit_rows,
    hidden_rows: int64, rows (0..N-1) whose logits or final hidden states are wanted.
    """

    ids: NDArray[np.int64]
    cu_seqlens: NDArray[np.int64]
    positions: NDArray[np.int64]
    page_table: NDArray[np.int64]
    state_slots: NDArray[np.int64]
    logit_rows: NDArray[np.int64] = field(default_factory=_no_rows)
    hidden_rows: NDArray[np.int64] = field(default_factory=_no_rows)

    def check(self, num_pages: int, vocab_size: int, num_slots: int = 0, window: int | None = None) -> None:
        """Raise ValueError where the arrays contradict each other or point outside: a planner's bug, said early.

        window: the model's sliding window in tokens, if it has one.
        """
        for name, array in vars(self).items():
            dimensions = 2 if name == "page_table" else 1
            if array.dtype != _INT64 or array.ndim != dimensions:
                raise ValueError(f"{name} is {array.dtype} {list(array.shape)}: it must be int64 and of {dimensions} "
                                 "dimensions")  # fmt: skip
        # lists from here on: this runs for every decoded token, and numpy's calls would take longer than its work
        rows, bounds, positions, ids = len(self.ids), *(a.tolist() for a in (self.cu_seqlens, self.positions, self.ids))
        parts = list(pairwise(bounds))
        if not parts or bounds[0] != 0 or bounds[-1] != rows or any(start >= end for start, end in parts):
            raise ValueError(f"cu_seqlens {bounds} does not divide {rows} rows into sequences")
        if len(positions) != rows or not all(_consecutive(positions[start:end]) for start, end in parts):
            raise ValueError("positions must be consecutive within each sequence")
        if not 0 <= min(ids) <= max(ids) < vocab_size:
            raise ValueError(f"token ids must lie between 0 and {vocab_size - 1}")
        slots = self.state_slots.tolist()
        if len(self.page_table) != len(parts) or len(slots) != len(parts):
            raise ValueError("page_table and state_slots need one row a sequence")
        if num_slots and not (0 <= min(slots) <= max(slots) < num_slots and len(set(slots)) == len(slots)):
            raise ValueError(f"state_slots {slots} must be different numbers from 0 to {num_slots - 1}")
        self._check_pages([(positions[start], positions[end - 1]) for start, end in parts], num_pages, window)
        for name in ("logit_rows", "hidden_rows"):
            wanted = getattr(self, name).tolist()
            if wanted and not 0 <= min(wanted) <= max(wanted) < rows:
                raise ValueError(f"{name} {wanted} must lie between 0 and {rows - 1}")

    def _check_pages(self, spans: list[tuple[int, int]], num_pages: int, window: int | None) -> None:
        """spans: the first and the last new position of each sequence."""
        width = self.page_table.shape[1]
        # one byte an entry, 1 for a page there is not (-1 is huge without a sign): bytes.find is quicker than any loop
        outside = (self.page_table.view(np.uint64) >= num_pages).tobytes()
        written: list[int] = []
        for sequence, (start, end) in enumerate(spans):
            seen = max(0, start - window + 1) // PAGE_TOKENS if window else 0
            first, last, at = start // PAGE_TOKENS, end // PAGE_TOKENS, sequence * width
            if last >= width or outside.find(1, at + seen, at + last + 1) >= 0:
                raise ValueError(f"page_table row {self.page_table[sequence].tolist()} does not cover position {end} "
                                 f"in {num_pages} pages")  # fmt: skip
            written += self.page_table[sequence, first : last + 1].tolist()
        if len(set(written)) < len(written):
            twice = sorted({page for page in written if written.count(page) > 1})
            raise ValueError(f"page_table: new rows of two places go to pages {twice}: give each sequence its own")


def _consecutive(positions: list[int]) -> bool:
    return positions[0] >= 0 and positions == list(range(positions[0], positions[0] + len(positions)))


@dataclass(frozen=True)
class StepResult:
    """What a step gives back.

    logits: fp32 [len(logit_rows), vocab]. hidden: fp32 [len(hidden_rows), H], after the final norm. expert_counts:
    int64 [layers, E], tokens routed to each expert in this step; E is 0 for a dense model, a dense layer's row is 0.
    """

    logits: NDArray[np.float32]
    hidden: NDArray[np.float32]
    expert_counts: NDArray[np.int64]


class Runner(Protocol):
    """A model that can take steps, with `num_pages` pages of key/value memory and `num_slots` slots for recurrent
    states, 0 for a model that has none.

    page_bytes: keys and values of one page in all softmax layers, scales included; 0 for a model without such layers.
    state_bytes: the states of one slot in all lightning layers; 0 for a model without. All methods may be called from
    any thread: they wait for a step that is under way. A number that is no page or slot raises ValueError.
    """

    config: ModelConfig
    num_pages: int
    num_slots: int
    page_bytes: int
    state_bytes: int

    def step(self, batch: StepBatch) -> StepResult:
        """Run the batch; store its keys and values in its pages, its states in its slots; return what it asked for."""
        ...

    def draw(self, logits: NDArray[np.float32], draws: Sequence[Draw]) -> list[int]:
        """Tokens drawn from rows of a step's logits [rows, vocab], at once; below 0 where a row's are no numbers."""
        ...

    def copy_page(self, source: int, target: int) -> None:
        """Copy a page, all layers: for a sequence that goes on in the middle of a page which another one wrote."""
        ...

    def read_page(self, page: int) -> NDArray[np.uint8]:
        """A copy of a page's bytes, [page_bytes]. Their order is the runner's own; `write_page` takes them back."""
        ...

    def write_page(self, page: int, data: NDArray[np.uint8]) -> None:
        """Fill a page with what `read_page` gave. Raises ValueError for another dtype or shape."""
        ...

    def read_states(self, slot: int) -> NDArray[np.float32]:
        """A copy of a slot's states, [lightning layers, H, D, D]. Raises ValueError where no whole step has left one,
        as after a step that failed."""
        ...

    def write_states(self, slot: int, states: NDArray[np.float32], tokens: int) -> None:
        """Fill a slot with what `read_states` gave after `tokens` tokens, from where its sequence goes on. Raises
        ValueError for another dtype or shape, or tokens below 0, before anything is written."""
        ...


class StateAges:
    """How many tokens the states in each slot have seen: a state that has moved on cannot go back."""

    def __init__(self, num_slots: int) -> None:
        self._ages = np.full(num_slots, -1)  # -1 while a step changes them

    @contextmanager
    def filling(self, slot: int, tokens: int) -> Iterator[None]:
        """Surrounds the filling of a slot with the states after `tokens` tokens. Raises ValueError for a number of
        tokens below 0."""
        if tokens < 0:
            raise ValueError(f"tokens is {tokens}: it must be at least 0")
        self._ages[slot] = -1
        yield
        self._ages[slot] = tokens

    def require(self, slot: int) -> None:
        """Raise ValueError where a slot holds no whole states."""
        if self._ages[slot] < 0:
            raise ValueError(f"slot {slot} holds no states that a whole step has left")

    @contextmanager
    def moving(self, batch: StepBatch) -> Iterator[None]:
        """Surrounds a step. Raises ValueError, before it, for a slot whose states are not those its sequence needs."""
        if not len(self._ages):
            yield
            return
        starts, slots = batch.positions[batch.cu_seqlens[:-1]], batch.state_slots
        for slot, start, age in zip(slots, starts, self._ages[slots], strict=True):
            if start not in (0, age):
                held = "one that no whole step has left" if age < 0 else f"one after {age} tokens"
                raise ValueError(f"state_slots: slot {slot} should hold the state after {start} tokens, but holds "
                                 f"{held}: begin the sequence again at position 0")  # fmt: skip
        self._ages[slots] = -1
        yield
        self._ages[slots] = batch.positions[batch.cu_seqlens[1:] - 1] + 1


def bytes_of_one(itemsize: int, shape: tuple[int, ...]) -> int:
    """Bytes of one page or slot, all layers, in memory of shape [layer, page or slot, ...]."""
    return itemsize * math.prod(shape[:1] + shape[2:])


def check_number(what: str, number: int, count: int) -> None:
    """Raise ValueError unless 0 <= number < count: numpy and torch would take -1 for the last page or slot."""
    if not 0 <= number < count:
        raise ValueError(f"{what} {number} must be a number from 0 to {count - 1}")


def check_data(what: str, data: NDArray[np.generic], dtype: type[np.generic], shape: tuple[int, ...]) -> None:
    """Raise ValueError unless `data` has just this dtype and shape: numpy would cast and broadcast others silently."""
    if data.dtype != dtype or data.shape != shape:
        raise ValueError(f"{what} is {data.dtype} {list(data.shape)}: it must be {dtype.__name__} {list(shape)}")

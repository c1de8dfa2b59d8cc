"""A memory that knows what every place holds: instead of keys and states, a hash of the tokens that led to them.

`Symbols.step` does what a runner does, and raises AssertionError where a sequence would read what is not its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from octavo.config import EngineOptions
from octavo.engine.disk_cache import SECTOR, DiskCache
from octavo.engine.pages import PagePool
from octavo.engine.prefix_cache import Cost, PrefixCache
from octavo.engine.radix import Node
from octavo.engine.runner import PAGE_TOKENS
from octavo.engine.scheduler import Scheduler, Share
from octavo.engine.scheduler import Sequence as Tokens


@dataclass(frozen=True)
class States:
    """The hash of the tokens that a state has seen, how many they are, and its size."""

    seen: int
    tokens: int
    nbytes: int = 1000


def hashes(ids: Sequence[int]) -> list[int]:
    """Of the first 0, 1, 2, ... tokens."""
    return list(accumulate(ids, lambda before, token: hash((before, token)), initial=0))


class Symbols:
    """Pages [page][32] and slots, filled with hashes of all tokens up to theirs."""

    def __init__(self, pages: int, slots: int, window: int | None = None) -> None:
        self._pages: list[list[int | None]] = [[None] * PAGE_TOKENS for _ in range(pages)]
        self._slots: list[States | None] = [None] * slots
        self._window = window

    def copy_page(self, source: int, target: int) -> None:
        self._pages[target] = list(self._pages[source])

    def save(self, slot: int, exact: bool = False) -> States:
        states = self._slots[slot]
        assert states is not None
        return states

    def restore(self, slot: int, states: States, tokens: int) -> None:
        assert states.tokens == tokens
        self._slots[slot] = states

    def read_page(self, page: int) -> NDArray[np.uint8]:
        return np.array([-1 if seen is None else seen for seen in self._pages[page]]).view(np.uint8)  # no hash is -1

    def write_page(self, page: int, data: NDArray[np.uint8]) -> None:
        self._pages[page] = [None if seen == -1 else seen for seen in data.view(np.int64).tolist()]

    def to_bytes(self, states: States) -> NDArray[np.uint8]:
        return np.array([states.seen, states.tokens, states.nbytes]).view(np.uint8)

    def from_bytes(self, data: NDArray[np.uint8]) -> States:
        return States(*data.view(np.int64).tolist())

    def step(self, shares: Sequence[Share]) -> None:
        """Read what each share needs, then write all new tokens, as a runner does."""
        writes: dict[tuple[int, int], int] = {}
        for share in shares:
            pages, end = share.sequence.pages, share.start + share.count
            after = hashes([*share.sequence.ids, *share.sequence.draft[: share.draft]])
            assert 0 <= share.start < end < len(after)
            for position in range(max(0, share.start - self._window + 1) if self._window else 0, share.start):
                page = pages[position // PAGE_TOKENS]
                assert page >= 0 and self._pages[page][position % PAGE_TOKENS] == after[position + 1], position
            for position in range(share.start, end):
                place = (pages[position // PAGE_TOKENS], position % PAGE_TOKENS)
                assert place[0] >= 0 and place not in writes
                writes[place] = after[position + 1]
            if self._slots:
                slot = share.sequence.slot
                assert share.start == 0 or self._slots[slot] == States(after[share.start], share.start)
                self._slots[slot] = States(after[end], end)
        for (page, offset), seen in writes.items():
            self._pages[page][offset] = seen


def scheduler(pages: int, slots: int = 0, window: int | None = None, **options: object) -> Scheduler:
    """A scheduler on a symbolic memory."""
    chosen = EngineOptions(**{"snapshot_bytes": 8000, "step_tokens": 50, "step_tokens_beside": 20} | options)
    pool = PagePool(pages)
    memory = Symbols(pages, slots, window)
    disk = DiskCache(memory, chosen.disk_bytes, SECTOR, chosen.disk_folder) if chosen.disk_bytes else None
    cache = PrefixCache(
        pool, Cost(100.0, window), 320, slots > 0, chosen.snapshot_bytes, chosen.prefix_cache, disk=disk
    )
    return Scheduler(chosen, pool, cache, memory, slots, window)


def request(ids: Sequence[int], new: int = 5, tenant: str = "", marks: Sequence[int] = ()) -> Tokens:
    """A prompt that wants its last row's logits, and `new` tokens."""
    return Tokens(list(ids), len(ids), len(ids) + new, len(ids) - 1, tenant, set(marks))


def run_step(planner: Scheduler, next_token: int = 7, guesses: Sequence[bool] = ()) -> list[Share]:
    """Plan, compute, advance; every sequence whose last row was computed gets a token, or ends.

    guesses: what sequences that decode guess ahead, by whether the guess is right.
    """
    for sequence in planner.running:
        if sequence.decodes:
            sequence.draft = [next_token if right else next_token + 1 for right in guesses]
    shares = planner.plan()
    if not shares:
        return shares
    planner.memory.step(shares)  # type: ignore[attr-defined]
    planner.advance(shares)
    for share in shares:
        sequence = share.sequence
        if sequence.let_in and sequence.left == 0:
            for guessed in [*sequence.draft[: share.draft], None]:
                sequence.ids.append(next_token)
                sequence.first_wanted = len(sequence.ids) - 1
                if guessed != next_token or len(sequence.ids) >= sequence.most:
                    break
            if len(sequence.ids) >= sequence.most:
                planner.remove(sequence)
    planner.settle(shares)
    assert not any(sequence.before_draft for sequence in planner.running)
    return shares


def run(planner: Scheduler, most: int = 10_000) -> int:
    """Step until nothing is left; how many steps it took."""
    for step in range(most):
        if not run_step(planner):
            assert not planner.running and not planner.waiting, "nothing to do, and not done"
            return step
    raise AssertionError("it does not end")


def check_books(planner: Scheduler) -> None:
    """Every page is counted once for each that holds it, every slot is somebody's or free."""
    held, cached = np.zeros(planner.pool.num_pages, int), np.zeros(planner.pool.num_pages, int)
    for sequence in planner.running:
        pages = [page for page in sequence.pages if page >= 0]
        assert len(set(pages)) == len(pages)
        np.add.at(held, pages, 1)
    nodes: list[Node] = list(planner.cache._tree.nodes())
    for node in nodes:
        assert len(node.tokens) > 0
        first, last = node.start // PAGE_TOKENS, (node.end - 1) // PAGE_TOKENS
        assert len(node.pages) == last - first + 1 and len(set(node.pages)) == len(node.pages)
        assert all(int(child.tokens[0]) == token and child.start == node.end for token, child in node.children.items())
        np.add.at(cached, node.pages, 1)
    assert [planner.pool.holders(page) for page in range(planner.pool.num_pages)] == [
        *zip(held.tolist(), cached.tolist(), strict=True)
    ]
    assert planner.pool.free == int(((held == 0) & (cached == 0)).sum())
    assert planner.pool.evictable == int(((held == 0) & (cached > 0)).sum())
    planner.cache.check()
    slots = [sequence.slot for sequence in planner.running if sequence.slot >= 0]
    assert sorted([*slots, *planner._free_slots]) == list(range(len(planner.memory._slots)))
    assert all(not each.pages and each.slot < 0 and not each.let_in for each in planner.waiting)

"""What to forget first: the entries whose loss costs the least work for each byte it frees.

GreedyDual-Size (Cao and Irani 1997, section 2): an entry's worth is a clock plus its work per byte; the least worth
goes, and the clock moves on to that worth. So among equals the longest unused goes first, and an entry that saves more
survives more of the others.
"""

import heapq
from collections.abc import Callable, Hashable
from itertools import count
from typing import Generic, TypeVar

Entry = TypeVar("Entry", bound=Hashable)


class GreedyDual(Generic[Entry]):
    """Entries by worth. `touch` enters one or renews it, `discard` takes it out, `pop` takes out the least worth."""

    def __init__(self) -> None:
        self._clock = 0.0
        self._worth: dict[Entry, tuple[float, int]] = {}
        self._heap: list[tuple[float, int, Entry]] = []  # some are out of date: they are not in _worth any more
        self._turns = count()

    def __len__(self) -> int:
        return len(self._worth)

    def __contains__(self, entry: Entry) -> bool:
        return entry in self._worth

    @property
    def clock(self) -> float:
        """The worth of the last entry that went."""
        return self._clock

    def touch(self, entry: Entry, value: float, used: float | None = None) -> None:
        """Enter an entry, or note that it was used. value: the work that it saves, per byte; used: the clock when it
        last was, if that is not now."""
        key = ((self._clock if used is None else used) + value, next(self._turns))
        self._worth[entry] = key
        heapq.heappush(self._heap, (*key, entry))
        if len(self._heap) > 2 * len(self._worth) + 64:
            self._heap = [(*key, entry) for entry, key in self._worth.items()]
            heapq.heapify(self._heap)

    def discard(self, entry: Entry) -> None:
        """Take an entry out, if it is in."""
        self._worth.pop(entry, None)

    def pop(self, fits: Callable[[Entry], bool] = lambda entry: True) -> Entry | None:
        """Take out the entry of least worth among those that fit; None if there is none."""
        passed, found = [], None
        while self._heap and found is None:
            worth, turn, entry = heapq.heappop(self._heap)
            if self._worth.get(entry) != (worth, turn):
                continue
            if fits(entry):
                found = entry
                del self._worth[entry]
                self._clock = max(self._clock, worth)
            else:
                passed.append((worth, turn, entry))
        for item in passed:
            heapq.heappush(self._heap, item)
        return found

"""The second tier of the prefix cache: what memory has no room for goes to a file, and comes back when it is asked for.

Each entry is the page that holds the last of a beginning's tokens, or the states after them, and its key is a hash of
all the tokens of that beginning. So nothing but the tokens is compared, and a page is of use only where all pages
before it are in memory or here. A page that its tokens do not fill is kept only beside the states at its end.

The file has no name and goes with the process: it holds what people wrote. No error of the disk reaches a request:
what cannot be written is forgotten, what cannot be read is computed again.
"""

import logging
import os
import tempfile
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from octavo.config.home import home
from octavo.engine.radix import Tokens
from octavo.engine.runner import PAGE_TOKENS
from octavo.errors import UserError

logger = logging.getLogger(__name__)
Bytes = NDArray[np.uint8]
SECTOR = 4096  # blocks that begin at multiples of it are written without reading what is around them


class Memory(Protocol):
    """Pages and states as bytes."""

    def read_page(self, page: int) -> Bytes:
        """A copy of a page."""
        ...

    def write_page(self, page: int, data: Bytes) -> None:
        """Fill a page with what `read_page` gave."""
        ...

    def to_bytes(self, states: Any) -> Bytes:
        """States that were saved."""
        ...

    def from_bytes(self, data: Bytes) -> Any:
        """States from what `to_bytes` gave."""
        ...


class Key(NamedTuple):
    """What an entry is: the page with the last token of a beginning, or the states after it."""

    digest: bytes
    length: int
    states: bool


@dataclass(frozen=True)
class Found:
    """A beginning of `length` tokens, and what the disk has of it: pages in order, the last ones of it, and states."""

    length: int
    pages: list[Key]
    states: Key | None


class DiskCache:
    """Entries in blocks of one file, of `budget` bytes at most; the longest unused go first. One thread only."""

    def __init__(self, memory: Memory, budget: int, page_bytes: int, folder: str | Path | None = None) -> None:
        """folder: where the file lies, octavo's own by default. Raises UserError where none can be made there."""
        self.memory, self._block_bytes = memory, -(-max(page_bytes, 1) // SECTOR) * SECTOR
        self._num_blocks = budget // self._block_bytes
        self._entries: OrderedDict[Key, tuple[int, list[int]]] = OrderedDict()  # bytes, and the blocks that have them
        self._snapshots: Counter[int] = Counter()  # of the entries that are states, by length
        self._free: list[int] = []
        self._touched = 0  # blocks from here on were never used
        self._warned = False
        try:
            if folder is None:
                home().mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=folder or home(), buffering=0)  # noqa: SIM115 - closed by `close`
        except OSError as error:
            raise UserError(f"no file for the prefix cache can be made in {folder or home()}: {error}") from None

    @property
    def used_bytes(self) -> int:
        """Bytes of the file that entries take."""
        return (self._touched - len(self._free)) * self._block_bytes

    def close(self) -> None:
        """Give the file back to the system, with all that is in it. Idempotent."""
        self.clear()
        self._num_blocks = 0
        self._file.close()

    def clear(self) -> None:
        """Forget everything."""
        for key in list(self._entries):
            self._remove(key)

    def spill(self, ids: Tokens, tenant: str, pages: Sequence[int], states: Any = None) -> None:
        """Take what memory is about to forget of the beginning `ids`: its last pages, the states after it."""
        ends = _page_ends(-(-len(ids) // PAGE_TOKENS) - len(pages), len(ids)) if pages else []
        digests = _digests(ids, tenant, {*ends, len(ids)})
        snapshot = Key(digests[len(ids)], len(ids), True)
        if states is not None and not self._touch(snapshot):
            self._put(snapshot, self.memory.to_bytes(states))
        for end, page in reversed([*zip(ends, pages, strict=True)]):  # the first page is needed most, and goes last
            key = Key(digests[end], end, False)
            if (end % PAGE_TOKENS == 0 or snapshot in self._entries) and not self._touch(key):
                self._put(key, self.memory.read_page(page))

    def find(self, ids: Tokens, tenant: str, known: int, needs_states: bool) -> Found:
        """The longest beginning of `ids` to be had, if the pages of its first `known` tokens are in memory.

        With `needs_states` one that has states here. What was found counts as used.
        """
        found = self._longest(ids, tenant, known, needs_states)
        if found.states is not None:
            self._touch(found.states)
        for key in reversed(found.pages):  # of a beginning, the end is to be forgotten first
            self._touch(key)
        return found

    def _longest(self, ids: Tokens, tenant: str, known: int, needs_states: bool) -> Found:
        lengths = sorted(length for length in self._snapshots if length <= len(ids)) if needs_states else []
        whole_pages = range(PAGE_TOKENS, len(ids) + 1, PAGE_TOKENS)
        digests, first = _digests(ids, tenant, {*whole_pages, *lengths}), known // PAGE_TOKENS

        def pages(ends: Iterable[int]) -> list[Key]:
            """Those that are here, up to the first that is not."""
            keys = (Key(digests[end], end, False) for end in ends)
            return [*takewhile(self._entries.__contains__, keys)]

        if not needs_states:
            whole = pages(whole_pages[first:])
            return Found(whole[-1].length if whole else 0, whole, None)
        for length in reversed(lengths):
            states = Key(digests[length], length, True)
            ends = _page_ends(first, length) if length > known else []
            if states in self._entries and len(found := pages(ends)) == len(ends):
                return Found(length, found, states)
        return Found(0, [], None)

    def load(self, found: Found, pages: Sequence[int]) -> tuple[int, Any]:
        """Fill `pages` with those found; how many could be read, from the first on, and the states or None."""
        states = self._get(found.states) if found.states else None
        for index, (key, page) in enumerate(zip(found.pages, pages, strict=True)):
            data = self._get(key)
            if data is None:
                return index, None
            self.memory.write_page(page, data)
        return len(pages), None if states is None else self.memory.from_bytes(states)

    def check(self) -> None:
        """Raise AssertionError where the books do not agree: for tests."""
        blocks = [block for _, taken in self._entries.values() for block in taken]
        assert sorted([*blocks, *self._free]) == list(range(self._touched)) and self._touched <= self._num_blocks
        assert self._snapshots == Counter(key.length for key in self._entries if key.states)
        assert os.fstat(self._file.fileno()).st_size <= self._num_blocks * self._block_bytes

    # ---- the file

    def _touch(self, key: Key) -> bool:
        """Note that an entry was used; whether there is one."""
        if key in self._entries:
            self._entries.move_to_end(key)
        return key in self._entries

    def _put(self, key: Key, data: Bytes) -> None:
        count = max(1, -(-data.nbytes // self._block_bytes))
        if count > self._num_blocks:
            return
        while self._num_blocks - self._touched + len(self._free) < count:
            self._remove(next(iter(self._entries)))
        fresh = range(self._touched, self._touched + max(0, count - len(self._free)))
        self._touched += len(fresh)
        blocks = [*fresh, *(self._free.pop() for _ in range(count - len(fresh)))]
        self._entries[key] = data.nbytes, blocks
        if key.states:
            self._snapshots[key.length] += 1
        try:
            for part, place in self._parts(data, blocks):
                if os.pwrite(self._file.fileno(), part.data, place) != part.nbytes:
                    raise OSError("the disk took a part only")
        except OSError as error:
            self._lose(key, "written", error)

    def _get(self, key: Key) -> Bytes | None:
        if key not in self._entries:
            return None
        size, blocks = self._entries[key]
        data = np.empty(size, np.uint8)
        try:
            for part, place in self._parts(data, blocks):
                if os.preadv(self._file.fileno(), [part.data], place) != part.nbytes:
                    raise OSError("the file is too short")
        except OSError as error:
            self._lose(key, "read", error)
            return None
        return data

    def _parts(self, data: Bytes, blocks: Sequence[int]) -> Iterator[tuple[Bytes, int]]:
        """An entry's bytes block by block, and where in the file each lies."""
        for index, block in enumerate(blocks):
            yield data[index * self._block_bytes : (index + 1) * self._block_bytes], block * self._block_bytes

    def _lose(self, key: Key, what: str, error: OSError) -> None:
        self._remove(key)
        if not self._warned:
            logger.warning("an entry of the prefix cache on disk could not be %s: %s; more may follow", what, error)
        self._warned = True

    def _remove(self, key: Key) -> None:
        self._free += self._entries.pop(key)[1]
        if key.states:
            self._snapshots[key.length] -= 1
            if not self._snapshots[key.length]:
                del self._snapshots[key.length]


def _page_ends(first: int, length: int) -> list[int]:
    """Where the pages of `length` tokens end, from page `first` on."""
    return [*range((first + 1) * PAGE_TOKENS, length, PAGE_TOKENS), length]


def _digests(ids: Tokens, tenant: str, lengths: Iterable[int]) -> dict[int, bytes]:
    """Hashes of the first so many of a tenant's tokens, by number."""
    # what goes before the tokens has always the same length, so no tenant's name continues into another's tokens
    hasher = blake2b(blake2b(tenant.encode(errors="surrogatepass")).digest(), digest_size=32)
    done, found = 0, {}
    for length in sorted(lengths):
        hasher.update(ids[done:length].tobytes())
        done, found[length] = length, hasher.copy().digest()
    return found

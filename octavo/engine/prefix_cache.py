"""What requests have in common is computed once: keys, values and recurrent states of their beginnings.

Keys and values can be taken up at any token. Recurrent states exist only where a snapshot was kept, so a hybrid model
goes on from the longest known beginning that has one; what lies behind the last snapshot of a way is of no use, and
not kept. Pages come from the pool that running sequences use, and are given back to it when they are needed; the
snapshots have a budget of bytes of their own. What is forgotten goes to the disk if there is a `DiskCache`.

Tokens are counted as the work to compute them, later ones more (`Cost`). What is forgotten first: `eviction.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from octavo.config import ModelConfig
from octavo.engine.disk_cache import DiskCache
from octavo.engine.eviction import GreedyDual
from octavo.engine.pages import PagePool
from octavo.engine.radix import Match, Node, RadixTree, Tokens
from octavo.engine.runner import PAGE_TOKENS

NEAR = PAGE_TOKENS  # tokens so few that it is not worth a snapshot, waiting or reading a disk to have them


class Snapshot(Protocol):
    """States that can be put back into a slot; what they are is the runner's business (`snapshots.py`)."""

    @property
    def nbytes(self) -> int:
        """Bytes that keeping it takes."""
        ...


@dataclass(frozen=True)
class Cost:
    """Work to compute tokens. depth: at how many tokens attention takes as much work as all the rest of a token."""

    depth: float
    window: int | None = None

    @classmethod
    def of(cls, config: ModelConfig, active_parameters: int) -> "Cost":
        """2 operations a weight and token; 4 a head's number and earlier token in each softmax layer."""
        attention = 2 * len(config.softmax_layers) * config.num_heads * config.head_dim
        return cls(active_parameters / attention if attention else float("inf"), config.sliding_window)

    def between(self, start: int, end: int) -> float:
        """Work for the tokens [start, end), in units of a token at depth 0."""
        depth = (start + end) / 2
        return (end - start) * (1 + min(depth, self.window or depth) / self.depth)


@dataclass(frozen=True)
class Hit:
    """A known beginning: its length, the pages that have it, its states. The pages are held for whoever asked."""

    length: int
    pages: list[int]
    states: Any
    known: int  # tokens whose keys and values are known, more than `length` where a snapshot is missing


class PrefixCache:
    """The known beginnings. With `snapshot_bytes` 0 a hybrid model has none, with `enabled` false nothing has."""

    def __init__(
        self,
        pool: PagePool,
        cost: Cost,
        page_bytes: int,
        needs_states: bool,
        snapshot_bytes: int,
        enabled: bool = True,
        disk: DiskCache | None = None,
    ) -> None:
        self._pool, self._cost, self._needs_states = pool, cost, needs_states
        self._page_bytes = max(page_bytes, 1)
        self._budget, self._used = snapshot_bytes, 0
        self.enabled = enabled and (not needs_states or snapshot_bytes > 0)
        self.disk, self.disk_tokens = disk, 0  # tokens that came back from the disk
        self._tree = RadixTree(pool)
        self._leaves: GreedyDual[Node] = GreedyDual()
        self._snapshots: GreedyDual[Node] = GreedyDual()

    @property
    def snapshot_bytes(self) -> int:
        """Bytes of all snapshots kept."""
        return self._used

    def find(self, ids: Tokens, tenant: str, most: int) -> Hit:
        """The longest beginning of `ids` that can be taken up, of at most `most` tokens."""
        match = self._tree.match(ids[:most], tenant)
        last, length = self._last_with_states(match), self._usable(match)
        for node in match.nodes:
            self._renew(node)
        pages = match.pages(length) if length else []
        self._pool.hold(pages)
        return Hit(length, pages, last.states if last else None, match.length)

    def reach(self, ids: Tokens, tenant: str) -> int:
        """How much of `ids` could be taken up; nothing is held or renewed."""
        return self._usable(self._tree.match(ids, tenant))

    def fetch(self, ids: Tokens, tenant: str, most: int) -> Hit | None:
        """What `find` would give if all that is on disk were in memory; None where that is not much more than it does.

        It is read into free pages, and kept.
        """
        if self.disk is None:
            return None
        match = self._tree.match(ids[:most], tenant)
        usable = self._usable(match)
        found = self.disk.find(ids[:most], tenant, match.length, self._needs_states)
        if found.length - usable < NEAR:
            return None
        pages = match.pages(min(found.length, match.length))
        self._pool.hold(pages)
        if not self.make_room(len(found.pages)):
            self._pool.release(pages)
            return None
        fresh = self._pool.take(len(found.pages))
        read, states = self.disk.load(found, fresh)
        in_memory = -(-found.length // PAGE_TOKENS) - len(fresh)  # without a page of both: the one read holds more
        length = found.length if read == len(fresh) else (in_memory + read) * PAGE_TOKENS
        if length - usable < NEAR or self._needs_states and states is None:
            self._pool.release(pages + fresh)
            return None
        self._pool.release(pages[in_memory:] + fresh[read:])
        pages = pages[:in_memory] + fresh[:read]
        self.keep(ids[:length], pages, tenant, states)
        self.disk_tokens += length - usable
        return Hit(length, pages, states, max(length, match.length))

    def _usable(self, match: Match) -> int:
        """Tokens of a match that can be taken up."""
        last = self._last_with_states(match)
        return (last.end if last else 0) if self._needs_states else match.length

    def _last_with_states(self, match: Match) -> Node | None:
        found = (node for node in reversed(match.nodes) if node.states is not None and node.end <= match.length)
        return next(found, None)

    def keep(self, ids: Tokens, pages: Sequence[int], tenant: str, states: Snapshot | None = None) -> None:
        """Keep `ids`, whose keys and values lie in `pages`, and the states after the last of them.

        For a model with recurrent states nothing is kept without them, nor where they are beyond the budget.
        """
        if not self.enabled or self._needs_states and (states is None or states.nbytes > self._budget):
            return
        node = self._tree.insert(ids, pages, tenant)
        if node is None:
            return
        if node.parent is not None and node.parent in self._leaves:
            self._leaves.discard(node.parent)
        if states is not None and node.states is None:
            node.states = states
            self._used += states.nbytes
            self._renew(node)
            while self._used > self._budget:
                self._forget_snapshot()
        elif node.parent is not None:
            self._renew(node)

    def has_states(self, ids: Tokens, tenant: str) -> bool:
        """Whether a snapshot is kept at the very end of `ids`."""
        match = self._tree.match(ids, tenant)
        return match.length == len(ids) and match.nodes[-1].end == len(ids) and match.nodes[-1].states is not None

    def make_room(self, pages: int) -> bool:
        """Forget until `pages` pages are free; whether that many are."""
        if pages > self._pool.free + self._pool.evictable:
            return False
        while self._pool.free < pages:
            # those whose end a running sequence holds free nothing now
            leaf = self._leaves.pop(lambda node: not self._pool.holders(node.pages[-1])[0]) or self._leaves.pop()
            assert leaf is not None, "every page that can be evicted lies on the way to a leaf"
            self._shorten(leaf)
        return True

    def clear(self) -> None:
        """Forget everything, on the disk too."""
        while (leaf := self._leaves.pop()) is not None:
            self._drop(leaf)
        if self.disk is not None:
            self.disk.clear()

    def check(self) -> None:
        """Raise AssertionError where the books do not agree with the tree: for tests."""
        nodes = list(self._tree.nodes())
        assert self._used == sum(node.states.nbytes for node in nodes if node.states is not None) <= self._budget
        assert all((node in self._leaves) == (not node.children) for node in nodes)
        assert all((node in self._snapshots) == (node.states is not None) for node in nodes)
        assert len(self._leaves) == sum(not node.children for node in nodes)
        assert len(self._snapshots) == sum(node.states is not None for node in nodes)
        assert not self._needs_states or all(node.children or node.states is not None for node in nodes)
        if self.disk is not None:
            self.disk.check()

    def _renew(self, node: Node) -> None:
        node.used = self._leaves.clock
        if node.states is not None:
            value = self._cost.between(self._last_snapshot(node), node.end) / node.states.nbytes
            self._snapshots.touch(node, value)
        if not node.children:
            self._leaves.touch(node, self._leaf_value(node))

    def _leaf_value(self, leaf: Node) -> float:
        if self._needs_states:
            return self._cost.between(self._last_snapshot(leaf), leaf.end) / (len(leaf.pages) * self._page_bytes)
        start = (leaf.end - 1) // PAGE_TOKENS * PAGE_TOKENS
        return self._cost.between(start, leaf.end) / self._page_bytes

    def _last_snapshot(self, node: Node) -> int:
        """Length of the longest beginning before this node's end that has states."""
        above = node.parent
        while above is not None and above.states is None:
            above = above.parent
        return above.end if above is not None else 0

    def _shorten(self, leaf: Node) -> None:
        """Forget a leaf's last page, or all of a leaf that is of no use without its states."""
        if self._needs_states:
            self._drop(leaf)
            return
        parent = leaf.parent
        assert parent is not None, "a root is no leaf"
        self._spill(leaf, leaf.pages[-1:])
        self._tree.trim(leaf)
        self._as_leaf(leaf if leaf.parent is not None else parent, leaf.used)

    def _drop(self, leaf: Node) -> None:
        """Forget a leaf, and the nodes above it that nothing goes through any more."""
        node, useless = leaf, True
        while useless:
            parent = node.parent
            assert parent is not None, "a root is no leaf"
            self._spill(node, node.pages)
            self._forget_states(node)
            self._leaves.discard(node)
            self._tree.remove(node)
            useless = self._needs_states and parent.states is None and parent.parent is not None and not parent.children
            node = parent
        self._as_leaf(node, leaf.used)

    def _as_leaf(self, node: Node, used: float) -> None:
        """A node that lost its end, or a child last used then, may be a leaf of another worth now. This is no use of
        it: else all would lose their ends in turns, the latest used as well as the oldest."""
        node.used = max(node.used, used)
        if node.parent is not None and not node.children:
            self._leaves.touch(node, self._leaf_value(node), node.used)

    def _forget_snapshot(self) -> None:
        node = self._snapshots.pop()
        assert node is not None
        self._spill(node, [])
        self._forget_states(node)
        if not node.children:
            self._drop(node)

    def _spill(self, node: Node, pages: Sequence[int]) -> None:
        """Let the disk have what is about to be forgotten: the last pages of a node, and its states."""
        if self.disk is not None:
            ids, tenant = node.prefix()
            self.disk.spill(ids, tenant, pages, node.states)

    def _forget_states(self, node: Node) -> None:
        if node.states is not None:
            self._used -= node.states.nbytes
            node.states = None
        self._snapshots.discard(node)

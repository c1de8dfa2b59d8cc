"""A radix tree over token ids: which prefixes are in memory, and where.

Each node has the tokens that its parent's prefix goes on with, the pages that hold their keys and values, and
possibly the recurrent states after its last token. Pages hold a fixed number of tokens from the beginning of the
prefix, so a node that begins in the middle of a page holds that page too, either its parent's or a copy that
another sequence made to go on differently. Every way from a root is complete: no page before a node's end is missing.

Nothing here is a tensor: pages are numbers, states whatever was given.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from octavo.engine.pages import PagePool
from octavo.engine.runner import PAGE_TOKENS

Tokens = NDArray[np.int64]


@dataclass(eq=False)
class Node:
    """The tokens [start, end) of the prefixes that lead through it. pages: those with these tokens, in order; states:
    the recurrent states after token end - 1, None where there are none. used: when it last was, by the clock of what
    evicts. tenant: whose they are, of a root."""

    tokens: Tokens
    start: int
    pages: list[int]
    parent: "Node | None"
    children: dict[int, "Node"] = field(default_factory=dict)
    states: Any = None
    used: float = 0.0
    tenant: str = ""

    @property
    def end(self) -> int:
        """Length of the prefix that ends with this node."""
        return self.start + len(self.tokens)

    def prefix(self) -> tuple[Tokens, str]:
        """All tokens up to this node's end, and the tenant."""
        parts, node = [self.tokens], self
        while node.parent is not None:
            node = node.parent
            parts.append(node.tokens)
        return np.concatenate(parts[::-1]), node.tenant


@dataclass(frozen=True)
class Match:
    """How far a prompt is known: the nodes on its way, of which the last may be matched in part; the tokens matched."""

    nodes: tuple[Node, ...]
    length: int

    def pages(self, length: int) -> list[int]:
        """The pages of the first `length` tokens. Of a page that two nodes hold, the later one's copy counts: it has
        the earlier one's tokens too."""
        found: list[int] = []
        for node in self.nodes:
            first = node.start // PAGE_TOKENS
            found[first:] = node.pages
        return found[: -(-length // PAGE_TOKENS)]


class RadixTree:
    """Prefixes by tenant: what one has computed, another never sees."""

    def __init__(self, pool: PagePool) -> None:
        self._pool = pool
        self._roots: dict[str, Node] = {}

    def match(self, ids: Tokens, tenant: str) -> Match:
        """The longest known beginning of `ids`."""
        nodes: list[Node] = []
        node, length = self._roots.get(tenant), 0
        while node is not None and length < len(ids):
            child = node.children.get(int(ids[length]))
            if child is None:
                break
            common = common_prefix(child.tokens, ids[length:])
            nodes.append(child)
            length += common
            node = child if common == len(child.tokens) else None
        return Match(tuple(nodes), length)

    def insert(self, ids: Tokens, pages: Sequence[int], tenant: str) -> Node | None:
        """The node that ends with `ids`, made where it is missing.

        pages: those of a sequence with these tokens; -1 for pages it no longer has, which is possible only where the
        tree has them itself: else None, and nothing is changed.
        """
        if not len(ids):
            return None
        match = self.match(ids, tenant)
        first = match.length // PAGE_TOKENS
        if match.length < len(ids) and min(pages[first : -(-len(ids) // PAGE_TOKENS)]) < 0:
            return None
        node = match.nodes[-1] if match.nodes else self._roots.setdefault(tenant, _root(tenant))
        if match.length < node.end:
            node = self.split(node, match.length)
        if match.length < len(ids):
            node = self._extend(node, ids[match.length :], list(pages[first : -(-len(ids) // PAGE_TOKENS)]))
        return node

    def split(self, node: Node, at: int) -> Node:
        """Cut a node in two after `at` tokens of the prefix, start < at < end; returns the upper part.

        `node` stays the lower one, with its states. A page cut through is held by both.
        """
        if not node.start < at < node.end or node.parent is None:
            raise ValueError(f"cannot cut tokens {node.start} to {node.end} after {at}")
        kept, first = at - node.start, at // PAGE_TOKENS - node.start // PAGE_TOKENS
        pages = node.pages[: _pages_between(node.start, at)]
        upper = Node(node.tokens[:kept], node.start, pages, node.parent, used=node.used)
        node.parent.children[int(node.tokens[0])] = upper
        node.tokens, node.start, node.parent = node.tokens[kept:], at, upper
        node.pages = node.pages[first:]
        if at % PAGE_TOKENS:
            self._pool.cache(node.pages[:1])
        upper.children[int(node.tokens[0])] = node
        return upper

    def trim(self, leaf: Node) -> None:
        """Forget the tokens of a leaf's last page, all of them if the leaf has but one page."""
        if leaf.children or leaf.states is not None:
            raise ValueError("only a leaf without states can be trimmed")
        keep = (leaf.end - 1) // PAGE_TOKENS * PAGE_TOKENS - leaf.start
        if keep <= 0:
            self.remove(leaf)
            return
        self._pool.uncache([leaf.pages.pop()])
        leaf.tokens = leaf.tokens[:keep]

    def remove(self, leaf: Node) -> None:
        """Forget a leaf."""
        if leaf.children or leaf.parent is None:
            raise ValueError("only a leaf can be removed")
        self._pool.uncache(leaf.pages)
        parent = leaf.parent
        del parent.children[int(leaf.tokens[0])]
        leaf.parent, leaf.pages, leaf.states = None, [], None
        if parent.parent is None and not parent.children:  # nothing is left of a tenant
            self._roots = {tenant: root for tenant, root in self._roots.items() if root.children}

    def nodes(self) -> Iterator[Node]:
        """Every node but the roots, parents first."""
        stack = list(self._roots.values())
        while stack:
            node = stack.pop()
            if node.parent is not None:
                yield node
            stack.extend(node.children.values())

    def _extend(self, node: Node, tokens: Tokens, pages: list[int]) -> Node:
        """Let the prefix of `node` go on with `tokens`: in the node itself where that is the same sequence going on."""
        alone = node.parent is not None and not node.children and node.states is None
        in_page = node.end % PAGE_TOKENS != 0
        if alone and (not in_page or node.pages[-1] == pages[0]):
            fresh = pages[1:] if in_page else pages
            self._pool.cache(fresh)
            node.tokens = np.concatenate([node.tokens, tokens])
            node.pages += fresh
            return node
        self._pool.cache(pages)
        child = Node(tokens.copy(), node.end, pages, node)
        node.children[int(tokens[0])] = child
        return child


def common_prefix(a: Tokens, b: Tokens) -> int:
    """How many tokens two sequences begin with in common."""
    length = min(len(a), len(b))
    different = a[:length] != b[:length]
    return int(different.argmax()) if different.any() else length


def _pages_between(start: int, end: int) -> int:
    return -(-end // PAGE_TOKENS) - start // PAGE_TOKENS


def _root(tenant: str) -> Node:
    return Node(np.zeros(0, np.int64), 0, [], None, tenant=tenant)

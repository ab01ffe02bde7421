"""A tree of committed prefixes: what any sequence computed up to a boundary, any other starts from.

A boundary is a length that a caller declared: the end of a turn, a commit, a fork point. Exactly there, and nowhere
else, the tree keeps one set of lightning states, the logits after it, and a hold on the pages of keys and values. Edges
are runs of tokens, so a match reads each token of a prompt once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from torch import Tensor

GHOSTS = 256
"""Boundaries whose loss is remembered, so that tokens computed again are counted as evicted."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A sequence just after some token.

    state: [layers, A, D, D] fp32; logits: [V], those that follow; table: the pages of its keys and values, held by it.
    """

    state: Tensor
    logits: Tensor
    table: list[int]

    @property
    def bytes(self) -> int:
        """Bytes of state and logits."""
        return self.state.numel() * self.state.element_size() + self.logits.numel() * self.logits.element_size()


@dataclass(slots=True, eq=False)
class Node:
    """`run`: the tokens between the parent and here. `kept`: the caches after them, if they are a boundary still kept.

    `holds`: live sequences that stand here or want to come back. `used`: the tree's clock when it was last wanted.
    """

    run: list[int]
    length: int
    parent: Node | None = None
    children: dict[int, Node] = field(default_factory=dict[int, "Node"])  # by the first token of their runs
    kept: Snapshot | None = None
    holds: int = 0
    lost: bool = False  # kept once, and evicted
    used: float = 0.0

    @property
    def protected(self) -> bool:
        """Whether others depend on it: a live sequence, or several continuations."""
        return self.holds > 0 or len(self.children) > 1

    def above(self) -> Iterator[Node]:
        """Itself, then its ancestors up to the root."""
        node: Node | None = self
        while node is not None:
            yield node
            node = node.parent

    def base(self, length: int) -> Node | None:
        """The deepest kept boundary of at most `length` tokens, here or above; None for none."""
        return next((node for node in self.above() if node.length <= length and node.kept), None)

    def tokens(self) -> list[int]:
        """All tokens from the root to here."""
        runs = [node.run for node in self.above()]
        return [token for run in reversed(runs) for token in run]

    def split(self, at: int) -> Node:
        """Puts a node into the edge, `at` tokens after the parent, and returns it."""
        parent = self.parent
        assert parent is not None
        upper = Node(self.run[:at], parent.length + at, parent, {self.run[at]: self})
        parent.children[self.run[0]] = upper
        self.run, self.parent = self.run[at:], upper
        return upper


@dataclass(frozen=True, slots=True)
class Match:
    """What the tree has of some tokens.

    base: the deepest kept boundary, or None. lost: length of the deepest evicted boundary beyond it, or 0. common: how
    many tokens some sequence has computed before, boundary or not.
    """

    base: Node | None
    lost: int
    common: int

    @property
    def length(self) -> int:
        """Tokens that need not be computed."""
        return self.base.length if self.base else 0


class PrefixTree:
    """Boundaries by tokens. It holds pages through `release`, and never computes."""

    def __init__(self, release: Callable[[Sequence[int]], None]) -> None:
        self.root = Node([], 0)
        self.kept: set[Node] = set()
        self.bytes = 0  # of all kept states and logits; pages are counted by their pool
        self._release = release
        self._ghosts: deque[Node] = deque()
        self._clock = 0.0

    def match(self, tokens: Sequence[int], start: Node | None = None) -> Match:
        """What there is of `tokens`; `start` is a node known to lie on their path."""
        node, child, same = self._walk(tokens, len(tokens), start or self.root)
        base = node.base(len(tokens))
        reached = base.length if base else 0
        lost = next((n.length for n in node.above() if n.lost and n.length > reached), 0)
        if base is not None:
            base.used = self._clock
        return Match(base, lost, node.length + same if child else node.length)

    def insert(self, tokens: Sequence[int], length: int, start: Node | None = None) -> Node:
        """The node after the first `length` tokens, made if there is none; `start` lies on their path."""
        node, child, same = self._walk(tokens, length, start or self.root)
        if child is not None and same:
            node = child.split(same)
        if node.length < length:
            leaf = Node(list(tokens[node.length : length]), length, node)
            node.children[leaf.run[0]] = leaf
            node = leaf
        return node

    def keep(self, node: Node, snapshot: Snapshot) -> None:
        """Makes a node a kept boundary; the tree owns the snapshot's pages from here on."""
        node.kept, node.lost, node.used = snapshot, False, self._clock
        self.kept.add(node)
        self.bytes += snapshot.bytes

    def hold(self, node: Node) -> Node:
        """One more live sequence depends on a node."""
        node.holds += 1
        return node

    def let_go(self, node: Node) -> None:
        """One less."""
        node.holds -= 1
        self._prune(node)

    def drop(self, node: Node, *, lost: bool = False) -> None:
        """Gives up a node's caches; `lost` remembers that they were there."""
        assert node.kept is not None
        self._release(node.kept.table)
        self.bytes -= node.kept.bytes
        node.kept, node.lost = None, lost
        self.kept.discard(node)
        if lost:
            self._ghosts.append(node)
            if len(self._ghosts) > GHOSTS:
                self._bury(self._ghosts.popleft())
        self._prune(node)

    def cheapest(self, pages: Callable[[Node, int], int], *, protected: bool) -> Node | None:
        """The kept boundary to give up first: the fewest tokens to compute again for a byte, long unused ones before.

        `pages(node, length)`: bytes of pages beyond `length` tokens that only the node holds. Of each kind, `protected`
        or not, apart. The clock (GreedyDual-Size) lets a boundary age that was dear once and is never wanted.
        """
        found = [node for node in self.kept if node.protected == protected]
        if not found:
            return None
        worth = {node: self.worth(node, pages) for node in found}
        node = min(found, key=worth.__getitem__)
        if not protected:
            self._clock = max(self._clock, worth[node])
        return node

    def worth(self, node: Node, pages: Callable[[Node, int], int]) -> float:
        """Tokens to compute again for each byte a kept node takes, on top of the clock at its last use."""
        assert node.kept is not None and node.parent is not None
        base = node.parent.base(node.length)
        above = base.length if base else 0
        return node.used + (node.length - above) / (node.kept.bytes + pages(node, above) or 1)

    def clear(self) -> None:
        """Gives up everything, what live sequences would come back to included."""
        for node in list(self.kept):
            self.drop(node)
        while self._ghosts:
            self._bury(self._ghosts.popleft())

    def _walk(self, tokens: Sequence[int], stop: int, node: Node) -> tuple[Node, Node | None, int]:
        """The deepest node on the path; where an edge leaves it or ends early, that child and how far it agrees."""
        while node.length < stop:
            child = node.children.get(tokens[node.length])
            if child is None:
                break
            same = common(child.run, tokens[node.length : min(stop, child.length)])
            if same < len(child.run):
                return node, child, same
            node = child
        return node, None, 0

    def _bury(self, node: Node) -> None:
        node.lost = False
        self._prune(node)

    def _prune(self, node: Node) -> None:
        """Takes nodes out that carry nothing: leaves, and links between one parent and one child."""
        while node.parent is not None and not (node.kept or node.holds or node.lost or len(node.children) > 1):
            parent = node.parent
            if parent.children.get(node.run[0]) is not node:
                return
            for child in node.children.values():
                child.run, child.parent = node.run + child.run, parent
                parent.children[child.run[0]] = child
                return
            del parent.children[node.run[0]]
            node = parent


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two runs begin with alike."""
    most = min(len(a), len(b))
    if a[:most] == b[:most]:
        return most
    return next((i for i in range(most) if a[i] != b[i]), most)

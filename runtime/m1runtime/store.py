"""Everything that sequences remember, under one bound of bytes: slots, pages, and the prefix tree.

What live sequences need comes first. To make room, boundaries are given up in the order of what computing them again
would cost for each byte, those that nothing depends on before the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from m1runtime.cache import PagePool, StatePool
from m1runtime.cold import ColdTier, Frozen
from m1runtime.model import KV, STATE, Model
from m1runtime.prefix import Match, Node, PrefixTree, Snapshot
from m1runtime.ring import ROWS, START, WINDOW, Anchor
from m1runtime.sequence import SequenceState

SHARED = 64
"""Tokens that two sequences must have in common for their parting to become a boundary of its own."""


@dataclass(slots=True)
class Losses:
    """What became of caches. hits: by kind, times that something was found; evicted, and bytes of it."""

    hits: dict[str, int] = field(default_factory=dict[str, int])
    evicted: int = 0
    evicted_bytes: int = 0
    unkept: int = 0  # boundaries that there was no room for
    preempted: int = 0

    def hit(self, kind: str) -> None:
        """Counts one."""
        self.hits[kind] = self.hits.get(kind, 0) + 1


class Store:
    """The caches of one model. Not thread-safe: the executor's lock guards it.

    limit: bytes of all pools and boundaries together; None is no bound. Slopes and heads are those of the model.
    """

    def __init__(
        self,
        model: Model,
        *,
        device: torch.device,
        dtype: torch.dtype,
        page_size: int,
        limit: int | None,
    ) -> None:
        self.states = StatePool(model.config, device=device, dtype=dtype, slots=1)
        self.pages = PagePool(model.config, device=device, dtype=dtype, page_size=page_size, pages=4)
        self.tree = PrefixTree(self.pages.release)
        self.live: set[SequenceState] = set()
        self.losses = Losses()
        self.limit = limit
        self.cold: ColdTier | None = None
        self._slopes = model.slopes
        self._model = model

    @property
    def bytes(self) -> int:
        """Bytes taken: whole pools, and the states of boundaries."""
        pages = self.pages.capacity * self.pages.bytes_per_page
        return pages + self.states.capacity * self.states.bytes_per_slot + self.tree.bytes

    @property
    def table_bytes(self) -> int:
        """Bytes of the pages of live sequences; a shared page counts once."""
        return len({page for sequence in self.live for page in sequence.table}) * self.pages.bytes_per_page

    @property
    def held_bytes(self) -> int:
        """Bytes of the states that live sequences can come back to; what forks share counts once."""
        held = {node for sequence in self.live for node in sequence.held.values()}
        return sum(node.kept.bytes for node in held if node.kept)

    @property
    def kept_bytes(self) -> int:
        """Bytes of the prefix tree: states, and the pages that it holds."""
        pages = {page for node in self.tree.kept if node.kept for page in node.kept.table}
        return self.tree.bytes + len(pages) * self.pages.bytes_per_page

    def admit(self, *, keep: int) -> SequenceState:
        """An empty sequence; it takes a slot when it first computes something."""
        sequence = SequenceState(keep=keep)
        self.live.add(sequence)
        return sequence

    def release(self, sequence: SequenceState) -> None:
        """Frees what a sequence has; its boundaries stay in the tree as long as there is room."""
        self.live.discard(sequence)
        self._strip(sequence)
        for node in sequence.held.values():
            self.tree.let_go(node)
        sequence.held = {}

    def preempt(self, sequence: SequenceState) -> None:
        """Takes a live sequence's slot and pages away; when next run, it goes on from its deepest kept boundary."""
        if sequence.slot >= 0:
            self.losses.preempted += 1
            computed = sequence.computed
            self._strip(sequence)
            sequence.again(computed, "preempted")

    def begin(self, sequence: SequenceState) -> bool:
        """Gives a sequence a slot, if it has none. False: none can be had."""
        if sequence.slot < 0:
            if not self._find_slot():
                return False
            sequence.slot = self.states.take()
            sequence.anchor, sequence.low = START, 0
        return True

    def start(self, sequence: SequenceState) -> bool:
        """Gives a sequence a slot, and the deepest kept prefix of its tokens. False: no slot can be had."""
        fresh = sequence.slot < 0
        if not self.begin(sequence):
            return False
        if fresh and sequence.tokens:
            sequence.declare(len(sequence.tokens), pinned=False)
        node = sequence.node
        if (fresh and sequence.pending) or (sequence.pending > 1 and (node is None or node.children)):
            match = self.tree.match(sequence.tokens, node)
            if fresh and self._thaw(sequence.tokens, match.length):
                match = self.tree.match(sequence.tokens, node)
            self._skip(sequence, match)
        return True

    def reserve(self, sequence: SequenceState, tokens: int) -> bool:
        """Makes room for a sequence to compute `tokens` more than it has computed: a slot, and pages of its own.

        Boundaries are evicted for that. False when live sequences hold too much; nothing is lost then.
        """
        if not self.begin(sequence):
            return False
        stop = sequence.computed + tokens
        wanted = self.pages.wanted(sequence.table, sequence.computed, stop)
        if wanted > self.pages.free and not self._possible(wanted):
            return False
        while (short := self.pages.wanted(sequence.table, sequence.computed, stop) - self.pages.free) > 0:
            # At once for a whole prompt: a pool that grows is copied, and for that moment there twice.
            rest = self.pages.pages(len(sequence.tokens)) - self.pages.pages(stop)
            if not self._find_pages(short, short + max(0, rest)):
                return False
        if self.pages.prepare(sequence.table, sequence.computed, stop):
            sequence.table_tensor = None
        return True

    def needed(self, tokens: int) -> int:
        """Bytes that a sequence of `tokens` tokens takes alone."""
        return self.states.bytes_per_slot + self.pages.pages(tokens) * self.pages.bytes_per_page

    def keep(
        self, sequence: SequenceState, length: int, logits: Tensor, state: Tensor | None = None, *, pinned: bool
    ) -> bool:
        """Makes a computed length a boundary of the tree; `state` None is that of the slot. False: there is no room."""
        node = self.tree.insert(sequence.tokens, length, self._above(sequence, length))
        self._hold(sequence, length, node, pinned=pinned)
        if node.kept is None:
            size = self.states.bytes_per_state + logits.numel() * logits.element_size()
            if not self._make_room(size):
                self.losses.unkept += 1
                return False
            table = self.pages.share(sequence.table[: self.pages.pages(length)])
            state = self.states.read(sequence.slot) if state is None else state
            self.tree.keep(node, Snapshot(state, logits.clone(), table))
        for n in sequence.spare():
            self.tree.let_go(sequence.held.pop(n))
        return True

    def cut(self, sequence: SequenceState, length: int) -> None:
        """Forgets a sequence's tokens beyond a length, and what was held there."""
        for node in sequence.truncate(length):
            self.tree.let_go(node)

    def restore(self, sequence: SequenceState, known: int, cause: str, logits: Tensor | None = None) -> None:
        """Takes the caches back to `known` tokens: by the ring, or to the nearest boundary before.

        `logits`: those after `known` tokens, where the caller has them.
        """
        if sequence.slot < 0:
            return
        sequence.trial = None
        anchor = sequence.anchor
        if anchor.length == known or sequence.low <= anchor.length < known:
            node = self._above(sequence, known)
            kept = node.kept if node is not None and node.length == known else None
            state = kept.state if kept else self.states.ring.state(sequence.slot, anchor, known, self._slopes)
            self.states.write(sequence.slot, state)
            there = kept.logits if kept else anchor.logits if anchor.length == known else None
            sequence.logits = there if logits is None else logits
            sequence.computed = known
            if cause == "rewind":
                self.losses.hit("ring")
        else:
            self._fall_back(sequence, known, cause)
        self.pages.trim(sequence.table, sequence.computed)
        sequence.table_tensor = None

    def follow(self, sequence: SequenceState, start: int, stop: int, end: int) -> int | None:
        """Lets the ring follow a pass over tokens start..end-1, of which those from `stop` on may be taken back.

        Returns a length to export the state at, the next anchor, when it lies inside the pass.
        """
        anchor, wanted = sequence.anchor, None
        if end - anchor.length >= ROWS:
            length = min(end - WINDOW, stop)
            if length > start:
                wanted = length
            elif sequence.low <= anchor.length:
                state = self.states.ring.state(sequence.slot, anchor, length, self._slopes)
                sequence.anchor = Anchor(length, state)
            else:
                sequence.anchor = Anchor(start, self.states.read(sequence.slot), sequence.logits)
        sequence.low = max(sequence.low, end - ROWS)
        return wanted

    def followed(
        self, sequence: SequenceState, stop: int, end: int, states: Mapping[int, Tensor], logits: Tensor | None
    ) -> None:
        """After the pass: the exported state is the new anchor. `logits`: those after the first `stop` tokens."""
        length = min(end - WINDOW, stop)
        if end - sequence.anchor.length >= ROWS and length in states:
            sequence.anchor = Anchor(
                length, states[length], logits.clone() if length == stop and logits is not None else None
            )

    def place(self, sequence: SequenceState, tokens: list[int], state: Tensor, logits: Tensor) -> None:
        """Makes an empty sequence, whose pages are filled, one that has computed `tokens`."""
        self.states.write(sequence.slot, state)
        sequence.tokens, sequence.computed, sequence.logits = tokens, len(tokens), logits
        sequence.anchor, sequence.low = Anchor(len(tokens), state, logits), len(tokens)

    def inherit(self, parent: SequenceState, child: SequenceState) -> None:
        """Lets a fork hold what its parent holds, and go on from there."""
        child.held = {length: self.tree.hold(node) for length, node in parent.held.items()}
        child.pinned = set(parent.pinned)
        child.again(parent.computed, "evicted")
        self.losses.hit("fork")

    def freeze(self, node: Node) -> None:
        """Writes a kept boundary to the cold tier, if there is one."""
        if self.cold is not None and node.kept is not None:
            kv = self._model.whole(self.pages.read(node.kept.table, node.length), KV)
            self.cold.write(Frozen(node.tokens(), self._model.whole(node.kept.state, STATE), node.kept.logits, kv))

    def clear(self) -> None:
        """Drops every boundary."""
        self.tree.clear()

    def _skip(self, sequence: SequenceState, match: Match) -> None:
        base = match.base
        before = max(sequence.computed, sequence.known)
        if base is not None and base.kept is not None and base.length > sequence.computed:
            self.pages.release(sequence.table)
            sequence.table, sequence.table_tensor = self.pages.share(base.kept.table), None
            self.states.write(sequence.slot, base.kept.state)
            sequence.anchor, sequence.low = Anchor(base.length, base.kept.state, base.kept.logits), base.length
            sequence.computed, sequence.logits = base.length, base.kept.logits
            self._hold(sequence, base.length, base, pinned=False)
            sequence.skipped += max(0, base.length - before)
            self.losses.hit("prefix")
        sequence.again(match.lost, "evicted")
        if match.common - max(sequence.computed, sequence.known) >= SHARED:
            sequence.again(match.common, "no_state")
            if match.common < len(sequence.tokens):
                sequence.declare(match.common, pinned=False)

    def _thaw(self, tokens: Sequence[int], beyond: int) -> bool:
        """Brings the longest beginning that the cold tier has, and the tree has not, back into the tree."""
        found = self.cold.find(tokens, beyond) if self.cold is not None else None
        if found is None:
            return False
        length, table = len(found.tokens), list[int]()
        size = self.states.bytes_per_state + found.logits.numel() * found.logits.element_size()
        while (short := self.pages.pages(length) - self.pages.free) > 0:
            if not self._find_pages(short):
                return False
        self.pages.prepare(table, 0, length)
        if not self._make_room(size):
            self.pages.release(table)
            return False
        device = self.states.states.device
        self.pages.write(table, self._model.share(found.kv.to(device), KV))
        node = self.tree.insert(found.tokens, length)
        state = self._model.share(found.state.to(device), STATE)
        self.tree.keep(node, Snapshot(state, found.logits.to(device), table))
        self.losses.hit("cold")
        return True

    def _fall_back(self, sequence: SequenceState, known: int, cause: str) -> None:
        node = self._above(sequence, known)
        base = node.base(known) if node else None
        lost = base is not node
        kept = base.kept if base else None
        self.states.write(sequence.slot, kept.state if kept else None)
        sequence.computed = base.length if base else 0
        sequence.logits = kept.logits if kept else None
        sequence.anchor = Anchor(sequence.computed, kept.state if kept else None, sequence.logits)
        sequence.low = sequence.computed
        sequence.known = 0
        sequence.again(known, "evicted" if lost and cause == "rewind" else cause)
        if cause == "rewind":
            self.losses.hit("boundary")

    def _above(self, sequence: SequenceState, length: int) -> Node | None:
        """The deepest boundary that a sequence holds within a length."""
        found = max((n for n in sequence.held if n <= length), default=None)
        return None if found is None else sequence.held[found]

    def _hold(self, sequence: SequenceState, length: int, node: Node, *, pinned: bool) -> None:
        if length not in sequence.held:
            sequence.held[length] = self.tree.hold(node)
        if pinned:
            sequence.pinned.add(length)

    def _strip(self, sequence: SequenceState) -> None:
        sequence.trial = sequence.logits = sequence.table_tensor = None
        if sequence.slot >= 0:
            self.states.release(sequence.slot)
        self.pages.release(sequence.table)
        sequence.slot, sequence.table, sequence.computed = -1, [], 0
        sequence.anchor, sequence.low = START, 0

    # Making room

    def _possible(self, wanted: int) -> bool:
        """Whether so many pages more fit beside those of live sequences once every boundary is gone."""
        pages = self.table_bytes + wanted * self.pages.bytes_per_page
        return self.limit is None or pages + self.states.used * self.states.bytes_per_slot <= self.limit

    def _find_slot(self) -> bool:
        size = self.states.bytes_per_slot
        while not self.states.free:
            if self._fits(size):
                self.states.grow(self._stride(1, self.states.capacity, size))
            elif not self._give_up(self.pages):
                return False
        return True

    def _find_pages(self, count: int, soon: int = 0) -> bool:
        """One step towards `count` more free pages, of `soon` where there is room for those."""
        size = self.pages.bytes_per_page
        if self._fits(count * size):
            self.pages.grow(self._stride(count, max(soon, self.pages.capacity), size))
            return True
        return self._give_up(self.states)

    def _give_up(self, other: StatePool | PagePool) -> bool:
        """Makes room by what costs least; `other` is the pool that is not asked for more."""
        return self._evict(protected=False) or other.shrink() or self._evict(protected=True)

    def _make_room(self, size: int) -> bool:
        """Room for a boundary: others of less worth go, live sequences and what they hold stay."""
        while not self._fits(size):
            if not (self._evict(protected=False) or self.states.shrink() or self.pages.shrink()):
                return False
        return True

    def _fits(self, size: int) -> bool:
        return self.limit is None or self.bytes + size <= self.limit

    def _stride(self, least: int, wish: int, size: int) -> int:
        """How much a pool grows by: as wished, as long as that takes no more than half of what is left."""
        most = wish if self.limit is None or not size else (self.limit - self.bytes) // size // 2
        return max(least, min(wish, most))

    def _evict(self, *, protected: bool) -> bool:
        node = self.tree.cheapest(self._own_bytes, protected=protected)
        if node is None or node.kept is None:
            return False
        base = node.parent.base(node.length) if node.parent is not None else None
        if node.length - (base.length if base else 0) >= SHARED:
            self.freeze(node)
        self.losses.evicted += 1
        self.losses.evicted_bytes += node.kept.bytes + self._own_bytes(node, 0)
        self.tree.drop(node, lost=True)
        return True

    def _own_bytes(self, node: Node, beyond: int) -> int:
        table: Sequence[int] = node.kept.table if node.kept else []
        return self.pages.alone(table[beyond // self.pages.page_size :]) * self.pages.bytes_per_page

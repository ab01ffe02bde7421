"""The shortest completion of a grammar from a given state, searched over bytes.

A best-first search on a matcher whose alphabet is the 256 bytes. Forced bytes are taken in one step, large sets of
allowed bytes are collapsed to a few representatives, a closer is preferred wherever one is allowed, and states that
stand at the same place of the JSON skeleton are merged. Where properties may come in any order, the search goes on in a
fixed one (MARK). Where a string may not end yet, texts that are known to end some (`texts`) are tried. What it returns
is always a completion the grammar accepts; that it is the shortest rests on the merging, which looks at keys and
positions and not at every value.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import count

from llguidance import LLMatcher

from m1runtime.grammar.effort import UNLIMITED, Effort
from m1runtime.grammar.endings import endings
from m1runtime.grammar.shape import BACKSLASH, CLOSE_ARRAY, CLOSE_OBJECT, COMMA, MARK, OPEN_OBJECT, QUOTE, Shape

EXPANSIONS = 2500
STATES = 20_000
GLANCE = 500
"""States looked at for a token that may be refused: some other one is known to lead to the end."""
PLUNGE_STEPS = 5000
VARIANTS = 4
"""Prefixes of one scalar kept though the same bytes may follow them: enum entries and multiples can differ later."""
FEW = 24

_RANK = {byte: rank for rank, byte in enumerate(b'"}]0123456789ntf[{,-.')}


@dataclass(frozen=True, slots=True)
class Completion:
    """Bytes that complete the text; `shortest` when the search ran to its end."""

    text: bytes
    shortest: bool


@dataclass(frozen=True, slots=True)
class _Node:
    matcher: LLMatcher
    text: bytes
    shape: Shape


def complete_fast(
    matcher: LLMatcher, shape: Shape, *, limit: int, texts: tuple[bytes, ...] = (), effort: Effort = UNLIMITED
) -> bytes | None:
    """Some completion, found by always taking the most closing byte; None if it is far beyond `limit` tokens.

    Inside a scalar that may not end yet, the byte used least in it: a pattern may wait for any of them.
    """
    node = _forced(_Node(matcher.deep_copy(), b"", shape))
    used: Counter[int] = Counter()
    for _ in range(min(4 * limit + 64, PLUNGE_STEPS)):
        if node is None or effort.over:
            return None
        allowed, accepting = _allowed(node.matcher)
        if accepting:
            return node.text
        if not allowed:
            return None
        ended = next(_ended(node, allowed, texts), None)
        if ended is not None:
            node = ended
            continue
        top = len(node.shape.frames) == 1
        if node.shape.since == 0:
            used.clear()
        best = min((used[byte], _rank(byte, top), byte) for byte in _choices(node.shape, allowed))[2]
        used[best] += 1
        node = _step(node, best, free=len(allowed) > FEW, owned=True)
    return None


def complete_shortest(
    matcher: LLMatcher,
    shape: Shape,
    cost: Callable[[bytes], int],
    *,
    limit: int,
    merge: bool,
    texts: tuple[bytes, ...] = (),
    states: int = STATES,
    effort: Effort = UNLIMITED,
) -> Completion | None:
    """The completion of least `cost`, summed over its segments, at most `limit`; None if none was found within bounds.

    `merge` joins states at the same place of the JSON skeleton (for JSON bodies only).
    """
    start = _forced(_Node(matcher.deep_copy(), b"", shape))
    if start is None:
        return None
    order = count()
    heap = [(cost(start.text), next(order), start)]
    seen: Counter[object] = Counter()
    while heap and len(seen) < EXPANSIONS and next(order) < states and not effort.over:
        spent, _, node = heapq.heappop(heap)
        allowed, accepting = _allowed(node.matcher)
        if accepting:
            return Completion(node.text, shortest=True)
        if not _worth_visiting(node, allowed, seen, merge):
            continue
        choices = _choices(node.shape, allowed) if merge else _representatives(allowed)
        steps = (_step(node, byte, free=len(allowed) > FEW, owned=False) for byte in choices)
        for after in (*_ended(node, allowed, texts), *steps):
            if after is None:
                continue
            total = spent + cost(after.text[len(node.text) :])
            if total <= limit:
                heapq.heappush(heap, (total, next(order), after))
    return None


def _worth_visiting(node: _Node, allowed: tuple[int, ...], seen: Counter[object], merge: bool) -> bool:
    """One visit to a place between values or in free text; a few in scalars, whose end may depend on their start."""
    shape = node.shape
    if not merge:
        seen[node.text] += 1
        return True
    place = (shape.frames, shape.string is None, shape.key and shape.string, shape.escaped, shape.key_next, shape.since)
    seen[place, allowed] += 1
    scalar = shape.since > 0 and not shape.free and not shape.key
    return seen[place, allowed] <= (VARIANTS if scalar else 1)


def _step(node: _Node, byte: int, *, free: bool, owned: bool) -> _Node | None:
    matcher = node.matcher if owned else node.matcher.deep_copy()
    if not matcher.consume_token(byte):
        return None
    if byte == MARK:
        return _forced(_Node(matcher, node.text, node.shape))
    shape = node.shape.feed(bytes((byte,)))
    if free and shape.string is not None and byte != QUOTE:
        shape = shape.freed()
    return None if shape.repeated else _forced(_Node(matcher, node.text + bytes((byte,)), shape))


def _ended(node: _Node, allowed: tuple[int, ...], texts: tuple[bytes, ...]) -> Iterator[_Node]:
    """After the string that is being written and may not end yet, ended with what is known to end strings."""
    if not texts or node.shape.string is None or node.shape.escaped or QUOTE in allowed:
        return
    for text in endings(node.matcher, texts):
        matcher, shape = node.matcher.deep_copy(), node.shape.feed(text)
        if not shape.repeated and matcher.consume_tokens(list(text)):
            after = _forced(_Node(matcher, node.text + text, shape))
            if after is not None:
                yield after


def _forced(node: _Node) -> _Node | None:
    run = b"" if node.matcher.is_stopped() else node.matcher.compute_ff_bytes()
    if not run:
        return node
    if not node.matcher.consume_tokens(list(run)):
        return None
    shape = node.shape.feed(run)
    return None if shape.repeated else _Node(node.matcher, node.text + run, shape)


def _allowed(matcher: LLMatcher) -> tuple[tuple[int, ...], bool]:
    if matcher.is_error():
        return (), False
    if matcher.is_accepting():
        return (), True
    return _bytes_in(matcher.compute_bitmask()[:32]), False


@lru_cache(4096)
def _bytes_in(bitmask: bytes) -> tuple[int, ...]:
    mask = int.from_bytes(bitmask, "little")
    return tuple(byte for byte in range(256) if mask >> byte & 1)


def _choices(shape: Shape, allowed: tuple[int, ...]) -> tuple[int, ...]:
    if shape.string is not None:
        if QUOTE in allowed and not shape.escaped and shape.repeats():
            return _representatives(tuple(byte for byte in allowed if byte != QUOTE))
        if QUOTE in allowed and not shape.escaped and not (shape.key and len(allowed) <= FEW):
            return (QUOTE,)
        return _representatives(allowed)
    for closer in (CLOSE_OBJECT, CLOSE_ARRAY):
        if closer in allowed:
            return (closer,)
    for only in (COMMA, MARK):
        if only in allowed:
            return (only,)
    return _representatives(allowed)


@lru_cache(4096)
def _representatives(allowed: tuple[int, ...]) -> tuple[int, ...]:
    if len(allowed) <= FEW:
        return allowed
    kinds: dict[object, int] = {}
    for byte in allowed:
        kinds.setdefault(_kind(byte), byte)
    plain = {kind: byte for kind, byte in kinds.items() if kind not in ("high", BACKSLASH)}
    return tuple((plain or kinds).values())


def _kind(byte: int) -> object:
    char = chr(byte)
    if byte >= 0x80:
        return "high"
    if char.islower():
        return "lower"
    if char.isupper():
        return "upper"
    return "digit" if char.isdigit() else byte


def _rank(byte: int, top: bool) -> int:
    """Closers first, then the shortest values; between calls, anything but one more."""
    if top:
        return byte == OPEN_OBJECT
    return _RANK.get(byte, len(_RANK) + (byte >= 0x80))

"""Tokens by what they do inside a lexeme: they stay there, or leave it and write some bytes beyond."""

from __future__ import annotations

from typing import TypeAlias

from m1runtime.grammar.place import Literal, Place
from m1runtime.grammar.rows import Block, Rows

MAX_BLOCKS = 256
REST = -1

Exits: TypeAlias = dict[bytes, list[int]]
"""Bytes beyond a lexeme, and the tokens that leave it with them."""
Trie: TypeAlias = "dict[int, Trie | bytes]"
"""By the next byte; under REST the bytes up to here, where they are some token's."""


class Entered:
    """Tokens that begin with some bytes and go on inside a lexeme: to its `inside`, or beyond it by `exits`."""

    def __init__(self, inside: list[int], exits: Exits, rows: Rows) -> None:
        self.inside, self._exits, self._rows = bool(inside), exits, rows
        self._stay = rows.block(inside)
        self._blocks: dict[tuple[bytes, ...], Block] = {(): self._stay}
        self._trie: Trie = {}
        for rest in exits:
            node = self._trie
            for byte in rest:
                below = node.setdefault(byte, {})
                assert isinstance(below, dict)
                node = below
            node[REST] = rest

    def leaving(self, after: Place) -> Block:
        """The tokens inside, and those that may leave to `after`."""
        rests = self.viable(after)
        found = self._blocks.get(rests)
        if found is None:
            if len(self._blocks) >= MAX_BLOCKS:
                self._blocks.clear()
            tokens = [token for rest in rests for token in self._exits[rest]]
            found = self._blocks[rests] = self._rows.block(tokens, (self._stay,))
        return found

    def viable(self, after: Place) -> tuple[bytes, ...]:
        """The bytes with which a token may leave to `after`."""
        found = [b""] if REST in self._trie else []
        _follow(self._trie, 0, after, found)
        return tuple(dict.fromkeys(found))


def _follow(node: Trie, depth: int, place: Place, found: list[bytes]) -> None:
    """Adds the bytes below `node`, of which `depth` led to `place`, that lead on from there."""
    for part in place.parts:
        if isinstance(part, Literal):
            _follow_literal(node, depth, part, found)
        elif not part.kept:
            found += [rest for rest in _rests(node) if len(rest) > depth and part.walk(rest[depth:]) is not None]
        else:
            for byte in part.allowed if len(part.allowed) < len(node) else node:
                below = node.get(byte)
                after = part.move(byte) if isinstance(below, dict) else None
                if isinstance(below, dict) and after is not None:
                    _descend(below, depth + 1, after, found)


def _follow_literal(node: Trie, depth: int, part: Literal, found: list[bytes]) -> None:
    size = len(part.text)
    for at, byte in enumerate(part.text, start=1):
        below = node.get(byte)
        if not isinstance(below, dict):
            return
        node = below
        if at < size and isinstance(rest := node.get(REST), bytes):
            found.append(rest)
    _descend(node, depth + size, part.after, found)


def _descend(node: Trie, depth: int, place: Place, found: list[bytes]) -> None:
    rest = node.get(REST)
    if isinstance(rest, bytes):
        found.append(rest)
    if len(node) > isinstance(rest, bytes):
        _follow(node, depth, place, found)


def _rests(node: Trie) -> list[bytes]:
    """All the bytes below a node, and its own."""
    found: list[bytes] = []
    for below in node.values():
        found += [below] if isinstance(below, bytes) else _rests(below)
    return found

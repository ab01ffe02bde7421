"""The tokens of a vocabulary that fit a place of a plain grammar.

What a token does inside a string or a number depends on the place behind it only through the bytes it writes beyond:
these are sorted out once for a vocabulary, so that a mask is a few unions.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from m1runtime.grammar.foreign import Foreign
from m1runtime.grammar.lexeme import DONE, STRING, Lexeme, is_free
from m1runtime.grammar.place import Lexical, Literal, Name, Place
from m1runtime.grammar.vocabulary import LONGEST_TOKEN, Vocabulary

Mask: TypeAlias = NDArray[np.uint8]
"""One bit a token, least significant first; [4 * words] bytes."""


@dataclass(frozen=True, slots=True, eq=False)
class Entered:
    """Tokens that begin with some bytes and go on inside a lexeme: `inside` its end, or beyond it by `exits`."""

    inside: Mask
    exits: dict[bytes, list[int]]
    by_first: dict[int, list[bytes]]
    longest: int
    packed: dict[bytes, Mask] = field(default_factory=dict[bytes, Mask])


class Lexicon:
    """The plain tokens of one vocabulary in the order of their bytes."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        table = enumerate(vocabulary.token_bytes)
        pairs = sorted((raw, token) for token, raw in table if raw and token not in vocabulary.special)
        self._order = [raw for raw, _ in pairs]
        self._tokens = [token for _, token in pairs]
        self._ids: dict[bytes, list[int]] = {}
        for raw, token in pairs:
            self._ids.setdefault(raw, []).append(token)
        self._longest = max(map(len, self._order), default=0)
        self._closing = [(raw, token) for raw, token in pairs if b"}" in raw[:-1]]
        self._empty = np.zeros(4 * vocabulary.words, dtype=np.uint8)
        self._entered: dict[tuple[bytes, Lexeme, int], Entered] = {}

    def mask(self, place: Place) -> Tensor:
        """int32 [words]: the tokens that may follow at `place`, eos not among them."""
        made = self._empty.copy()
        for some in self._beyond(b"", place):
            made |= some
        return torch.frombuffer(bytearray(made.tobytes()), dtype=torch.int32)

    def goes_on(self, text: bytes, place: Place) -> bool:
        """Whether a token begins with `text`, which leads to `place`, and goes on."""
        return len(text) < LONGEST_TOKEN and self.covers(text) and next(self._beyond(text, place), None) is not None

    def token(self, text: bytes) -> int | None:
        """The token that is `text`, or None."""
        found = self._ids.get(text)
        return found[0] if found else None

    def covers(self, text: bytes) -> bool:
        """Whether a token begins with `text`."""
        low, high = self._range(text)
        return low < high

    # Masks

    def _beyond(self, text: bytes, place: Place) -> Iterator[Mask]:
        """Masks, none of them empty, that together hold the tokens that begin with `text` and go on at `place`."""
        for part in place.parts:
            if isinstance(part, Literal):
                yield from self._beyond_literal(text, part)
            elif isinstance(part, Lexical):
                made = self._resolved(self._enter(text, part.lexeme, part.state), part.after)
                if made.any():
                    yield made
                if part.final:
                    yield from self._beyond(text, part.after)
            elif isinstance(part, Name):
                yield from self._beyond_name(text, part)
            elif isinstance(part, Foreign):
                yield from self._beyond_foreign(text, part)
            else:
                low, high = self._range(text)
                if tokens := list(self._found(part, low, high, len(text))):
                    yield self._packed(tokens)

    def _beyond_name(self, text: bytes, place: Name) -> Iterator[Mask]:
        made = self._resolved(self._enter(text, STRING, place.state), place.nearest[1])
        for ending in place.refused():
            for at in range(*self._range(text + ending)):
                made[self._tokens[at] >> 3] &= 255 ^ 1 << (self._tokens[at] & 7)
        if made.any():
            yield made

    def _beyond_foreign(self, text: bytes, place: Foreign) -> Iterator[Mask]:
        """As `_beyond`; after a text, of the tokens whose rest is a token itself."""
        if text:
            found = self.vocabulary.beyond(text).among(place.own_mask)
            if found.numel():
                yield self._packed([int(token) for token in found])
            return
        own = place.own_mask.numpy().view(np.uint8)
        if own.any():
            yield own
        beyond = [token for raw, token in self._closing if not place.allows(token) and place.cross(raw) is not None]
        if beyond:
            yield self._packed(beyond)

    def _beyond_literal(self, text: bytes, place: Literal) -> Iterator[Mask]:
        whole, known = text + place.text, self._ids
        ends = range(len(text) + 1, min(len(whole), self._longest) + 1)
        if tokens := [one for end in ends for one in known.get(whole[:end], ())]:
            yield self._packed(tokens)
        if len(whole) < self._longest and self.covers(whole):
            yield from self._beyond(whole, place.after)

    def _found(self, place: Place, low: int, high: int, depth: int) -> Iterator[int]:
        """Those of the tokens `low` to `high`, of which `depth` bytes led to `place`, that go on from there."""
        order = self._order
        while low < high and len(order[low]) == depth:
            low += 1
        if high - low <= 2 or (len(place.parts) == 1 and isinstance(place.parts[0], Lexical) and depth):
            for at in range(low, high):
                if place.walk(order[at][depth:]) is not None:
                    yield self._tokens[at]
            return
        prefix = order[low][:depth]
        for byte in place.allowed:
            first = bisect_left(order, prefix + bytes((byte,)), low, high)
            last = bisect_left(order, prefix + bytes((byte + 1,)), first, high) if byte < 255 else high
            after = place.move(byte)
            if first == last or after is None:
                continue
            for at in range(first, last):
                if len(order[at]) > depth + 1:
                    break
                yield self._tokens[at]
            yield from self._found(after, first, last, depth + 1)

    # Lexemes

    def _resolved(self, entered: Entered, after: Place) -> Mask:
        """The tokens of `entered` whose bytes beyond the lexeme may follow at `after`."""
        made = entered.inside.copy()
        for rest in self._viable(entered, after):
            made |= self._exit(entered, rest)
        return made

    def _exit(self, entered: Entered, rest: bytes) -> Mask:
        found = entered.packed.get(rest)
        if found is None:
            found = entered.packed[rest] = self._packed(entered.exits[rest])
        return found

    def _viable(self, entered: Entered, after: Place) -> Iterator[bytes]:
        if b"" in entered.exits:
            yield b""
        for part in after.parts:
            if isinstance(part, Literal):
                text = part.text
                for end in range(1, min(len(text), entered.longest) + 1):
                    if text[:end] in entered.exits:
                        yield text[:end]
                if len(text) < entered.longest:
                    for rest in entered.by_first.get(text[0], ()):
                        if len(rest) > len(text) and part.walk(rest) is not None:
                            yield rest
            else:
                for byte in part.allowed if len(part.allowed) < len(entered.by_first) else entered.by_first:
                    for rest in entered.by_first.get(byte, ()):
                        if part.walk(rest) is not None:
                            yield rest

    def _enter(self, prefix: bytes, lexeme: Lexeme, state: int) -> Entered:
        key = (prefix, lexeme, state)
        found = self._entered.get(key)
        if found is None:
            found = self._entered[key] = self._make(prefix, lexeme, state)
        return found

    def _make(self, prefix: bytes, lexeme: Lexeme, state: int) -> Entered:
        inside: list[int] = []
        exits: dict[bytes, list[int]] = {}
        free = lexeme is STRING and state == 0
        for token, tail in self._starting(prefix, lexeme.moves[state]):
            if free and is_free(tail):
                inside.append(token)
                continue
            after, end = lexeme.run(state, tail)
            if after != DONE and end == len(tail):
                inside.append(token)
            elif after == DONE or after in lexeme.final:
                exits.setdefault(tail[end:], []).append(token)
        by_first: dict[int, list[bytes]] = {}
        for rest in exits:
            if rest:
                by_first.setdefault(rest[0], []).append(rest)
        return Entered(self._packed(inside), exits, by_first, max(map(len, exits), default=0))

    def _starting(self, prefix: bytes, bytes_next: dict[int, int]) -> Iterator[tuple[int, bytes]]:
        """Tokens that go on after `prefix` with one of these bytes, and how they go on."""
        for byte in bytes_next:
            low, high = self._range(prefix + bytes((byte,)))
            for at in range(low, high):
                yield self._tokens[at], self._order[at][len(prefix) :]

    def _range(self, prefix: bytes) -> tuple[int, int]:
        low = bisect_left(self._order, prefix)
        trimmed = prefix.rstrip(b"\xff")
        if not trimmed:
            return low, len(self._order)
        above = trimmed[:-1] + bytes((trimmed[-1] + 1,))
        return low, bisect_left(self._order, above, low)

    def _packed(self, ids: list[int]) -> Mask:
        made = self._empty.copy()
        if len(ids) > 64:
            bits = np.zeros(8 * len(made), dtype=np.bool_)
            bits[ids] = True
            return np.packbits(bits, bitorder="little")
        for i in ids:
            made[i >> 3] |= 1 << (i & 7)
        return made

"""The tokens of a vocabulary that fit a place of a plain grammar.

What a token does inside a string or a number depends on the place behind it only through the bytes it writes beyond:
these are sorted out once for a vocabulary, so that a mask is a few unions, which all of its grammars share.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from typing import TypeAlias

from torch import Tensor

from m1runtime.grammar.entered import Entered, Exits
from m1runtime.grammar.foreign import Foreign
from m1runtime.grammar.lexeme import DONE, INTEGER, NUMBER, STRING, Lexeme, is_free
from m1runtime.grammar.place import Lexical, Literal, Name, Place, Word
from m1runtime.grammar.rows import Block, Rows
from m1runtime.grammar.vocabulary import LONGEST_TOKEN, Vocabulary

MAX_ROWS = 1024
FEW_WORDS = 24
"""Of more words than these, the tokens are looked for byte by byte instead of word by word."""
TAIL = 3
COMMON = (
    *((b"", lexeme, state) for lexeme in (STRING, NUMBER, INTEGER) for state in range(len(lexeme.moves))),
    *((lead, STRING, 0) for lead in (b'"', b' "', b'": "', b'["', b' ["')),
    *((lead, lexeme, 0) for lead in (b" ", b": ", b" [") for lexeme in (NUMBER, INTEGER)),
)
"""Where tokens enter strings and numbers in most calls, and all states of these: sorted out beforehand."""

Piece: TypeAlias = list[int] | Block | tuple[Entered, Place]
"""Some tokens: as ids, as a block, or those inside a lexeme with the ones that leave it to a place."""


class Lexicon:
    """The plain tokens of one vocabulary in the order of their bytes."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        table = enumerate(vocabulary.token_bytes)
        pairs = sorted((raw, token) for token, raw in table if raw and token not in vocabulary.special)
        self._order = [raw for raw, _ in pairs]
        self._tokens = [token for _, token in pairs]
        self._ids: dict[bytes, tuple[int, ...]] = {}
        for raw, token in pairs:
            self._ids[raw] = (*self._ids.get(raw, ()), token)
        self._heads = {raw[:size] for raw in self._order for size in range(1, len(raw))}
        self._tails: dict[bytes, int] = {}
        for head in self._heads:
            tail, size = head[-TAIL:], len(head)
            if size > self._tails.get(tail, TAIL - 1):
                self._tails[tail] = size
        self._closing = [(raw, token) for raw, token in pairs if b"}" in raw[:-1]]
        self._entered: dict[tuple[bytes, Lexeme, int], Entered] = {}
        self._rows = Rows(vocabulary.words)
        self._unions: dict[object, Tensor] = {}
        for lead, lexeme, state in COMMON:
            self._enter(lead, lexeme, state)

    def mask(self, place: Place, ends: Iterable[int] = ()) -> Tensor:
        """int32 [words]: the tokens that may follow at `place`, and `ends`; not to be changed."""
        tokens, blocks = list(ends), list[Block]()
        for piece in self._beyond(b"", place):
            if isinstance(piece, list):
                tokens += piece
            else:
                blocks.append(piece if isinstance(piece, Block) else piece[0].leaving(piece[1]))
        if len(blocks) == 1 and not tokens:
            return blocks[0].row
        key = (tuple(blocks), tuple(tokens))
        found = self._unions.get(key)
        if found is None:
            if len(self._unions) >= MAX_ROWS:
                self._unions.clear()
            found = self._unions[key] = self._rows.block(tokens, blocks).row
        return found

    def exits(self, place: Place) -> Iterator[Place]:
        """Where the next token may lead from `place`: out of a string or a number, or by a byte further inside it."""
        for piece in self._beyond(b"", place):
            if isinstance(piece, list):
                ways = (place.walk(self.vocabulary.token_bytes[token]) for token in piece)
            elif isinstance(piece, tuple):
                ways = (piece[1].walk(rest) for rest in piece[0].viable(piece[1]))
            else:
                continue
            yield from (after for after in ways if after is not None)
        for part in place.parts:
            if isinstance(part, Lexical):
                moves = {state: byte for byte, state in part.lexeme.moves[part.state].items() if state != DONE}
                yield from (after for byte in moves.values() if (after := part.move(byte)) is not None)

    def firm(self, run: bytes, place: Place) -> int:
        """How many bytes of `run`, which leads to `place`, come before any token that begins in it and goes on."""
        heads, size = self._heads, len(run)
        longest = min(self._tails.get(run[-TAIL:], TAIL - 1), LONGEST_TOKEN - 1)
        for at in range(max(0, size - longest), size):
            if run[at:] in heads and next(self._beyond(run[at:], place), None) is not None:
                return at
        return size

    def token(self, text: bytes) -> int | None:
        """The token that is `text`, or None."""
        found = self._ids.get(text)
        return found[0] if found else None

    def covers(self, text: bytes) -> bool:
        """Whether a token begins with `text`."""
        return text in self._heads or text in self._ids

    # Masks

    def _beyond(self, text: bytes, place: Place) -> Iterator[Piece]:
        """Pieces, none of them empty, that together hold the tokens that begin with `text` and go on at `place`."""
        for part in place.parts:
            if isinstance(part, Literal):
                yield from self._beyond_words(text, [(part.text, part.after)])
            elif isinstance(part, Lexical):
                entered = self._enter(text, part.lexeme, part.state)
                if entered.inside or entered.viable(part.after):
                    yield entered, part.after
                if part.final:
                    yield from self._beyond(text, part.after)
            elif isinstance(part, Word) and part.high - part.low <= FEW_WORDS:
                yield from self._beyond_words(text, part.rests)
            elif isinstance(part, Name):
                yield from self._beyond_name(text, part)
            elif isinstance(part, Foreign):
                yield from self._beyond_foreign(text, part)
            elif tokens := list(self._found(part, *self._range(text), len(text))):
                yield tokens

    def _beyond_words(self, text: bytes, words: Iterable[tuple[bytes, Place]]) -> Iterator[Piece]:
        known, heads = self._ids, self._heads
        tokens: dict[int, None] = {}
        beyond: list[tuple[bytes, Place]] = []
        for rest, after in words:
            whole = text + rest
            for end in range(len(text) + 1, len(whole) + 1):
                one = whole[:end]
                if (found := known.get(one)) is not None:
                    tokens.update(dict.fromkeys(found))
                if one not in heads:
                    break
            else:
                beyond.append((whole, after))
        if tokens:
            yield list(tokens)
        for whole, after in beyond:
            yield from self._beyond(whole, after)

    def _beyond_name(self, text: bytes, place: Name) -> Iterator[Piece]:
        entered = self._enter(text, STRING, place.state)
        whole = entered.leaving(place.nearest[1])
        refused = [self._tokens[at] for ending in place.refused() for at in range(*self._range(text + ending))]
        made = whole.without(refused)
        if made.any:
            yield made

    def _beyond_foreign(self, text: bytes, place: Foreign) -> Iterator[Piece]:
        """As `_beyond`; after a text, of the tokens whose rest is a token itself."""
        if text:
            found = self.vocabulary.beyond(text).among(place.own_mask)
            if found.numel():
                yield [int(token) for token in found]
            return
        own = Block.of(place.own_mask)
        if own.any:
            yield own
        beyond = [token for raw, token in self._closing if not place.allows(token) and place.cross(raw) is not None]
        if beyond:
            yield beyond

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

    def _enter(self, prefix: bytes, lexeme: Lexeme, state: int) -> Entered:
        key = (prefix, lexeme, state)
        found = self._entered.get(key)
        if found is None:
            found = self._entered[key] = self._make(prefix, lexeme, state)
        return found

    def _make(self, prefix: bytes, lexeme: Lexeme, state: int) -> Entered:
        inside: list[int] = []
        exits: Exits = {}
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
        return Entered(inside, exits, self._rows)

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

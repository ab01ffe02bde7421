"""The kinds of places in a grammar: each says which bytes may follow it, and what comes after them."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from typing import TYPE_CHECKING

from m1runtime.grammar import bounds, plain
from m1runtime.grammar.lexeme import DONE, STRING, Lexeme, is_free

if TYPE_CHECKING:
    from m1runtime.grammar.places import Places

QUOTE = b'"'
FEW_WAYS = 64


class Place(ABC):
    """A place in the text. `move` is cached; subclasses say what the bytes do.

    `kept`: equal places are one object, so what is found out about it is worth keeping.
    """

    kept = True

    def __init__(self) -> None:
        self._moves: dict[int, Place | None] = {}

    def move(self, byte: int) -> Place | None:
        """The place after `byte`, or None."""
        try:
            return self._moves[byte]
        except KeyError:
            found = self._moves[byte] = self._step(byte)
            return found

    def walk(self, text: bytes) -> Place | None:
        """The place after `text`, or None."""
        place: Place | None = self
        for byte in text:
            place = place.move(byte)
            if place is None:
                return None
        return place

    @cached_property
    def allowed(self) -> bytes:
        """The bytes that may follow, in order."""
        return bytes(byte for byte in range(256) if self.move(byte) is not None)

    @property
    def accepting(self) -> bool:
        """Whether the text may end here."""
        return False

    @property
    def fixed(self) -> tuple[bytes, Place] | None:
        """Bytes that can only follow, and the place after them; None if there is a choice."""
        if len(self.allowed) != 1 or self.accepting:
            return None
        after = self.move(self.allowed[0])
        return None if after is None else (self.allowed, after)

    @property
    def parts(self) -> tuple[Place, ...]:
        """The places that are read side by side here."""
        return (self,)

    @property
    @abstractmethod
    def nearest(self) -> tuple[bytes, Place]:
        """Bytes on a short way to the end, and where they lead; the end leads nowhere."""

    def closers(self) -> Iterable[tuple[bytes, Place]]:
        """All the ways that may lead to the end in the fewest tokens."""
        return (self.nearest,)

    @abstractmethod
    def _step(self, byte: int) -> Place | None: ...


class End(Place):
    """Nothing more follows."""

    @cached_property
    def allowed(self) -> bytes:
        return b""

    @property
    def accepting(self) -> bool:
        return True

    @property
    def nearest(self) -> tuple[bytes, Place]:
        return b"", self

    def _step(self, byte: int) -> Place | None:
        return None


class Literal(Place):
    """Fixed bytes (at least one), then `after`."""

    def __init__(self, text: bytes, after: Place, places: Places) -> None:
        super().__init__()
        self.text, self.after, self._places = text, after, places
        self.allowed = text[:1]

    @property
    def fixed(self) -> tuple[bytes, Place] | None:
        return self.text, self.after

    @property
    def nearest(self) -> tuple[bytes, Place]:
        return self.text, self.after

    def walk(self, text: bytes) -> Place | None:
        size = len(self.text)
        if len(text) < size:
            return self._places.literal(self.text[len(text) :], self.after) if self.text.startswith(text) else None
        return self.after.walk(text[size:]) if text.startswith(self.text) else None

    def _step(self, byte: int) -> Place | None:
        return self._places.literal(self.text[1:], self.after) if byte == self.text[0] else None


class Lexical(Place):
    """Inside a string or a number, then `after`."""

    def __init__(self, lexeme: Lexeme, state: int, after: Place, places: Places) -> None:
        super().__init__()
        self.lexeme, self.state, self.after, self._places = lexeme, state, after, places
        self.final = state in lexeme.final

    @property
    def accepting(self) -> bool:
        return self.final and self.after.accepting

    @cached_property
    def allowed(self) -> bytes:
        beyond = self.after.allowed if self.final else b""
        return bytes(sorted({*self.lexeme.moves[self.state], *beyond}))

    @property
    def nearest(self) -> tuple[bytes, Place]:
        return self.lexeme.shortest[self.state], self.after

    def walk(self, text: bytes) -> Place | None:
        if self.state == 0 and self.lexeme is STRING and is_free(text):
            return self
        state, end = self.lexeme.run(self.state, text)
        if state == DONE or (end < len(text) and state in self.lexeme.final):
            return self.after.walk(text[end:])
        return self._places.lexical(self.lexeme, state, self.after) if end == len(text) else None

    def _step(self, byte: int) -> Place | None:
        state = self.lexeme.moves[self.state].get(byte)
        if state is None:
            return self.after.move(byte) if self.final else None
        return self.after if state == DONE else self._places.lexical(self.lexeme, state, self.after)


class Range(Place):
    """Inside an integer between bounds, of which `text` is written, then `after`."""

    def __init__(self, node: plain.Integer, text: bytes, after: Place, places: Places) -> None:
        super().__init__()
        self.node, self.text, self.after, self._places = node, text, after, places
        self.final = bounds.fits(node, text)

    @property
    def accepting(self) -> bool:
        return self.final and self.after.accepting

    @cached_property
    def allowed(self) -> bytes:
        own = [byte for byte in b"-0123456789" if bounds.may_become(self.node, self.text + bytes((byte,)))]
        return bytes(sorted({*own, *(self.after.allowed if self.final else b"")}))

    @property
    def nearest(self) -> tuple[bytes, Place]:
        return bounds.shortest(self.node, self.text), self.after

    def _step(self, byte: int) -> Place | None:
        text = self.text + bytes((byte,))
        if byte in b"-0123456789" and bounds.may_become(self.node, text):
            return self._places.range(self.node, text, self.after)
        return self.after.move(byte) if self.final and byte not in b"0123456789" else None


@dataclass(frozen=True, slots=True, eq=False)
class Words:
    """Texts in order, none twice, each with what follows it.

    `closing`: those that the shortest way to the end may go through, None for all; `quick`: those that some short way
    is looked for through.
    """

    texts: tuple[bytes, ...]
    afters: tuple[Place, ...]
    closing: frozenset[int] | None = None
    quick: frozenset[int] | None = None


class Word(Place):
    """Inside one of `words[low:high]`, of which `depth` bytes are written."""

    def __init__(self, words: Words, low: int, high: int, depth: int, places: Places) -> None:
        super().__init__()
        self.words, self.low, self.high, self.depth, self._places = words, low, high, depth, places
        self.whole = len(words.texts[low]) == depth

    @property
    def accepting(self) -> bool:
        return self.whole and self.words.afters[self.low].accepting

    @cached_property
    def allowed(self) -> bytes:
        bytes_next = {text[self.depth] for text in self.words.texts[self.low + self.whole : self.high]}
        return bytes(sorted(bytes_next.union(self.words.afters[self.low].allowed if self.whole else ())))

    @property
    def fixed(self) -> tuple[bytes, Place] | None:
        if self.whole:
            return super().fixed
        first, last = self.words.texts[self.low], self.words.texts[self.high - 1]
        shared = next(at for at in range(self.depth, len(last)) if first[at : at + 1] != last[at : at + 1])
        if shared == self.depth:
            return None
        return first[self.depth : shared], self._places.word(self.words, self.low, self.high, shared)

    @property
    def nearest(self) -> tuple[bytes, Place]:
        return min(self._ways(self.words.quick or self.words.closing), key=lambda way: len(way[0]))

    @property
    def rests(self) -> list[tuple[bytes, Place]]:
        """What is still to be written of each text, and what follows it."""
        words, depth = self.words, self.depth
        return [(words.texts[i][depth:], words.afters[i]) for i in range(self.low, self.high)]

    def closers(self) -> list[tuple[bytes, Place]]:
        return self._ways(self.words.closing)

    def _ways(self, some: frozenset[int] | None) -> list[tuple[bytes, Place]]:
        words, inside = self.words, range(self.low, self.high)
        chosen = [i for i in some if i in inside] if some else []
        ways = sorted(chosen or inside, key=lambda i: len(words.texts[i]))
        alike = words.afters[self.low] is words.afters[self.high - 1]
        return [(words.texts[i][self.depth :], words.afters[i]) for i in (ways[:FEW_WAYS] if alike else ways)]

    def walk(self, text: bytes) -> Place | None:
        texts = self.words.texts
        whole = texts[self.low][: self.depth] + text
        low = bisect_left(texts, whole, self.low, self.high)
        if text and low < self.high and texts[low].startswith(whole):
            high = bisect_right(texts, whole, low, self.high, key=lambda one: one[: len(whole)])
            return self._places.word(self.words, low, high, len(whole))
        return super().walk(text)

    def _step(self, byte: int) -> Place | None:
        texts, first = self.words.texts, self.low + self.whole
        prefix = texts[self.low][: self.depth]
        low = bisect_left(texts, prefix + bytes((byte,)), first, self.high)
        high = bisect_left(texts, prefix + bytes((byte + 1,)), low, self.high) if byte < 255 else self.high
        if low == high:
            return self.words.afters[self.low].move(byte) if self.whole else None
        return self._places.word(self.words, low, high, self.depth + 1)


class Fork(Place):
    """Several places at once; `closing` are those on a short way to the end."""

    def __init__(self, parts: tuple[Place, ...], closing: tuple[Place, ...], places: Places) -> None:
        super().__init__()
        self._parts, self._closing, self._places = parts, closing, places

    @property
    def accepting(self) -> bool:
        return any(part.accepting for part in self._parts)

    @property
    def kept(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return all(part.kept for part in self._parts)

    @property
    def parts(self) -> tuple[Place, ...]:
        return self._parts

    @cached_property
    def allowed(self) -> bytes:
        return bytes(sorted({byte for part in self._parts for byte in part.allowed}))

    @property
    def nearest(self) -> tuple[bytes, Place]:
        return min((part.nearest for part in self._closing), key=lambda way: len(way[0]))

    def closers(self) -> Iterable[tuple[bytes, Place]]:
        return [way for part in self._closing for way in part.closers()]

    def _step(self, byte: int) -> Place | None:
        return self._places.fork([after for part in self._parts if (after := part.move(byte)) is not None])


class Name(Place):
    """Inside a made-up name, `spelled` so far, that must be none of `taken`; `then` is what follows a name's quote."""

    kept = False

    def __init__(self, state: int, spelled: bytes, taken: frozenset[str], then: Callable[[str], Place]) -> None:
        super().__init__()
        self.state, self.spelled, self.taken, self.then = state, spelled, taken, then

    @cached_property
    def allowed(self) -> bytes:
        moves = STRING.moves[self.state]
        return bytes(sorted(byte for byte, after in moves.items() if after != DONE or self._free(self.spelled)))

    @property
    def nearest(self) -> tuple[bytes, Place]:
        rest = STRING.shortest[self.state][:-1]
        names = (rest + str(number).encode() if number else rest for number in count())
        ending = next(name for name in names if self._free(self.spelled + name))
        return ending + QUOTE, self.then(_name(self.spelled + ending))

    def walk(self, text: bytes) -> Place | None:
        state, end = STRING.run(self.state, text)
        if state == DONE:
            spelled = self.spelled + text[: end - 1]
            return self.then(_name(spelled)).walk(text[end:]) if self._free(spelled) else None
        return Name(state, self.spelled + text, self.taken, self.then) if end == len(text) else None

    def refused(self) -> Iterator[bytes]:
        """Texts that would end a name which is taken."""
        for name in self.taken:
            spelled = plain.json_text(name)[1:]
            if spelled.startswith(self.spelled):
                yield spelled[len(self.spelled) :]

    def _free(self, spelled: bytes) -> bool:
        return _name(spelled) not in self.taken

    def _step(self, byte: int) -> Place | None:
        return self.walk(bytes((byte,)))


def _name(spelled: bytes) -> str:
    return spelled.decode() if b"\\" not in spelled else json.loads(QUOTE + spelled + QUOTE)


class Later(Place):
    """What `make` makes, once it is asked for. `near`: a short way from there to the end, where it is known before."""

    def __init__(self, make: Callable[[], Place], near: tuple[bytes, Place] | None = None) -> None:
        super().__init__()
        self._make, self._near = make, near

    @cached_property
    def real(self) -> Place:
        """The place itself."""
        return self._make()

    @property
    def accepting(self) -> bool:
        return self.real.accepting

    @cached_property
    def allowed(self) -> bytes:
        return self.real.allowed

    @property
    def parts(self) -> tuple[Place, ...]:
        return self.real.parts

    @property
    def fixed(self) -> tuple[bytes, Place] | None:
        return self.real.fixed

    @property
    def nearest(self) -> tuple[bytes, Place]:
        return self._near or self.real.nearest

    def closers(self) -> Iterable[tuple[bytes, Place]]:
        return self.real.closers()

    def walk(self, text: bytes) -> Place | None:
        return self.real.walk(text)

    def _step(self, byte: int) -> Place | None:
        return self.real.move(byte)

"""A plain grammar as a deterministic automaton over bytes, whose places come into being when they are reached.

A place says which bytes may follow; equal places are one object, so that what is found out about a place (its mask, its
moves) is found out once. Unions are read side by side until their bytes differ.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

from m1runtime.grammar import bounds, plain
from m1runtime.grammar.lexeme import DIGITS, DONE, INTEGER, NUMBER, STRING, Lexeme, is_free

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
    """Texts in order, none twice, each with what follows it; `closing` are those on a short way to the end."""

    texts: tuple[bytes, ...]
    afters: tuple[Place, ...]
    closing: frozenset[int] | None = None


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
    def nearest(self) -> tuple[bytes, Place]:
        return min(self.closers(), key=lambda way: len(way[0]))

    def closers(self) -> list[tuple[bytes, Place]]:
        words, inside = self.words, range(self.low, self.high)
        some = [i for i in words.closing if i in inside] if words.closing else []
        few = sorted(some or inside, key=lambda i: len(words.texts[i]))[:FEW_WAYS]
        return [(words.texts[i][self.depth :], words.afters[i]) for i in few]

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


class Later(Place):
    """What `make` makes, once it is asked for."""

    def __init__(self, make: Callable[[], Place]) -> None:
        super().__init__()
        self._make = make

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
        return self.real.nearest

    def closers(self) -> Iterable[tuple[bytes, Place]]:
        return self.real.closers()

    def walk(self, text: bytes) -> Place | None:
        return self.real.walk(text)

    def _step(self, byte: int) -> Place | None:
        return self.real.move(byte)


class Places:
    """Makes the places of one grammar, each once."""

    def __init__(self, separators: tuple[str, str], *, any_order: bool = False) -> None:
        self._item = separators[0].encode()
        self._any_order = any_order
        self._known: dict[tuple[object, ...], Place] = {}
        self.end = End()

    def __len__(self) -> int:
        return len(self._known)

    # The kinds of places

    def literal(self, text: bytes, after: Place) -> Place:
        """`text`, then `after`; two literals in a row are one."""
        if not text:
            return after
        if isinstance(after, Literal):
            text, after = text + after.text, after.after
        return self._once((text, after), lambda: Literal(text, after, self))

    def lexical(self, lexeme: Lexeme, state: int, after: Place) -> Place:
        """Inside a lexeme."""
        return self._once((lexeme, state, after), lambda: Lexical(lexeme, state, after, self))

    def range(self, node: plain.Integer, text: bytes, after: Place) -> Place:
        """Inside an integer; once its bounds can say nothing more of it, inside any integer."""
        if node.high is None and text[:1] not in (b"", b"-", b"0") and int(text) >= (node.low or 0):
            return self.lexical(INTEGER, DIGITS, after)
        return self._once((node, text, after), lambda: Range(node, text, after, self))

    def words(self, ways: Iterable[tuple[bytes, Place]], closing: Iterable[bytes] | None = None) -> Place:
        """Before one of several texts, each with what follows it; `closing` are on a short way to the end."""
        texts, afters = zip(*sorted(ways, key=lambda way: way[0]), strict=True)
        near = None if closing is None else frozenset(bisect_left(texts, text) for text in closing)
        return self.word(Words(texts, afters, near), 0, len(texts), 0)

    def word(self, words: Words, low: int, high: int, depth: int) -> Place:
        """Inside one of several texts."""
        if high - low == 1:
            return self.literal(words.texts[low][depth:], words.afters[low])
        return self._once((words, low, high, depth), lambda: Word(words, low, high, depth, self))

    def fork(self, parts: Iterable[Place], closing: tuple[Place, ...] = ()) -> Place | None:
        """All of these at once; `closing` are those that may lead to the end soonest (by default all)."""
        flat = tuple(dict.fromkeys(one for part in parts for one in part.parts))
        if len(flat) < 2:
            return flat[0] if flat else None
        return self._once(("fork", flat, closing), lambda: Fork(flat, closing or flat, self))

    # Values of the schema

    def value(self, node: plain.Node, after: Place) -> Place:
        """A value of `node`, then `after`."""
        match node:
            case plain.Words():
                return self._once((node, after), lambda: self.words((word, after) for word in node.words))
            case plain.Text():
                return self.literal(QUOTE, self.lexical(STRING, 0, after))
            case plain.Number():
                return self.lexical(NUMBER, 0, after)
            case plain.Integer():
                unbounded = node.low is None and node.high is None
                return self.lexical(INTEGER, 0, after) if unbounded else self.range(node, b"", after)
            case plain.Items():
                return self.literal(b"[", self.later(("items", node, after), lambda: self._items(node, 0, after)))
            case plain.Members():
                first = self.later(("members", node, after), lambda: self._members(node, frozenset(), 0, after))
                return self.literal(b"{", first)
            case _:
                assert isinstance(node, plain.Either)
                return self.later((node, after), lambda: self._either(node, after))

    def _either(self, node: plain.Either, after: Place) -> Place:
        parts = {choice: self.value(choice, after) for choice in node.choices}
        made = self.fork(parts.values())
        assert made is not None
        return made

    def _items(self, node: plain.Items, count: int, after: Place) -> Place:
        """Before an item, or the end of the array. Beyond the bounds nobody counts."""
        last = node.low if node.high is None else node.high
        parts: list[Place] = []
        if node.high is None or count < node.high:
            following = min(count + 1, last + 1)
            more = self.later(("items", node, following, after), lambda: self._items(node, following, after))
            item = self.value(node.item, more)
            parts.append(self.literal(self._item, item) if count else item)
        close = self.literal(b"]", after)
        if count >= node.low:
            parts.append(close)
        made = self.fork(parts, (close,) if count >= node.low else ())
        assert made is not None
        return made

    def _members(self, node: plain.Members, written: frozenset[int], start: int, after: Place) -> Place:
        """Before a property, or the end of the object."""
        members, before = node.members, self._item if written else b""
        needed = [i for i, one in enumerate(members) if one.required and i not in written]
        if self._any_order:
            open_ones = [i for i in range(len(members)) if i not in written]
        else:
            open_ones = list(range(start, needed[0] + 1 if needed else len(members)))
        ways = {before + members[i].key: self._member(node, i, written, after) for i in open_ones}
        if needed:
            return self.words(ways.items(), (before + members[needed[0]].key,))
        return self.words([*ways.items(), (b"}", after)], (b"}",))

    def _member(self, node: plain.Members, i: int, written: frozenset[int], after: Place) -> Place:
        """The value of a property and what follows it."""
        now = written | {i} if self._any_order else frozenset(range(i + 1))
        rest = self.later(("members", node, now, after), lambda: self._members(node, now, i + 1, after))
        return self.value(node.members[i].value, rest)

    def later(self, key: tuple[object, ...], make: Callable[[], Place]) -> Place:
        """What `make` makes, once it is asked for; `key` says what that is."""
        return self._once(("later", *key), lambda: Later(make))

    def _once(self, key: tuple[object, ...], make: Callable[[], Place]) -> Place:
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = make()
        return found

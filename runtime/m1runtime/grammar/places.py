"""A plain grammar as a deterministic automaton over bytes, whose places come into being when they are reached.

Equal places are one object, so that what is found out about a place (its mask, its moves) is found out once. Unions are
read side by side until their bytes differ.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable

from m1runtime.grammar import plain
from m1runtime.grammar.lexeme import DIGITS, INTEGER, NUMBER, STRING, Lexeme
from m1runtime.grammar.place import QUOTE, End, Fork, Later, Lexical, Literal, Name, Place, Range, Word, Words


class Places:
    """Makes the places of one grammar, each once."""

    def __init__(self, separators: tuple[str, str], *, any_order: bool = False) -> None:
        self._item, self._key = (text.encode() for text in separators)
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

    def words(
        self,
        ways: Iterable[tuple[bytes, Place]],
        closing: Iterable[bytes] | None = None,
        quick: Iterable[bytes] | None = None,
    ) -> Place:
        """Before one of several texts, each with what follows it; `closing` and `quick` as in `Words`."""
        texts, afters = zip(*sorted(ways, key=lambda way: way[0]), strict=True)
        near, some = (
            None if given is None else frozenset(bisect_left(texts, text) for text in given)
            for given in (closing, quick)
        )
        return self.word(Words(texts, afters, near, some), 0, len(texts), 0)

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
        if not all(part.kept for part in flat):
            return Fork(flat, closing or flat, self)
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
                return self.literal(b"{", self._rest(node, frozenset(), frozenset(), 0, after))
            case plain.Anything():
                return self.later((node, after), lambda: self._either(_ANY, after))
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

    def _rest(
        self, node: plain.Members, written: frozenset[int], names: frozenset[str], start: int, after: Place
    ) -> Place:
        """What follows the properties `written` and those with made-up `names`."""
        key = ("members", node, written, names, start, after)
        return self._late(key, lambda: self._members(node, written, names, start, after), kept=not names)

    def _members(
        self, node: plain.Members, written: frozenset[int], names: frozenset[str], start: int, after: Place
    ) -> Place:
        """Before a property, or the end of the object."""
        members, before = node.members, self._item if written or names else b""
        needed = [i for i, one in enumerate(members) if one.required and i not in written]
        if self._any_order:
            open_ones = [i for i in range(len(members)) if i not in written]
        else:
            open_ones = list(range(start, needed[0] + 1 if needed else len(members)))
        ways = {before + members[i].key: self._member(node, i, written, names, after) for i in open_ones}
        if needed:
            declared = self.words(ways.items(), (before + members[needed[0]].key,))
        else:
            declared = self.words([*ways.items(), (b"}", after)], (b"}",))
        if node.extra is None or (needed and not self._any_order):
            return declared
        made = self.fork([declared, self._made_up(node, written, names, before, after)], (declared,))
        assert made is not None
        return made

    def _member(
        self, node: plain.Members, i: int, written: frozenset[int], names: frozenset[str], after: Place
    ) -> Place:
        """The value of a property and what follows it."""
        now = written | {i} if self._any_order else frozenset(range(i + 1))
        return self.value(node.members[i].value, self._rest(node, now, names, i + 1, after))

    def _made_up(
        self, node: plain.Members, written: frozenset[int], names: frozenset[str], before: bytes, after: Place
    ) -> Place:
        """A property that the schema does not name; in the schema's order these come last."""
        extra, end = node.extra, len(node.members)
        assert extra is not None

        def then(name: str) -> Place:
            rest = self._rest(node, written, names | {name}, end, after)
            return self.literal(self._key, self.value(extra, rest))

        return Literal(before + QUOTE, Name(0, b"", node.names | names, then), self)

    def later(
        self, key: tuple[object, ...], make: Callable[[], Place], near: tuple[bytes, Place] | None = None
    ) -> Place:
        """What `make` makes, once it is asked for; `key` says what that is, `near` is a short way to the end."""
        return self._once(("later", *key), lambda: Later(make, near))

    def _late(self, key: tuple[object, ...], make: Callable[[], Place], *, kept: bool) -> Place:
        return self.later(key, make) if kept else Later(make)

    def _once(self, key: tuple[object, ...], make: Callable[[], Place]) -> Place:
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = make()
        return found


_ANY = plain.Either(
    (
        plain.Number(1, plain.NUMBER),
        plain.Text(2, plain.STRING),
        plain.Words([b"true", b"false", b"null"]),
        plain.Items(plain.ANYTHING, 0, None),
        plain.Members((), plain.ANYTHING),
    )
)

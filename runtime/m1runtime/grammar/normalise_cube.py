"""Conjunctions of assertions: what a schema without alternatives says, one record for every kind of value.

A schema is a union of cubes. Two cubes meet in one cube, and each assertion can be negated into cubes, so unions are
closed under everything that JSON Schema combines. What stands in the properties and items of a cube is a `State`: a
conjunction of schemas and negated schemas that is not looked into until it is needed, so recursion ends.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias, cast

from m1runtime.grammar.keywords import Node

KINDS = frozenset({"null", "boolean", "number", "string", "array", "object"})
Where: TypeAlias = "tuple[str, str]"
"""JSON pointer of a schema, and its keyword."""


class Malformed(Exception):
    """A keyword's value is of a form that the keyword does not take."""


@dataclass(frozen=True, slots=True, eq=False)
class Atom:
    """One schema of the document, or its negation; `scope` resolves the references in it."""

    node: Node
    scope: Any
    path: str
    positive: bool
    key: tuple[object, ...]


State: TypeAlias = "tuple[Atom, ...]"
"""All of these hold: () admits everything."""
NEVER: State = (Atom({}, None, "", positive=False, key=("never",)),)


def both(one: State, other: State) -> State:
    """The states' conjunction."""
    if one is NEVER or other is NEVER:
        return NEVER
    keys = {atom.key for atom in one}
    more = tuple(atom for atom in other if atom.key not in keys)
    if not more:
        return one
    if any((*key[:-1], not key[-1]) in keys for key in (atom.key for atom in more)):
        return NEVER
    return one + more


@dataclass(frozen=True, slots=True)
class Numbers:
    """Bounds (value, whether it is excluded), divisors, and whether a number is whole (None: either)."""

    low: tuple[float, bool] | None = None
    high: tuple[float, bool] | None = None
    multiples: tuple[float, ...] = ()
    not_multiples: tuple[float, ...] = ()
    whole: bool | None = None

    def meet(self, other: Numbers) -> Numbers | None:
        """Both; None if no number can be."""
        lows = [bound for bound in (self.low, other.low) if bound is not None]
        highs = [bound for bound in (self.high, other.high) if bound is not None]
        low = max(lows, default=None)
        high = min(highs, key=lambda bound: (bound[0], not bound[1]), default=None)
        if self.whole is not None and other.whole is not None and self.whole is not other.whole:
            return None
        if low and high and (low[0] > high[0] or (low[0] == high[0] and (low[1] or high[1]))):
            return None
        whole = self.whole if self.whole is not None else other.whole
        return Numbers(
            low,
            high,
            merged(self.multiples, other.multiples),
            merged(self.not_multiples, other.not_multiples),
            whole,
        )


@dataclass(frozen=True, slots=True)
class Strings:
    """Lengths in characters, patterns that are found and patterns that are not, formats."""

    least: int = 0
    most: int | None = None
    patterns: tuple[str, ...] = ()
    avoid: tuple[str, ...] = ()
    formats: tuple[str, ...] = ()

    def meet(self, other: Strings) -> Strings | None:
        """Both; None if no string can be."""
        least, most = max(self.least, other.least), lesser(self.most, other.most)
        patterns, avoid = merged(self.patterns, other.patterns), merged(self.avoid, other.avoid)
        if (most is not None and least > most) or set(patterns) & set(avoid):
            return None
        return Strings(least, most, patterns, avoid, merged(self.formats, other.formats))


@dataclass(frozen=True, slots=True)
class Contains:
    """So many items are of a state."""

    state: State
    least: int
    most: int | None


@dataclass(frozen=True, slots=True)
class Items:
    """Lengths, the states of the first items and of the rest, counted ones, and whether all differ (None: either)."""

    least: int = 0
    most: int | None = None
    prefix: tuple[State, ...] = ()
    rest: State = ()
    contains: tuple[Contains, ...] = ()
    unique: bool | None = None

    def at(self, i: int) -> State:
        """The state of one item."""
        return self.prefix[i] if i < len(self.prefix) else self.rest

    def meet(self, other: Items) -> Items | None:
        """Both; None if no array can be."""
        least, most = max(self.least, other.least), lesser(self.most, other.most)
        count = max(len(self.prefix), len(other.prefix))
        prefix = tuple(both(self.at(i), other.at(i)) for i in range(count))
        rest = both(self.rest, other.rest)
        for i, state in enumerate((*prefix, rest)):
            if state is NEVER:
                prefix, rest, most = prefix[:i], NEVER, lesser(most, i)
                break
        unique = self.unique if self.unique is not None else other.unique
        differ = self.unique is not None and other.unique is not None and self.unique is not other.unique
        least = max([least, *(one.least for one in self.contains), *(one.least for one in other.contains)])
        if differ or (most is not None and least > most) or (unique is False and most is not None and most < 2):
            return None
        return Items(least, most, prefix, rest, self.contains + other.contains, unique)


@dataclass(frozen=True, slots=True)
class Rest:
    """The members whose names are none of these and match none of the patterns, and the state they are of."""

    names: frozenset[str]
    patterns: tuple[str, ...]
    state: State


@dataclass(frozen=True, slots=True)
class Members:
    """Counts, declared members, members by pattern, the rests, names that must be, states of names, members there are.

    `some`: at least one member of that rest exists and is of its state.
    """

    least: int = 0
    most: int | None = None
    properties: tuple[tuple[str, State], ...] = ()
    patterns: tuple[tuple[str, State], ...] = ()
    rests: tuple[Rest, ...] = ()
    required: tuple[str, ...] = ()
    names: tuple[State, ...] = ()
    some: tuple[Rest, ...] = ()
    some_names: tuple[State, ...] = ()

    def meet(self, other: Members) -> Members | None:
        """Both; None if no object can be."""
        least, most = max(self.least, other.least), lesser(self.most, other.most)
        required = merged(self.required, other.required)
        least = max(least, len(required), 1 if self.some or other.some else 0)
        properties = _joined(self.properties, other.properties)
        if most is not None and least > most:
            return None
        if any(state is NEVER and name in required for name, state in properties):
            return None
        return Members(
            least,
            most,
            properties,
            _joined(self.patterns, other.patterns),
            self.rests + other.rests,
            required,
            self.names + other.names,
            self.some + other.some,
            self.some_names + other.some_names,
        )


def _joined(one: tuple[tuple[str, State], ...], other: tuple[tuple[str, State], ...]) -> tuple[tuple[str, State], ...]:
    if not one or not other:
        return one or other
    states = dict(one)
    for name, state in other:
        states[name] = both(states[name], state) if name in states else state
    return tuple(states.items())


@dataclass(frozen=True, slots=True)
class Seen:
    """What in-place schemas have evaluated, for `unevaluatedProperties` and `unevaluatedItems`."""

    names: frozenset[str] = frozenset()
    patterns: frozenset[str] = frozenset()
    members: bool = False
    count: int = 0
    items: bool = False
    contains: tuple[State, ...] = ()

    def with_(self, other: Seen) -> Seen:
        """What either has."""
        return Seen(
            self.names | other.names,
            self.patterns | other.patterns,
            self.members or other.members,
            max(self.count, other.count),
            self.items or other.items,
            self.contains + other.contains,
        )


@dataclass(frozen=True, slots=True)
class Cube:
    """A conjunction: a value is of one of `kinds`, and what is said of its kind holds.

    `values`: one of these; `excluded`: none of these; `also`: for each entry, one of its states holds; `where`: the
    place each kind of assertion comes from; `lost`: assertions that were left out, so the cube admits more.
    """

    kinds: frozenset[str] = KINDS
    values: tuple[Any, ...] | None = None
    excluded: tuple[Any, ...] = ()
    numbers: Numbers = field(default=Numbers())
    strings: Strings = field(default=Strings())
    items: Items = field(default=Items())
    members: Members = field(default=Members())
    also: tuple[tuple[State, ...], ...] = ()
    where: tuple[tuple[str, Where], ...] = ()
    lost: tuple[tuple[Where, str], ...] = ()
    seen: Seen = field(default=Seen())

    def meet(self, other: Cube) -> Cube | None:
        """Both; None if no value can be."""
        parts: dict[str, Any] = {}
        kinds = self.kinds & other.kinds
        for kind, name in PARTS:
            mine, theirs = getattr(self, name), getattr(other, name)
            part = mine if theirs == _BLANK[name] else theirs if mine == _BLANK[name] else mine.meet(theirs)
            if part is None:
                kinds -= {kind}
            else:
                parts[name] = part
        values = self.values if other.values is None else other.values if self.values is None else None
        if self.values is not None and other.values is not None:
            keys = {canonical(value) for value in other.values}
            values = tuple(value for value in self.values if canonical(value) in keys)
        if values is not None:
            gone = {canonical(value) for value in self.excluded + other.excluded}
            values = tuple(value for value in values if kind_of(value) in kinds and canonical(value) not in gone)
            kinds &= {kind_of(value) for value in values}
        if not kinds:
            return None
        return Cube(
            kinds,
            values,
            self.excluded + other.excluded,
            also=self.also + other.also,
            where=merged(self.where, other.where),
            lost=merged(self.lost, other.lost),
            seen=self.seen.with_(other.seen),
            **parts,
        )

    def places(self, *kinds: str) -> tuple[Where, ...]:
        """Where assertions of some kinds come from; those of a negated keyword are of a kind `not keyword`."""
        return tuple(where for name, where in self.where if name in kinds) or (("", kinds[0]),)

    def blamed(self, where: Where) -> Cube:
        """The same, come from one place as a whole, and evaluating nothing that in-place schemas could build on."""
        return replace(
            self,
            where=tuple((kind, where) for kind, _ in self.where),
            lost=tuple((where, why) for _, why in self.lost),
        )


PARTS = (("number", "numbers"), ("string", "strings"), ("array", "items"), ("object", "members"))
_BLANK: dict[str, Any] = {"numbers": Numbers(), "strings": Strings(), "items": Items(), "members": Members()}


def kind_of(value: object) -> str:
    """The kind of a JSON value."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, (int, float)):
        return "number"
    return "string" if isinstance(value, str) else "array" if isinstance(value, list) else "object"


def canonical(value: Any) -> object:
    """A hashable form in which equal JSON values, and no others, are equal."""
    if isinstance(value, list):
        return ("array", tuple(canonical(item) for item in cast("list[Any]", value)))
    if isinstance(value, dict):
        return ("object", frozenset((name, canonical(item)) for name, item in cast("Node", value).items()))
    return (kind_of(value), value)


def merged(one: tuple[Any, ...], other: tuple[Any, ...]) -> tuple[Any, ...]:
    """Both, without repetitions, in order."""
    return tuple(dict.fromkeys(one + other)) if one and other else one or other


def lesser(one: int | None, other: int | None) -> int | None:
    """The smaller of two limits, None for no limit."""
    return one if other is None else other if one is None else min(one, other)

"""Which values are of a cube or a state: exact for every assertion that has not been left out."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Any, TypeAlias

from m1runtime.grammar.keywords import Node
from m1runtime.grammar.normalise_cube import (
    Contains,
    Cube,
    Items,
    Members,
    Numbers,
    Rest,
    State,
    both,
    canonical,
    kind_of,
)
from m1runtime.grammar.reach import bytes_matcher
from m1runtime.grammar.writer import json_value

Cubes: TypeAlias = "Callable[[State], list[Cube]]"


class Values:
    """Tells whether values are of states; `cubes` works out what a state is."""

    def __init__(self, cubes: Cubes) -> None:
        self._cubes = cubes

    def is_of(self, state: State, value: Any) -> bool:
        """Whether a value is of a state."""
        return not state or any(self.admits(cube, value) for cube in self._cubes(state))

    def admits(self, cube: Cube, value: Any) -> bool:
        """Whether a value is of a cube."""
        kind = kind_of(value)
        if kind not in cube.kinds or _among(value, cube.excluded):
            return False
        if cube.values is not None and not _among(value, cube.values):
            return False
        if not all(any(self.is_of(state, value) for state in states) for states in cube.also):
            return False
        if kind == "number":
            return _is_number(cube.numbers, value)
        if kind == "string":
            strings = cube.strings
            if not strings.least <= len(value) or (strings.most is not None and len(value) > strings.most):
                return False
            return all(matches(p, value) is not False for p in strings.patterns) and not any(
                matches(p, value) for p in strings.avoid
            )
        if kind == "array":
            return self._is_array(cube.items, value)
        return kind != "object" or self._is_object(cube.members, value)

    def _is_array(self, items: Items, value: list[Any]) -> bool:
        if len(value) < items.least or (items.most is not None and len(value) > items.most):
            return False
        if items.unique is not None and (len({canonical(item) for item in value}) == len(value)) is not items.unique:
            return False
        if not all(self.is_of(items.at(i), item) for i, item in enumerate(value)):
            return False
        return all(self._counted(one, value) for one in items.contains)

    def _counted(self, one: Contains, value: list[Any]) -> bool:
        count = sum(self.is_of(one.state, item) for item in value)
        return one.least <= count and (one.most is None or count <= one.most)

    def _is_object(self, members: Members, value: Node) -> bool:
        if len(value) < members.least or (members.most is not None and len(value) > members.most):
            return False
        if not all(name in value for name in members.required):
            return False
        if not all(self.is_of(state, name) for state in members.names for name in value):
            return False
        if not all(self.is_of(self.member_state(members, name), item) for name, item in value.items()):
            return False
        if not all(any(self.is_of(state, name) for name in value) for state in members.some_names):
            return False
        return all(any(_left(some, n) and self.is_of(some.state, v) for n, v in value.items()) for some in members.some)

    def member_state(self, members: Members, name: str) -> State:
        """What a member of this name is of."""
        state: State = dict(members.properties).get(name, ())
        for pattern, matching in members.patterns:
            if matches(pattern, name):
                state = both(state, matching)
        for rest in members.rests:
            if _left(rest, name):
                state = both(state, rest.state)
        return state


def _left(rest: Rest, name: str) -> bool:
    return name not in rest.names and all(matches(pattern, name) is False for pattern in rest.patterns)


def _among(value: Any, values: Sequence[Any]) -> bool:
    return bool(values) and canonical(value) in {canonical(one) for one in values}


def _is_number(numbers: Numbers, value: float) -> bool:
    low, high = numbers.low, numbers.high
    if low is not None and (value < low[0] or (low[1] and value == low[0])):
        return False
    if high is not None and (value > high[0] or (high[1] and value == high[0])):
        return False
    if numbers.whole is not None and (value == value // 1) is not numbers.whole:
        return False
    return all(_divides(divisor, value) for divisor in numbers.multiples) and not any(
        _divides(divisor, value) for divisor in numbers.not_multiples
    )


def _divides(divisor: float, value: float) -> bool:
    """In decimals, as they are written."""
    return (Fraction(repr(value)) / Fraction(repr(divisor))).denominator == 1


@lru_cache(1024)
def matches(pattern: str, text: str) -> bool | None:
    """Whether a pattern is found in a text; None where the engine cannot read it. Takes linear time."""
    try:
        matcher = bytes_matcher(json_value(json.dumps({"type": "string", "pattern": pattern})))
    except (ValueError, UnicodeEncodeError):
        return None
    if matcher.is_error():
        return None
    spelled = json.dumps(text, ensure_ascii=False)
    try:
        raw = spelled.encode()
    except UnicodeEncodeError:
        raw = json.dumps(text).encode()
    return matcher.consume_tokens(list(raw)) and matcher.is_accepting()


def domain(cubes: Sequence[Cube], most: int) -> list[Any] | None:
    """The few values of a union, if no more than `most` are and all are listed."""
    found: list[Any] = []
    for cube in cubes:
        if cube.values is not None:
            found += cube.values
        elif cube.kinds <= {"null", "boolean"}:
            found += [*([None] if "null" in cube.kinds else []), *([False, True] if "boolean" in cube.kinds else [])]
        else:
            return None
    known = {canonical(value): value for value in found}
    return list(known.values()) if len(known) <= most else None


def texts(values: Sequence[object]) -> list[str]:
    """The strings among them."""
    return [value for value in values if isinstance(value, str)]

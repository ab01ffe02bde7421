"""Cubes of single assertions that hold no schema, and of their negations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeAlias, cast

from m1runtime.grammar.keywords import FORMATS
from m1runtime.grammar.normalise_cube import KINDS, NEVER, Cube, Items, Members, Numbers, Seen, Strings, Where

Here: TypeAlias = "tuple[tuple[str, Where], ...]"
_UNKNOWN = Seen(members=True, items=True)
"""Anything may have been evaluated, so that nothing is taken for unevaluated."""


def lost(where: Where, why: str) -> Cube:
    """Everything, in place of an assertion that is left out."""
    return Cube(lost=((where, why),), seen=_UNKNOWN)


def left_out(cube: Cube, where: Where, why: str) -> Cube:
    """The cube, with one more assertion left out."""
    if (where, why) in cube.lost:
        return cube
    return replace(cube, lost=(*cube.lost, (where, why)), seen=cube.seen.with_(_UNKNOWN))


def has(name: str, where: Where, *names: str) -> Cube:
    """Objects with a member of this name, and of `names`."""
    required = tuple(dict.fromkeys((*names, name)))
    return Cube(frozenset({"object"}), members=Members(len(required), required=required), where=(("required", where),))


def lacks(name: str, where: Where) -> list[Cube]:
    """Everything but the objects with a member of this name."""
    absent = Members(properties=((name, NEVER),))
    return [Cube(KINDS - {"object"}), Cube(frozenset({"object"}), members=absent, where=(("properties", where),))]


def assertion(keyword: str, value: Any, where: Where) -> Cube | None:
    """What an assertion says; None for a keyword that holds schemas, or that asserts nothing."""
    make = _SAID.get(keyword)
    part = None if make is None else make(value)
    return None if part is None else replace(part, where=((keyword, where),))


def opposite(keyword: str, value: Any, where: Where) -> list[Cube] | None:
    """The negation of an assertion; None for a keyword that holds schemas."""
    make = _OPPOSITE.get(keyword)
    return None if make is None else [replace(cube, where=((f"not {keyword}", where),)) for cube in make(value, where)]


def _typed(value: Any) -> Cube:
    names = _named(value)
    kinds = frozenset("number" if name == "integer" else name for name in names)
    whole = True if "integer" in names and "number" not in names else None
    return Cube(kinds, numbers=Numbers(whole=whole))


def _other_types(value: Any, where: Where) -> list[Cube]:
    names = _named(value)
    kinds = KINDS - {"number" if name == "integer" else name for name in names}
    found = [Cube(kinds)] if kinds else []
    if "integer" in names and "number" not in names:
        found.append(_number(Numbers(whole=False)))
    return found


def _named(value: Any) -> set[str]:
    return set(cast("list[str]", value) if isinstance(value, list) else [value])


def _number(numbers: Numbers) -> Cube:
    return Cube(frozenset({"number"}), numbers=numbers)


def _text(strings: Strings) -> Cube:
    return Cube(frozenset({"string"}), strings=strings)


def _array(items: Items) -> Cube:
    return Cube(frozenset({"array"}), items=items)


def _object(members: Members) -> Cube:
    return Cube(frozenset({"object"}), members=members)


def _without_one(value: list[str]) -> list[Cube]:
    return [_object(Members(properties=((name, NEVER),))) for name in dict.fromkeys(value)]


def _without_dependent(value: dict[str, list[str]]) -> list[Cube]:
    pairs = [(name, other) for name, names in value.items() for other in names if other != name]
    return [_object(Members(1, properties=((other, NEVER),), required=(name,))) for name, other in pairs]


def _not_format(value: Any, where: Where) -> list[Cube]:
    return (
        [replace(lost(where, "a format cannot be excluded"), kinds=frozenset({"string"}))] if value in FORMATS else []
    )


_SAID: dict[str, Callable[[Any], Cube | None]] = {
    "type": _typed,
    "enum": lambda value: Cube(values=tuple(value)),
    "const": lambda value: Cube(values=(value,)),
    "minimum": lambda value: Cube(numbers=Numbers(low=(value, False))),
    "maximum": lambda value: Cube(numbers=Numbers(high=(value, False))),
    "exclusiveMinimum": lambda value: Cube(numbers=Numbers(low=(value, True))),
    "exclusiveMaximum": lambda value: Cube(numbers=Numbers(high=(value, True))),
    "multipleOf": lambda value: Cube(numbers=Numbers(multiples=(value,))),
    "minLength": lambda value: Cube(strings=Strings(least=value)),
    "maxLength": lambda value: Cube(strings=Strings(most=value)),
    "pattern": lambda value: Cube(strings=Strings(patterns=(value,))),
    "format": lambda value: Cube(strings=Strings(formats=(value,))) if value in FORMATS else None,
    "minItems": lambda value: Cube(items=Items(least=value)),
    "maxItems": lambda value: Cube(items=Items(most=value)),
    "uniqueItems": lambda value: Cube(items=Items(unique=True)) if value is True else None,
    "minProperties": lambda value: Cube(members=Members(least=value)),
    "maxProperties": lambda value: Cube(members=Members(most=value)),
    "required": lambda value: Cube(members=Members(len(set(value)), required=tuple(dict.fromkeys(value)))),
}
_OPPOSITE: dict[str, Callable[[Any, Where], list[Cube]]] = {
    "type": _other_types,
    "enum": lambda value, _: [Cube(excluded=tuple(value))],
    "const": lambda value, _: [Cube(excluded=(value,))],
    "minimum": lambda value, _: [_number(Numbers(high=(value, True)))],
    "maximum": lambda value, _: [_number(Numbers(low=(value, True)))],
    "exclusiveMinimum": lambda value, _: [_number(Numbers(high=(value, False)))],
    "exclusiveMaximum": lambda value, _: [_number(Numbers(low=(value, False)))],
    "multipleOf": lambda value, _: [_number(Numbers(not_multiples=(value,)))],
    "minLength": lambda value, _: [_text(Strings(most=value - 1))] if value else [],
    "maxLength": lambda value, _: [_text(Strings(least=value + 1))],
    "pattern": lambda value, _: [_text(Strings(avoid=(value,)))],
    "format": _not_format,
    "minItems": lambda value, _: [_array(Items(most=value - 1))] if value else [],
    "maxItems": lambda value, _: [_array(Items(least=value + 1))],
    "uniqueItems": lambda value, _: [_array(Items(least=2, unique=False))] if value is True else [],
    "minProperties": lambda value, _: [_object(Members(most=value - 1))] if value else [],
    "maxProperties": lambda value, _: [_object(Members(least=value + 1))],
    "required": lambda value, _: _without_one(value),
    "dependentRequired": lambda value, _: _without_dependent(value),
}

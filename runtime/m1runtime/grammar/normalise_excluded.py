"""Cubes without the values that are excluded from them, in pieces that schemas can say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

from m1runtime.grammar.normalise_cube import Cube, Items, Members, Numbers, Strings, Where, kind_of
from m1runtime.grammar.normalise_words import all_but

MAX_NUMBERS = 16
Lose = Callable[[tuple[Where, ...], str], None]


def without_excluded(cube: Cube, lose: Lose) -> list[Cube]:
    """Pieces of the cube that make up all of it but `excluded`; what cannot be excluded is told to `lose`."""
    where = cube.places("not enum", "not const")
    touched = {kind_of(value) for value in cube.excluded} & cube.kinds
    rest = cube.kinds - touched
    pieces = [replace(cube, kinds=rest, excluded=())] if rest else []
    for kind in sorted(touched):
        values = [value for value in cube.excluded if kind_of(value) == kind]
        made = _PIECES[kind](replace(cube, kinds=frozenset({kind}), excluded=()), values)
        if made is None:
            lose(where, "these values cannot be excluded")
            made = [replace(cube, kinds=frozenset({kind}), excluded=())]
        pieces += made
    return pieces


def _null(cube: Cube, values: list[Any]) -> list[Cube]:
    return []


def _boolean(cube: Cube, values: list[Any]) -> list[Cube]:
    left = tuple(value for value in (True, False) if value not in values)
    return [replace(cube, values=left)] if left else []


def _number(cube: Cube, values: list[Any]) -> list[Cube] | None:
    if len(values) > MAX_NUMBERS:
        return None
    ranked = sorted(set(values))
    parts = [Numbers(high=(ranked[0], True))]
    parts += [Numbers(low=(a, True), high=(b, True)) for a, b in pairwise(ranked)]
    parts.append(Numbers(low=(ranked[-1], True)))
    met = [cube.numbers.meet(part) for part in parts]
    return [replace(cube, numbers=numbers) for numbers in met if numbers is not None]


def _string(cube: Cube, values: list[Any]) -> list[Cube] | None:
    if values == [""]:
        part: Strings | None = Strings(least=1)
    else:
        pattern = all_but(values)
        part = None if pattern is None else Strings(patterns=(pattern,))
    if part is None:
        return None
    strings = cube.strings.meet(part)
    where = (*cube.where, ("pattern", cube.places("not enum", "not const")[0]))
    return [] if strings is None else [replace(cube, strings=strings, where=where)]


def _array(cube: Cube, values: list[Any]) -> list[Cube] | None:
    if any(values):
        return None
    items = cube.items.meet(Items(least=1))
    return [] if items is None else [replace(cube, items=items)]


def _object(cube: Cube, values: list[Any]) -> list[Cube] | None:
    if any(values):
        return None
    members = cube.members.meet(Members(least=1))
    return [] if members is None else [replace(cube, members=members)]


_PIECES: dict[str, Callable[[Cube, list[Any]], list[Cube] | None]] = {
    "null": _null,
    "boolean": _boolean,
    "number": _number,
    "string": _string,
    "array": _array,
    "object": _object,
}

"""Arrays of a cube: pieces without counted or differing items where there are few, and the keywords of what is left."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import permutations
from typing import Any

from m1runtime.grammar.keywords import Node, Schema
from m1runtime.grammar.normalise_cube import NEVER, Contains, Cube, Items, State, Where, both
from m1runtime.grammar.normalise_expand import Expander
from m1runtime.grammar.normalise_values import domain

MAX_PLACES = 8
"""Places that a counted item is looked for at."""
MAX_DOMAIN = 4
"""Values of items that must differ."""
Lose = Callable[[tuple[Where, ...], str], None]
Write = Callable[[State], Schema]


class ItemWriter:
    """Splits and writes the arrays of cubes."""

    def __init__(self, expander: Expander, lose: Lose) -> None:
        self._expander = expander
        self._lose = lose

    def split(self, cube: Cube) -> list[Items]:
        """Arrays whose union the cube's are, with nothing left to count; what cannot be said so is listed."""
        found = [self._bounded(cube.items)]
        for one in cube.items.contains:
            if not one.least and one.most is None:
                found = [replace(items, contains=()) for items in found]
                continue
            parts = [self._placed(replace(items, contains=()), one) for items in found]
            if any(part is None for part in parts):
                self._lose(cube.places("contains", "not contains"), "items cannot be counted")
                found = [replace(items, contains=()) for items in found]
            else:
                found = [items for part in parts for items in part or []]
        return [self._differing(cube, items) for items in found]

    def _bounded(self, items: Items) -> Items:
        """With the length that items of no possible value leave."""
        for i, state in enumerate((*items.prefix, items.rest)):
            if self._expander.never(state):
                most = i if items.most is None else min(items.most, i)
                return replace(items, prefix=items.prefix[:i], rest=NEVER, most=most)
        return items

    def _placed(self, items: Items, one: Contains) -> list[Items] | None:
        """Where the counted item stands; None where that cannot be told."""
        absent = self._expander.negated(one.state) if len(one.state) <= 1 else None
        if one.most is None and self._there(items, one):
            return [items]
        if absent is None or items.most is None or items.most > MAX_PLACES:
            return None
        if one.most is None and one.least == 1:
            return self._first(items, one.state, absent)
        return self._chosen(items, one, absent)

    def _there(self, items: Items, one: Contains) -> bool:
        """Whether enough items that must be there are of the state anyway."""
        absent = self._expander.negated(one.state) if len(one.state) <= 1 else None
        if absent is None:
            return False
        sure = [i for i in range(min(items.least, MAX_PLACES)) if self._expander.never(both(items.at(i), absent))]
        return len(sure) >= one.least or (not one.state and items.least >= one.least)

    def _first(self, items: Items, state: State, absent: State) -> list[Items]:
        found: list[Items] = []
        for i in range(items.most or 0):
            part = items.meet(Items(least=i + 1, prefix=(absent,) * i + (state,)))
            found += [] if part is None else [part]
        return found

    def _chosen(self, items: Items, one: Contains, absent: State) -> list[Items] | None:
        places = items.most or 0
        if places > 5:
            return None
        found: list[Items] = []
        for length in range(items.least, places + 1):
            for chosen in range(1 << length):
                count = chosen.bit_count()
                if count < one.least or (one.most is not None and count > one.most):
                    continue
                prefix = tuple(one.state if chosen >> i & 1 else absent for i in range(length))
                part = items.meet(Items(least=length, most=length, prefix=prefix))
                found += [] if part is None else [part]
        return found

    def _differing(self, cube: Cube, items: Items) -> Items:
        if items.unique is None:
            return items
        free = replace(items, unique=None)
        if items.unique and self._differ_anyway(items):
            return free
        self._lose(cube.places("uniqueItems", "not uniqueItems"), "items cannot be compared")
        return free

    def _differ_anyway(self, items: Items) -> bool:
        if items.most is None or items.most > MAX_PLACES:
            return items.most is not None and items.most < 2
        pairs = [(i, j) for i in range(items.most) for j in range(i)]
        return all(self._expander.never(both(items.at(i), items.at(j))) for i, j in pairs)

    def listed(self, cube: Cube) -> tuple[Any, ...] | None:
        """All arrays of few values that must differ, if they are that few."""
        items = cube.items
        if not items.unique or items.prefix or items.contains:
            return None
        values = domain(self._expander.cubes(items.rest), MAX_DOMAIN) if items.rest else None
        if values is None:
            return None
        most = len(values) if items.most is None else min(items.most, len(values))
        return tuple([list(p) for n in range(items.least, most + 1) for p in permutations(values, n)])

    def write(self, cube: Cube, node: Node, write: Write) -> None:
        """The keywords of arrays into `node`."""
        items = cube.items
        if items.least:
            node["minItems"] = items.least
        if items.most is not None and not (items.rest is NEVER and items.most >= len(items.prefix)):
            node["maxItems"] = items.most
        if items.prefix:
            node["prefixItems"] = [write(state) for state in items.prefix]
        if items.rest:
            node["items"] = write(items.rest)

"""Lark rules of one object whose properties come in any order.

llguidance's parametric rules carry 64 bits. One bit a declared property says that it is written; where names may be
made up and their number matters, the bits above count the commas. `more` stands before a property and `rest` after one;
the brace closes the object in `rest` itself, so that the parser ends all of these rules once and not after every
property. A rule of nothing but another rule loses its bits in llguidance, so none is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from m1runtime.grammar.shape import MARK
from m1runtime.grammar.writer import literal

BITS = 64
MAX_PROPERTIES = 60
MAX_DECLARED = 200
"""Beyond it, a search for an end among names that have no bit costs more than a pass of a model."""


@dataclass(frozen=True, slots=True)
class Property:
    """What Lark writes for the key (a literal or a terminal) and for the value."""

    key: str
    value: str


@dataclass(frozen=True, slots=True)
class AnyOrder:
    """An object: its required and optional properties, the others, and how many there may be at least and at most.

    `others` have no bit, so the constraint must keep them from coming twice: those of made-up names, and declared ones
    beyond MAX_PROPERTIES.
    """

    required: Sequence[Property]
    optional: Sequence[Property]
    others: Sequence[Property]
    least: int = 0
    most: int | None = None

    @property
    def declared(self) -> int:
        """Properties that have a bit."""
        return len(self.required) + len(self.optional)

    @property
    def writable(self) -> bool:
        """The bits suffice, for the count too."""
        return self.declared <= MAX_PROPERTIES and self.declared + self._width <= BITS

    @property
    def possible(self) -> bool:
        """There is such an object."""
        most = self.most if self.others else min(self.declared, self.declared if self.most is None else self.most)
        return most is None or most >= max(self.least, len(self.required))

    @property
    def _counts(self) -> bool:
        return bool(self.others) and (self.most is not None or self.least > max(1, len(self.required)))

    @property
    def _width(self) -> int:
        return max(self.least, self.most or 0).bit_length() + 1 if self._counts else 0

    def lines(self, name: str, separators: tuple[str, str]) -> tuple[list[str], list[str]]:
        """The rules that begin with rule `name`, and the same for the text that completions are searched in.

        There `more` also takes a mark, after which required properties follow in their order.
        """
        between, after_key = map(literal, separators)
        empty = ['"{" "}"'] if not self.required and not self.least else []
        if self.most == 0 or not (self.declared or self.others):
            return [_rule(name, empty)], [_rule(name, empty)]
        start = [*empty, f'"{{" {name}_more::0']

        def option(one: Property, then: str, condition: str | None) -> str:
            return f"{one.key} {after_key} {one.value} {name}_rest::{then}" + _if(condition)

        more = [option(one, f"set_bit({i})", f"bit_clear({i})") for i, one in enumerate(self.required)]
        spare = self._spare()
        first = len(self.required)
        for i, one in enumerate(self.optional, first):
            more.append(option(one, f"set_bit({i})", _and(f"bit_clear({i})", spare)))
        more += [option(one, "_", spare) for one in self.others]
        need = [
            option(one, f"set_bit({i})", _and(f"bit_clear({i})", f"is_ones([0:{i}])" if i else None))
            for i, one in enumerate(self.required)
        ]
        all_there = f"is_ones([0:{first}])" if first else None
        for i, one in enumerate(self.optional, first):
            need.append(option(one, f"set_bit({i})", _and(f"bit_clear({i})", all_there, spare)))
        need += [option(one, "_", _and(all_there, spare)) for one in self.others]
        comma = f"{between} {name}_more::" + (f"incr({self._commas})" if self._counts else "_")
        rest = ['"}"' + _if(_and(all_there, self._enough())), comma + _if(self._another())]
        if not self.others and self.declared == 1:
            rest = ['"}" %if bit_set(0)']
        shared = [_rule(name, start), _rule(f"{name}_rest::_", rest)]
        marked = [*more, f"{literal(chr(MARK))} {name}_need::_"]
        return (
            [*shared, _rule(f"{name}_more::_", more)],
            [*shared, _rule(f"{name}_more::_", marked), _rule(f"{name}_need::_", need)],
        )

    @property
    def _commas(self) -> str:
        return f"[{self.declared}:{self.declared + self._width}]"

    def _enough(self) -> str | None:
        """In `rest`: at least `least` are written."""
        if self.least <= max(1, len(self.required)):
            return None
        return f"ge({self._commas}, {self.least - 1})" if self._counts else self._bits("ge", self.least)

    def _another(self) -> str | None:
        """In `rest`: one more may follow."""
        if self.others:
            return None if self.most is None else f"lt({self._commas}, {self.most - 1})"
        left = f"not(is_ones([0:{self.declared}]))"
        return left if self._most_of_declared is None else _and(left, self._bits("lt", self._most_of_declared))

    def _spare(self) -> str | None:
        """In `more`: one that is not required leaves room for those that are."""
        most = self.most if self.others else self._most_of_declared
        if most is None:
            return None
        needed = len(self.required)
        if not needed:
            return self._fewer_than(most)
        cases = [
            _and(f"bit_count_eq([0:{needed}], {there})", self._fewer_than(most - needed + there))
            for there in range(needed + 1)
        ]
        return _any([case for case in cases if case is not None])

    def _fewer_than(self, count: int) -> str:
        """In `more`: fewer than `count` are written."""
        return f"lt({self._commas}, {count})" if self._counts else self._bits("lt", count)

    @property
    def _most_of_declared(self) -> int | None:
        return None if self.most is None or self.most >= self.declared else self.most

    def _bits(self, comparison: str, count: int) -> str:
        return f"bit_count_{comparison}([0:{self.declared}], {count})"


def _rule(head: str, options: Sequence[str]) -> str:
    return f"{head}: " + " | ".join(options)


def _if(condition: str | None) -> str:
    return f" %if {condition}" if condition else ""


def _and(*conditions: str | None) -> str | None:
    known = [condition for condition in conditions if condition]
    return None if not known else known[0] if len(known) == 1 else f"and({known[0]}, {_and(*known[1:])})"


def _any(conditions: Sequence[str]) -> str:
    return conditions[0] if len(conditions) == 1 else f"or({conditions[0]}, {_any(conditions[1:])})"

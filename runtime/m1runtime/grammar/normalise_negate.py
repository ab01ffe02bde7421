"""Negated schemas as unions of cubes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from m1runtime.grammar.keywords import Node
from m1runtime.grammar.normalise_assert import has, lost, opposite
from m1runtime.grammar.normalise_cube import NEVER, Atom, Contains, Cube, Items, Members, Rest, State, both

if TYPE_CHECKING:
    from m1runtime.grammar.normalise_expand import Expander

NOWHERE = "the reference leads to nothing within the schema"
TOO_LONG = "the schema takes too long to compile"


class Negator:
    """The cubes in which a schema fails: those in which any of its keywords does."""

    def __init__(self, of: Expander) -> None:
        self._of = of
        self._more: dict[str, Callable[[Atom, str, Any], list[Cube]]] = {
            "$ref": self._reference,
            "$dynamicRef": self._reference,
            "$recursiveRef": self._reference,
            "allOf": self._all_of,
            "anyOf": self._any_of,
            "oneOf": self._one_of,
            "not": self._not,
            "if": self._if,
            "dependentSchemas": self._dependent_schemas,
        }

    def negative(self, atom: Atom) -> list[Cube]:
        """The cubes of a negated node."""
        said, unread = self._of.view(atom)
        found: list[list[Cube]] = []
        for keyword, value in said.items():
            if self._of.spent:
                return [lost((atom.path, keyword), TOO_LONG)]
            found.append(self._fails(atom, keyword, value, said))
        found += [[lost((atom.path, keyword), why)] for keyword, why in unread.items()]
        return self._of.union(found, (atom.path, "*"))

    def _fails(self, atom: Atom, keyword: str, value: Any, said: Node) -> list[Cube]:
        """The cubes in which one keyword of a node fails."""
        simple = opposite(keyword, value, (atom.path, keyword))
        if simple is not None:
            return simple
        fails = self._more.get(keyword)
        if fails is not None:
            return fails(atom, keyword, value)
        if keyword in ("items", "prefixItems", "contains"):
            return self._opposite_items(atom, keyword, value, said)
        if keyword in ("unevaluatedItems", "unevaluatedProperties"):
            return self._opposite_unevaluated(atom, keyword, value)
        return self._opposite_members(atom, keyword, value, said)

    def _nots(self, atom: Atom, keyword: str, value: list[Any]) -> list[State]:
        return [self._of.negated(state) for state in self._of.children(atom, keyword, value)]

    def _reference(self, atom: Atom, keyword: str, value: Any) -> list[Cube]:
        target = self._of.target(atom, keyword, value)
        return [lost((atom.path, keyword), NOWHERE)] if target is None else self._of.cubes(self._of.negated(target))

    def _all_of(self, atom: Atom, keyword: str, value: Any) -> list[Cube]:
        nots = self._nots(atom, keyword, value)
        return self._of.union([self._of.cubes(state) for state in nots], (atom.path, keyword))

    def _any_of(self, atom: Atom, keyword: str, value: Any) -> list[Cube]:
        found = [Cube()]
        for state in self._nots(atom, keyword, value):
            found = self._of.product(found, self._of.cubes(state), (atom.path, keyword))
        return found

    def _one_of(self, atom: Atom, keyword: str, value: Any) -> list[Cube]:
        states = self._of.children(atom, keyword, value)
        pairs = [both(one, other) for i, one in enumerate(states) for other in states[:i]]
        met = [self._of.cubes(pair) for pair in pairs if not self._of.never(pair)]
        return self._of.union([self._any_of(atom, keyword, value), *met], (atom.path, keyword))

    def _not(self, atom: Atom, keyword: str, value: Any) -> list[Cube]:
        return self._of.cubes(self._of.child(atom, keyword, value))

    def _if(self, atom: Atom, keyword: str, value: Any) -> list[Cube]:
        of, where = self._of, (atom.path, keyword)
        parts = {key: of.child(atom, key, node) for key, node in value.items()}
        yes, no = of.cubes(parts["if"]), of.cubes(of.negated(parts["if"]))
        then, other = (of.cubes(of.negated(parts.get(key, ()))) for key in ("then", "else"))
        return of.union([of.product(yes, then, where), of.product(no, other, where)], where)

    def _dependent_schemas(self, atom: Atom, keyword: str, value: Any) -> list[Cube]:
        of, where = self._of, (atom.path, keyword)
        fails = {name: of.negated(of.child(atom, keyword, node, name)) for name, node in value.items()}
        there = [of.product([has(name, where)], of.cubes(state), where) for name, state in fails.items()]
        return of.union(there, where)

    def _opposite_unevaluated(self, atom: Atom, keyword: str, schema: object) -> list[Cube]:
        where = (atom.path, keyword)
        state = self._of.negated(self._of.child(atom, keyword, schema))
        found: list[Cube] = []
        for cube in self._of.positive(atom, track=True, later=False):
            seen = cube.seen
            part = replace(lost(where, "items left unevaluated are not looked for"), kinds=frozenset({"array"}))
            if keyword == "unevaluatedProperties":
                some = Rest(seen.names, tuple(sorted(seen.patterns)), state)
                members = Members(1, some=(some,))
                part = Cube(frozenset({"object"}), members=members, where=(("additionalProperties", where),))
            all_seen = seen.members if keyword == "unevaluatedProperties" else seen.items
            met = None if all_seen and not cube.lost else cube.meet(part)
            found += [] if met is None else [met]
        return found

    def _opposite_items(self, atom: Atom, keyword: str, value: Any, said: Node) -> list[Cube]:
        where = ((keyword, (atom.path, keyword)),)
        kinds = frozenset({"array"})
        if keyword == "prefixItems":
            states = [self._of.negated(state) for state in self._of.children(atom, keyword, value)]
            parts = [Items(least=i + 1).meet(Items(prefix=((),) * i + (state,))) for i, state in enumerate(states)]
            return [Cube(kinds, items=part, where=where) for part in parts if part is not None]
        if keyword == "items":
            state = self._of.negated(self._of.child(atom, keyword, value))
            skipped = len(said.get("prefixItems", ()))
            if state is NEVER:
                return []
            if state == ():
                return [Cube(kinds, items=Items(least=skipped + 1), where=where)]
            where = (*where, ("contains", (atom.path, keyword)))
            if skipped:
                return [
                    replace(lost((atom.path, keyword), "items after the first ones are not looked at"), kinds=kinds)
                ]
            return [Cube(kinds, items=Items(least=1, contains=(Contains(state, 1, None),)), where=where)]
        least, most = value.get("minContains"), value.get("maxContains")
        state = self._of.child(atom, keyword, value["contains"])
        least = 1 if least is None else least
        found: list[Cube] = []
        if least == 1:
            found.append(Cube(kinds, items=Items().meet(Items(rest=self._of.negated(state))) or Items(), where=where))
        elif least > 1:
            found.append(Cube(kinds, items=Items(contains=(Contains(state, 0, least - 1),)), where=where))
        if most is not None:
            many = Items(least=most + 1, contains=(Contains(state, most + 1, None),))
            found.append(Cube(kinds, items=many, where=where))
        return found

    def _opposite_members(self, atom: Atom, keyword: str, value: Any, said: Node) -> list[Cube]:
        where = (atom.path, keyword)
        here = ((keyword, where),)
        kinds = frozenset({"object"})
        if keyword == "properties":
            states = {name: self._of.negated(self._of.child(atom, keyword, node, name)) for name, node in value.items()}
            return [
                Cube(kinds, members=Members(1, properties=((name, state),), required=(name,)), where=here)
                for name, state in states.items()
                if state is not NEVER
            ]
        if keyword == "propertyNames":
            state = self._of.negated(self._of.child(atom, keyword, value))
            members = Members(1, some_names=(state,))
            return [] if state is NEVER else [Cube(kinds, members=members, where=here)]
        if keyword == "additionalProperties":
            state = self._of.negated(self._of.child(atom, keyword, value))
            names, patterns = frozenset(said.get("properties", {})), tuple(said.get("patternProperties", {}))
            some = Rest(names, patterns, state)
            return [] if state is NEVER else [Cube(kinds, members=Members(1, some=(some,)), where=here)]
        if keyword == "patternProperties":
            return [
                replace(lost(where, "members whose names match a pattern are not looked for"), kinds=kinds)
                for pattern, node in value.items()
                if self._of.negated(self._of.child(atom, keyword, node, pattern)) is not NEVER
            ]
        return [lost(where, "its negation cannot be written")]

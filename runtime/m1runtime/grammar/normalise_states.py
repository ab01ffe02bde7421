"""Schemas of a document as states, and the cube of what one says without combining schemas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

from m1runtime.grammar.keywords import Node, pointer
from m1runtime.grammar.normalise_assert import assertion
from m1runtime.grammar.normalise_cube import NEVER, Atom, Contains, Cube, Items, Members, Rest, Seen, State
from m1runtime.grammar.normalise_dialect import Scope, modern

_MEMBERS = ("properties", "patternProperties", "additionalProperties")


class States:
    """Makes states of schemas; `paths`: the JSON pointer of every node of the document by its id."""

    def __init__(self, paths: dict[int, str]) -> None:
        self._paths = paths
        self._views: dict[tuple[int, int], tuple[Node, dict[str, str]]] = {}
        self._kept: list[Node] = []

    def state(self, schema: object, scope: Scope, path: str, *, entered: bool = False) -> State:
        """A schema as a state; `entered`: its scope is that of what stands in it already."""
        if isinstance(schema, bool):
            return () if schema else NEVER
        node = cast("Node", schema)
        inner = scope if entered else scope.inside(node)
        return (Atom(node, inner, self._paths.get(id(node), path), positive=True, key=(id(node), inner.key, True)),)

    def made(self, node: Node, path: str, scope: Scope) -> State:
        """The state of a schema made here."""
        self._kept.append(node)
        return (Atom(node, scope, path, positive=True, key=(id(node), scope.key, True)),)

    def negated(self, state: State) -> State:
        """The negation of a state of one schema at most."""
        if state is NEVER:
            return ()
        if not state:
            return NEVER
        (atom,) = state
        return (replace(atom, positive=not atom.positive, key=(*atom.key[:-1], not atom.positive)),)

    def view(self, atom: Atom) -> tuple[Node, dict[str, str]]:
        """What an atom's node says, and what cannot be read."""
        key = (id(atom.node), atom.scope.draft)
        if key not in self._views:
            self._views[key] = modern(atom.node, atom.scope.draft)
        return self._views[key]

    def child(self, atom: Atom, keyword: str, schema: object, name: str | int | None = None) -> State:
        """The state of a schema under a keyword of a node."""
        steps = [keyword] if name is None else [keyword, str(name)]
        return self.state(schema, atom.scope, "/".join((atom.path, *map(pointer, steps))))

    def children(self, atom: Atom, keyword: str, schemas: Sequence[object]) -> list[State]:
        """The states of a list of schemas under a keyword of a node."""
        return [self.child(atom, keyword, schema, i) for i, schema in enumerate(schemas)]

    def target(self, atom: Atom, keyword: str, reference: str) -> State | None:
        """Where a reference leads; None if it leads nowhere within the document."""
        found = atom.scope.follow(keyword, reference)
        if found is None or not isinstance(found[0], (dict, bool)):
            return None
        return self.state(found[0], found[1], atom.path, entered=True)

    def plain(self, atom: Atom, said: Node) -> Cube | None:
        """All that a node asserts without combining schemas; None where nothing can be so."""
        cube: Cube | None = Cube()
        for keyword in said:
            if keyword in _MEMBERS:
                continue
            part = self._assertion(atom, keyword, said[keyword], said)
            cube = cube if part is None else cube.meet(part)
            if cube is None:
                return None
        members = self._members(atom, said)
        return cube if members is None else cube.meet(members)

    def _assertion(self, atom: Atom, keyword: str, value: Any, said: Node) -> Cube | None:
        where = ((keyword, (atom.path, keyword)),)
        if keyword == "propertyNames":
            return Cube(members=Members(names=(self.child(atom, keyword, value),)), where=where)
        items = self._items(atom, keyword, value, said)
        if items is None:
            return assertion(keyword, value, (atom.path, keyword))
        seen = Seen(count=len(items.prefix), items=keyword == "items")
        if keyword == "contains":
            seen = Seen(contains=tuple(one.state for one in items.contains))
        return Cube(items=items, where=where, seen=seen)

    def _members(self, atom: Atom, said: Node) -> Cube | None:
        declared, patterns = said.get("properties", {}), said.get("patternProperties", {})
        if not declared and not patterns and "additionalProperties" not in said:
            return None
        properties = tuple((name, self.child(atom, "properties", node, name)) for name, node in declared.items())
        matching = tuple((p, self.child(atom, "patternProperties", node, p)) for p, node in patterns.items())
        seen = Seen(frozenset(declared), frozenset(patterns))
        rests: tuple[Rest, ...] = ()
        if "additionalProperties" in said:
            state = self.child(atom, "additionalProperties", said["additionalProperties"])
            rests = (Rest(frozenset(declared), tuple(patterns), state),) if state else ()
            seen = replace(seen, members=True)
        keywords = [k for k in _MEMBERS if k in said]
        return Cube(
            members=Members(properties=properties, patterns=matching, rests=rests),
            where=tuple((k, (atom.path, k)) for k in keywords),
            seen=seen,
        )

    def _items(self, atom: Atom, keyword: str, value: Any, said: Node) -> Items | None:
        if keyword == "prefixItems":
            return Items().meet(Items(prefix=tuple(self.children(atom, keyword, value))))
        if keyword == "items":
            rest = self.child(atom, keyword, value)
            return Items().meet(Items(prefix=((),) * len(said.get("prefixItems", ())), rest=rest))
        if keyword == "contains":
            least, most = value.get("minContains"), value.get("maxContains")
            least = 1 if least is None else least
            state = self.child(atom, keyword, value["contains"])
            return Items(least=least, contains=(Contains(state, least, most),))
        return None

"""Schemas as unions of cubes, and negated ones too.

What cannot be said is left out, which admits more, and is noted in the cube. The pieces are only ever joined by *and*
and *or*, so what comes out admits every valid instance, whatever was left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TypeAlias

from m1runtime.grammar.effort import Effort
from m1runtime.grammar.keywords import Node
from m1runtime.grammar.normalise_assert import has, lacks, left_out, lost
from m1runtime.grammar.normalise_cube import NEVER, Atom, Cube, Items, Members, Rest, Seen, State, Where, both
from m1runtime.grammar.normalise_dialect import Scope
from m1runtime.grammar.normalise_negate import NOWHERE, TOO_LONG, Negator
from m1runtime.grammar.normalise_states import States
from m1runtime.grammar.normalise_values import Values

MAX_CUBES = 64
"""Alternatives of one schema; what would make more of them is left to validation."""
MAX_MEETINGS = 1024
MAX_BRANCHES = 48
"""Branches of a oneOf that are compared with each other."""
MAX_SPLIT = 4
"""Branches of an anyOf told apart for what they evaluate."""

TOP = Cube()
Handler: TypeAlias = "Callable[[Atom, Node, bool], list[Cube]]"


class Expander(States):
    """The cubes of states, each worked out once."""

    def __init__(self, paths: dict[int, str], effort: Effort) -> None:
        """`paths`: the JSON pointer of every node of the document by its id."""
        super().__init__(paths)
        self._effort = effort
        self._known: dict[tuple[object, ...], list[Cube]] = {}
        self._open: set[tuple[object, ...]] = set()
        self._ends: dict[frozenset[tuple[object, ...]], bool] = {}
        self._negator = Negator(self)
        self.values = Values(self.cubes)
        self._more: dict[str, Handler] = {
            "$ref": self._reference("$ref"),
            "$dynamicRef": self._reference("$dynamicRef"),
            "$recursiveRef": self._reference("$recursiveRef"),
            "allOf": self._all_of,
            "anyOf": self._any_of,
            "oneOf": self._one_of,
            "not": self._not,
            "if": self._if,
            "dependentSchemas": self._dependent_schemas,
            "dependentRequired": self._dependent_required,
        }

    # States

    def never(self, state: State, depth: int = 4) -> bool:
        """Whether it is certain that nothing is of this state."""
        if state is NEVER or not state or depth == 0 or self.spent:
            return state is NEVER
        key = frozenset(atom.key for atom in state)
        if key not in self._ends:
            self._ends[key] = False
            self._ends[key] = all(self._dead(cube, depth - 1) for cube in self.cubes(state))
        return self._ends[key]

    @property
    def spent(self) -> bool:
        """Whether the time for this schema is over."""
        return self._effort.over

    def cubes(self, state: State, *, track: bool = False) -> list[Cube]:
        """The union that a state is; `track`: with what is evaluated told apart."""
        if state is NEVER:
            return []
        found = [TOP]
        for atom in state:
            found = self.product(found, self._expand(atom, track), (atom.path, "*"))
        if len(found) == 1 and not self._open:
            return found
        return [cube for cube in found if not self._dead(cube, 2)]

    def _expand(self, atom: Atom, track: bool) -> list[Cube]:
        key = (*atom.key, track)
        if key in self._known:
            return self._known[key]
        if self.spent and not atom.positive:
            return [lost((atom.path, "*"), TOO_LONG)]
        if key in self._open:
            return [lost((atom.path, "$ref"), "the reference leads back to itself")]
        self._open.add(key)
        try:
            made = self.positive(atom, track) if atom.positive else self._negator.negative(atom)
        finally:
            self._open.discard(key)
        self._known[key] = made
        return made

    # Schemas

    def positive(self, atom: Atom, track: bool, *, later: bool = True) -> list[Cube]:
        """The cubes of a node; `later`: with what is asked of the unevaluated."""
        said, unread = self.view(atom)
        seen_later = [key for key in ("unevaluatedItems", "unevaluatedProperties") if key in said]
        track = track or bool(seen_later)
        cube = self.plain(atom, said)
        if cube is None:
            return []
        if unread:
            cube = replace(cube, lost=tuple(((atom.path, key), why) for key, why in unread.items()))
        found = [cube]
        for keyword in said:
            handler = self._more.get(keyword)
            if handler is None or not found:
                continue
            where = (atom.path, keyword)
            if self._effort.over:
                found = [left_out(one, where, TOO_LONG) for one in found]
                continue
            options = handler(atom, said, track)
            found = self._joined(found, options, atom, said, keyword, track)
        for keyword in seen_later if later else ():
            found = [self._unevaluated(one, keyword, said[keyword], atom) for one in found]
        return found

    def _joined(
        self, found: list[Cube], options: list[Cube], atom: Atom, said: Node, keyword: str, track: bool
    ) -> list[Cube]:
        if keyword in ("anyOf", "oneOf") and not track and len(found) * len(options) > MAX_CUBES:
            states = tuple(self.children(atom, keyword, said[keyword]))
            if keyword == "oneOf" and not self.disjoint(atom):
                found = [left_out(one, (atom.path, keyword), "too many alternatives") for one in found]
            return [replace(one, also=(*one.also, states)) for one in found]
        return self.product(found, options, (atom.path, keyword))

    def product(self, one: list[Cube], other: list[Cube], where: Where) -> list[Cube]:
        """Every meeting of two unions; where there are too many, `one` alone, and `where` is left out."""
        if other == [TOP]:
            return one
        if one == [TOP]:
            return other
        if len(one) * len(other) > MAX_MEETINGS:
            return [left_out(cube, where, "too many alternatives") for cube in one]
        met = [cube for a in one for b in other if (cube := a.meet(b)) is not None]
        met = list(dict.fromkeys(met)) if _hashable(met) else met
        if len(met) > MAX_CUBES:
            met = [cube for cube in met if not self._dead(cube, 2)]
        return met if len(met) <= MAX_CUBES else [left_out(cube, where, "too many alternatives") for cube in one]

    # Combinations

    def _reference(self, keyword: str) -> Handler:
        def follow(atom: Atom, said: Node, track: bool) -> list[Cube]:
            target = self.target(atom, keyword, said[keyword])
            if target is None:
                return [lost((atom.path, keyword), NOWHERE)]
            return self.cubes(target, track=track)

        return follow

    def _all_of(self, atom: Atom, said: Node, track: bool) -> list[Cube]:
        found = [TOP]
        for i, state in enumerate(self.children(atom, "allOf", said["allOf"])):
            found = self.product(found, self.cubes(state, track=track), (f"{atom.path}/allOf/{i}", "*"))
        return found

    def _any_of(self, atom: Atom, said: Node, track: bool) -> list[Cube]:
        states = self.children(atom, "anyOf", said["anyOf"])
        unions = [self.cubes(state, track=track) for state in states]
        telling = [i for i, union in enumerate(unions) if any(cube.seen != Seen() for cube in union)] if track else []
        where = (atom.path, "anyOf")
        if not telling or len(states) == 1:
            return self.union(unions, where)
        if len(telling) > MAX_SPLIT:
            return [left_out(cube, where, "too many alternatives") for cube in self.union(unions, where)]
        found: list[Cube] = []
        rest = [unions[i] for i in range(len(unions)) if i not in telling]
        for chosen in range(1 << len(telling)):
            options = [TOP]
            for bit, i in enumerate(telling):
                holds = chosen >> bit & 1
                options = self.product(options, unions[i] if holds else self._against(states[i], where), where)
            if not chosen:
                options = self.product(options, self.union(rest, where), where) if rest else []
            found += options
        return self.union([found], where)

    def _one_of(self, atom: Atom, said: Node, track: bool) -> list[Cube]:
        states = self.children(atom, "oneOf", said["oneOf"])
        unions = [self.cubes(state, track=track) for state in states]
        where = (atom.path, "oneOf")
        if len(states) > MAX_BRANCHES:
            return [left_out(cube, where, "too many alternatives") for cube in self.union(unions, where)]
        found: list[list[Cube]] = []
        beside = self._beside(atom)
        for i, union in enumerate(unions):
            for j, other in enumerate(states):
                if i == j or not union or self.never(both(both(beside, states[i]), other)):
                    continue
                union = self.product(union, self._against(other, where), where)
            found.append(union)
        return self.union(found, where)

    def disjoint(self, atom: Atom) -> bool:
        """Whether no two branches of the `oneOf` of a node hold at once."""
        states = self.children(atom, "oneOf", self.view(atom)[0]["oneOf"])
        if len(states) > MAX_BRANCHES or self._effort.over:
            return False
        beside = self._beside(atom)
        pairs = (both(both(beside, one), other) for i, one in enumerate(states) for other in states[:i])
        return all(self.never(pair) for pair in pairs)

    def _beside(self, atom: Atom) -> State:
        """What a node asserts beside its alternatives."""
        said = {k: v for k, v in self.view(atom)[0].items() if k not in self._more and not k.startswith("uneval")}
        return self.made(said, atom.path, atom.scope) if said else ()

    def _against(self, state: State, where: Where) -> list[Cube]:
        """The negation of a schema, blamed on the keyword that negates it."""
        return [replace(cube.blamed(where), seen=Seen()) for cube in self.cubes(self.negated(state))]

    def _not(self, atom: Atom, said: Node, track: bool) -> list[Cube]:
        return self._against(self.child(atom, "not", said["not"]), (atom.path, "not"))

    def _if(self, atom: Atom, said: Node, track: bool) -> list[Cube]:
        parts = {key: self.child(atom, key, node) for key, node in said["if"].items()}
        if not track and not (parts.get("then") or parts.get("else")):
            return [TOP]
        where = (atom.path, "if")
        yes, no = self.cubes(parts["if"], track=track), self._against(parts["if"], where)
        then = self.cubes(parts.get("then", ()), track=track)
        otherwise = self.cubes(parts.get("else", ()), track=track)
        return self.union([self.product(yes, then, where), self.product(no, otherwise, where)], where)

    def _dependent_schemas(self, atom: Atom, said: Node, track: bool) -> list[Cube]:
        where = (atom.path, "dependentSchemas")
        found = [TOP]
        for name, schema in said["dependentSchemas"].items():
            state = self.child(atom, "dependentSchemas", schema, name)
            if state or track:
                there = self.product([has(name, where)], self.cubes(state, track=track), where)
                found = self.product(found, [*lacks(name, where), *there], where)
        return found

    def _dependent_required(self, atom: Atom, said: Node, track: bool) -> list[Cube]:
        where = (atom.path, "dependentRequired")
        found = [TOP]
        for name, names in said["dependentRequired"].items():
            if names:
                found = self.product(found, [*lacks(name, where), has(name, where, *names)], where)
        return found

    def _unevaluated(self, cube: Cube, keyword: str, schema: object, atom: Atom) -> Cube:
        seen, where = cube.seen, (atom.path, keyword)
        if cube.also:
            return left_out(cube, where, "too many alternatives")
        state = self.child(atom, keyword, schema)
        if keyword == "unevaluatedProperties":
            if not seen.members and state:
                rest = Rest(seen.names, tuple(sorted(seen.patterns)), state)
                part = Cube(members=Members(rests=(rest,)), where=((keyword, where), ("additionalProperties", where)))
                cube = cube.meet(part) or replace(cube, kinds=frozenset[str]())
            return replace(cube, seen=replace(seen, members=True))
        if not seen.items and state:
            for contained in seen.contains:
                state = self._either(contained, state, where, atom.scope)
            items = Items().meet(Items(prefix=((),) * seen.count, rest=state)) or Items()
            part = Cube(items=items, where=(("items", where),))
            cube = cube.meet(part) or replace(cube, kinds=frozenset[str]())
        return replace(cube, seen=replace(seen, items=True))

    def _either(self, one: State, other: State, where: Where, scope: Scope) -> State:
        if not one or not other:
            return ()
        if one is NEVER or other is NEVER:
            return other if one is NEVER else one
        node: Node = {"anyOf": [atom.node for atom in (*one, *other)]}
        return self.made(node, f"{where[0]}/{where[1]}", scope)

    def union(self, unions: Iterable[list[Cube]], where: Where) -> list[Cube]:
        """All cubes of some unions, without copies."""
        found = [cube for union in unions for cube in union]
        found = list(dict.fromkeys(found)) if _hashable(found) else found
        for cube in found:
            if replace(cube, lost=(), where=(), seen=Seen()) == TOP and cube.seen == Seen():
                return [cube]
        return found if len(found) <= MAX_MEETINGS else [lost(where, "too many alternatives")]

    # Cubes nothing is of

    def _dead(self, cube: Cube, depth: int) -> bool:
        if cube.values is not None:
            return not any(self.values.admits(cube, value) for value in cube.values)
        if cube.excluded and cube.kinds <= {"null", "boolean"}:
            return not any(self.values.admits(cube, value) for value in (None, True, False))
        return all(self._dead_kind(cube, kind, depth) for kind in cube.kinds)

    def _dead_kind(self, cube: Cube, kind: str, depth: int) -> bool:
        if kind == "array":
            items = cube.items
            return any(self.never(items.at(i), depth) for i in range(min(items.least, len(items.prefix) + 1)))
        if kind != "object":
            return False
        members = cube.members
        if any(self.never(self.values.member_state(members, name), depth) for name in members.required):
            return True
        return any(
            not self.values.is_of(state, name) for name in members.required for state in members.names
        ) or self._closed_to(members)

    def _closed_to(self, members: Members) -> bool:
        """Whether a member there must be can only be one that must not be."""
        return any(
            not some.patterns
            and any(rest.state is NEVER and not rest.patterns and rest.names <= some.names for rest in members.rests)
            for some in members.some
        )


def _hashable(cubes: list[Cube]) -> bool:
    return all(cube.values is None and not cube.excluded for cube in cubes)

"""States as JSON Schema again, in the keywords that llguidance enforces exactly; the rest of them is listed."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, TypeAlias, cast

from m1runtime.grammar.keywords import Node, Schema, pointer
from m1runtime.grammar.normalise_cube import NEVER, Atom, Cube, State, Where
from m1runtime.grammar.normalise_excluded import without_excluded
from m1runtime.grammar.normalise_expand import Expander
from m1runtime.grammar.normalise_items import ItemWriter
from m1runtime.grammar.normalise_members import MemberWriter
from m1runtime.grammar.report import Unenforced

SMALL = 200
"""Characters of a schema that is written again rather than referred to."""
SOFT = frozenset(
    {"type", "properties", "required", "additionalProperties", "patternProperties", "items", "prefixItems", "$ref"}
    | {"minItems", "maxItems", "minLength", "maxLength", "pattern", "format", "minimum", "maximum"}
    | {"exclusiveMinimum", "exclusiveMaximum", "multipleOf", "anyOf", "allOf", "oneOf", "enum", "const"}
)
"""Keywords that stay as they are, each with the schemas in it rewritten."""
_COMBINE = frozenset({"allOf", "anyOf", "oneOf", "$ref"})
Key: TypeAlias = "frozenset[tuple[object, ...]]"


class Emitter:
    """Writes states; what it leaves out is in `lost`, where a written node comes from in `origins`, by its id."""

    def __init__(self, expander: Expander, *, merge: bool = False) -> None:
        """`merge`: leave nothing to llguidance to combine."""
        self._merge = merge
        self.lost: list[Unenforced] = []
        self.origins: dict[int, str] = {}
        self._expander = expander
        self._done: dict[Key, Schema] = {}
        self._open: set[Key] = set()
        self._names: dict[Key, str] = {}
        self._bodies: dict[str, Schema] = {}
        self._items = ItemWriter(expander, self.lose)
        self._members = MemberWriter(expander, self.lose)

    def document(self, state: State) -> Schema:
        """A whole schema, with its definitions."""
        body = self._write(state)
        if not self._bodies:
            return body
        root: Node = {"$ref": "#/$defs/" + self._names[_key(state)]} if _key(state) in self._names else {}
        root = root or (dict(body) if isinstance(body, dict) else {"allOf": [body]})
        self.origins[id(root)] = _origin(state)
        return {**root, "$defs": self._bodies} if "$defs" not in root else root

    def lose(self, where: Iterable[Where], why: str) -> None:
        """Lists assertions that are not written."""
        for path, keyword in where:
            if all((one.path, one.keyword) != (path, keyword) for one in self.lost):
                self.lost.append(Unenforced(path, keyword, why))

    def schema(self, state: State) -> Schema:
        """A state as a schema, or as a reference to it where it is written already or being written."""
        if not state or state is NEVER:
            return state is not NEVER
        key = _key(state)
        if key in self._open or key in self._names:
            return self._referred(key)
        done = self._done.get(key)
        if done is None:
            return self._write(state)
        if len(json.dumps(done)) <= SMALL:
            return done
        name = self._name(key)
        self._bodies[name] = done
        return self._referred(key)

    def _referred(self, key: Key) -> Schema:
        return {"$ref": "#/$defs/" + self._name(key)}

    def _name(self, key: Key) -> str:
        return self._names.setdefault(key, f"d{len(self._names)}")

    def _write(self, state: State) -> Schema:
        if not state or state is NEVER:
            return state is not NEVER
        key = _key(state)
        self._open.add(key)
        try:
            made = self._soft(state[0]) if self.is_soft(state) else self._union(state)
        finally:
            self._open.discard(key)
        if isinstance(made, dict):
            self.origins[id(made)] = _origin(state)
        self._done[key] = made
        if key in self._names:
            self._bodies[self._names[key]] = made
            return self._referred(key)
        return made

    # Nodes that keep their form

    def is_soft(self, state: State) -> bool:
        """Whether a state keeps the form of the one schema it is."""
        if len(state) != 1 or not state[0].positive:
            return False
        atom = state[0]
        said, unread = self._expander.view(atom)
        if self._merge and _COMBINE & said.keys() and len(said) > 1 - ("allOf" in said):
            return False
        if unread or not said.keys() <= SOFT:
            return False
        if ("enum" in said or "const" in said) and not said.keys() <= {"enum", "type"} and said.keys() != {"const"}:
            return False
        if "$ref" in said and (len(said) > 1 or self._expander.target(atom, "$ref", said["$ref"]) is None):
            return False
        if len(said.get("patternProperties", ())) > 1:
            return False
        return "oneOf" not in said or self._expander.disjoint(atom)

    def _soft(self, atom: Atom) -> Schema:
        said, _ = self._expander.view(atom)
        if "$ref" in said:
            return self._reference(atom, said)
        made: Node = {}
        for keyword, value in said.items():
            if keyword in ("properties", "patternProperties"):
                made[keyword] = {name: self._below(atom, node, keyword, name) for name, node in value.items()}
            elif keyword in ("items", "additionalProperties"):
                made[keyword] = self._below(atom, value, keyword)
            elif keyword in ("prefixItems", "allOf"):
                made[keyword] = [self._below(atom, node, keyword, i) for i, node in enumerate(value)]
            elif keyword in ("anyOf", "oneOf"):
                options = [self._below(atom, node, keyword, i) for i, node in enumerate(value)]
                if "anyOf" in made:
                    made.setdefault("allOf", []).append({"anyOf": options})
                else:
                    made["anyOf"] = options
            else:
                made[keyword] = value
        return made

    def _below(self, atom: Atom, schema: object, *steps: str | int) -> Schema:
        return self.schema(self._expander.state(schema, atom.scope, self._path(atom, steps)))

    def _path(self, atom: Atom, steps: Iterable[str | int]) -> str:
        return "/".join((atom.path, *(pointer(str(step)) for step in steps)))

    def _reference(self, atom: Atom, said: Node) -> Schema:
        target = self._expander.target(atom, "$ref", said["$ref"])
        if not target or target is NEVER:
            return target is not NEVER and target is not None
        key = _key(target)
        name = self._name(key)
        if name not in self._bodies and key not in self._open:
            if key not in self._done:
                self._write(target)
            self._bodies[name] = self._done[key]
        body = self._bodies.get(name)
        return body if isinstance(body, bool) else self._referred(key)

    # Unions

    def _union(self, state: State) -> Schema:
        cubes = self._expander.cubes(state)
        listed = [cube for cube in cubes if cube.values is not None]
        values = [v for cube in listed for v in cast("tuple[Any, ...]", cube.values)]
        kept = [v for v in values if any(self._expander.values.admits(cube, v) for cube in listed)]
        kept = list({json.dumps(value, sort_keys=True): value for value in kept}.values())
        for cube in listed:
            for where, why in cube.lost:
                self.lose([where], why)
        options: list[Schema] = [{"enum": kept}] if kept else []
        for cube in cubes:
            if cube.values is None:
                for where, why in cube.lost:
                    self.lose([where], why)
                options += self.cube(cube)
        options = _without_copies(options)
        for option in options:
            self.origins.setdefault(id(option), _origin(state))
        if True in options:
            return True
        if len(options) <= 1:
            return options[0] if options else False
        return {"anyOf": options}

    def cube(self, cube: Cube) -> list[Schema]:
        """A cube as schemas that are its union."""
        parts = [piece for part in self._without_excluded(cube) for piece in self._pieces(part)]
        return [option for part in parts for option in self._written_cube(part)]

    def _pieces(self, cube: Cube) -> list[Cube]:
        """The cube in pieces whose arrays and objects can be written."""
        listed = self._items.listed(cube) if "array" in cube.kinds else None
        if listed is not None:
            others = [replace(cube, kinds=cube.kinds - {"array"})] if cube.kinds - {"array"} else []
            pieces = [*others, replace(cube, kinds=frozenset({"array"}), values=listed)]
            return [p for one in pieces for p in (self._pieces(one) if one.values is None else [one])]
        pieces = [cube]
        if "array" in cube.kinds:
            pieces = [p for one in pieces for p in _apart(one, "array", "items", self._items.split(one))]
        if "object" in cube.kinds:
            pieces = [p for one in pieces for p in _apart(one, "object", "members", self._members.split(one))]
        return pieces

    def _without_excluded(self, cube: Cube) -> list[Cube]:
        """The cube in pieces from which no value is excluded."""
        if not cube.excluded:
            return [cube]
        return without_excluded(cube, self.lose)

    def _written_cube(self, cube: Cube) -> list[Schema]:
        node: Node = {}
        every = len(cube.kinds) == 6
        if cube.values is not None:
            return [{"enum": list(cube.values)}] if cube.values else []
        if not every or cube.numbers.whole is not None:
            kinds = [_typed(cube, kind) for kind in sorted(cube.kinds)]
            node["type"] = kinds[0] if len(kinds) == 1 else kinds
        also: list[Schema] = [{"anyOf": [self.schema(state) for state in states]} for states in cube.also]
        if "number" in cube.kinds:
            self._numbers(cube, node, also)
        if "string" in cube.kinds:
            self._strings(cube, node, also)
        if "array" in cube.kinds:
            self._items.write(cube, node, self.schema)
        if "object" in cube.kinds:
            self._members.write(cube, node, self.schema)
        if also:
            node["allOf"] = also
        return [node if node else True]

    def _numbers(self, cube: Cube, node: Node, also: list[Schema]) -> None:
        numbers = cube.numbers
        for bound, plain, exclusive in (
            (numbers.low, "minimum", "exclusiveMinimum"),
            (numbers.high, "maximum", "exclusiveMaximum"),
        ):
            if bound is not None:
                node[exclusive if bound[1] else plain] = bound[0]
        if numbers.whole is False:
            self.lose(cube.places("not type"), "a number that is not whole cannot be asked for")
        if numbers.not_multiples:
            self.lose(cube.places("not multipleOf"), "multiples cannot be excluded")
        for i, divisor in enumerate(numbers.multiples):
            if i:
                also.append({"multipleOf": divisor})
            else:
                node["multipleOf"] = divisor

    def _strings(self, cube: Cube, node: Node, also: list[Schema]) -> None:
        strings = cube.strings
        if strings.least:
            node["minLength"] = strings.least
        if strings.most is not None:
            node["maxLength"] = strings.most
        if strings.avoid:
            self.lose(cube.places("not pattern"), "texts that match a pattern cannot be excluded")
        for keyword, values in (("pattern", strings.patterns), ("format", strings.formats)):
            for i, value in enumerate(values):
                if i:
                    part: Node = {keyword: value}
                    self.origins[id(part)] = cube.places(keyword)[0][0]
                    also.append(part)
                else:
                    node[keyword] = value


def _typed(cube: Cube, kind: str) -> str:
    return "integer" if kind == "number" and cube.numbers.whole else kind


def _key(state: State) -> Key:
    return frozenset(atom.key for atom in state)


def _origin(state: State) -> str:
    return state[0].path


def _apart(cube: Cube, kind: str, part: str, parts: list[Any]) -> list[Cube]:
    """The cube, of several states of its arrays or objects; the other kinds stay together."""
    if len(parts) == 1:
        return [replace(cube, **{part: parts[0]})]
    others = [replace(cube, kinds=cube.kinds - {kind})] if cube.kinds - {kind} else []
    return others + [replace(cube, kinds=frozenset({kind}), **{part: one}) for one in parts]


def _without_copies(options: list[Schema]) -> list[Schema]:
    known = {json.dumps(option, sort_keys=True): option for option in options if option is not False}
    return list(known.values())

"""JSON Schema → Lark rules in which the properties of an object come in any order, at every depth.

`%json` fixes the order of properties, so objects, and arrays and unions that hold any, are written here; every other
value is left to `%json`, with the same options. Exact in presence (all required ones are there) and uniqueness (none
comes twice). An object that cannot be written so keeps the schema's order, with all below it, and its place is listed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import cast

from m1runtime.grammar.arrays import array_options
from m1runtime.grammar.conjunction import (
    KNOWN,
    NEUTRAL,
    Conjunction,
    ObjectParts,
    alternatives,
    array_parts,
    both,
    narrowed,
    object_parts,
    types_of,
)
from m1runtime.grammar.keys import matches, other_key, pattern_key
from m1runtime.grammar.keywords import Node, Schema, pointer
from m1runtime.grammar.names import PLAIN_ESCAPES, needs_u, respelled
from m1runtime.grammar.objects import MAX_DECLARED, MAX_PROPERTIES, AnyOrder, Property
from m1runtime.grammar.reach import Reach, Seek, compiles
from m1runtime.grammar.references import References, Unwritable, canonical, ordered_constants
from m1runtime.grammar.writer import Value, json_text, json_value, literal, with_options

MAX_RULES = 5000
MAX_TRIES = 4
_OBJECT, _ARRAY = frozenset({"object"}), frozenset({"array"})


class _NotStrict(Exception):
    """The schema says something that llguidance takes only where it may ignore it."""


class _Endless(Exception):
    """More rules than MAX_RULES, or a value that holds itself and cannot be."""


class _Ordered(Exception):
    """This object keeps the schema's order."""


@dataclass(frozen=True, slots=True)
class Written:
    """A schema in rules; `in_order`: JSON pointers of the objects in schema order; `found`: what `reach` says of it.

    `respelled`: the places among these where an escaped spelling of a name passes as another one; `watched`: some
    declared names have no bit, so that the constraint must see that they come once.
    """

    value: Value
    in_order: tuple[str, ...]
    respelled: tuple[str, ...]
    watched: bool
    found: Reach


def any_order(schema: Schema, separators: tuple[str, str], *, lenient: bool, seek: Seek) -> Written | None:
    """The rules of a reduced schema; None if it has none, or if they do not compile.

    `lenient`: what llguidance does not know is ignored, as its own lenient reading does.
    """
    impossible: frozenset[str] = frozenset()
    for _ in range(MAX_TRIES):
        writer = _Writer(schema, separators, lenient=lenient, impossible=impossible)
        try:
            root = writer.value(schema, "")
        except (Unwritable, _NotStrict, _Endless, RecursionError):
            return None
        if root is None:
            return None
        value = writer.written(root)
        found = seek(value.text(closing=True))
        if not found.refused:
            return Written(value, tuple(writer.kept), tuple(writer.respelled), writer.watched, found)
        never = frozenset(leaf for leaf in writer.leaves if _impossible(leaf)) - impossible
        if not never:
            return None
        impossible |= never
    return None


def _impossible(leaf: str) -> bool:
    failed, messages = compiles(json_value(leaf))
    return failed and any("Unsatisfiable" in message for message in messages)


class _Writer:
    """Rules of one schema. `impossible`: texts for `%json` that no value satisfies."""

    def __init__(self, root: Schema, separators: tuple[str, str], *, lenient: bool, impossible: frozenset[str]) -> None:
        self.kept: list[str] = []
        self.respelled: list[str] = []
        self.leaves: set[str] = set()
        self.watched = False
        self._references = References(root)
        self._separators = separators
        self._lenient = lenient
        self._impossible = impossible
        self._salt = _digest(canonical([root, separators, lenient]))
        self._rules: dict[str, Sequence[str]] = {}
        self._closing: dict[str, Sequence[str]] = {}
        self._names: dict[str, str | None] = {}
        self._asked: set[str | None] = set()

    def written(self, root: str) -> Value:
        """All rules, with `root` for the value itself."""
        rules = [line for lines in self._rules.values() for line in lines]
        closing = [line for name, lines in self._rules.items() for line in self._closing.get(name, lines)]
        return Value(root, tuple(rules), tuple(closing))

    def value(self, schema: Schema, path: str) -> str | None:
        """The rule of a value, None if there is no such value. Raises Unwritable."""
        node, path = self._references.resolved(schema, path)
        if not isinstance(node, dict) or not self._references.ordered(node):
            return self._leaf(node)
        key = canonical(node)
        if key in self._names:
            self._asked.add(self._names[key])
            return self._names[key]
        name = self._names[key] = self._new_name()
        options = self._options(node, path)
        if options:
            self._rules[name] = [f"{name}: " + " | ".join(options)]
            return name
        if name in self._asked:
            raise _Endless
        self._names[key] = None
        return None

    def _new_name(self) -> str:
        if len(self._names) > MAX_RULES:
            raise _Endless
        return f"v{self._salt}_{len(self._names)}"

    def _options(self, node: Node, path: str) -> list[str]:
        """The alternatives of a value; none if there is no such value."""
        self._check(node)
        node = _spelled_out({keyword: value for keyword, value in node.items() if keyword not in NEUTRAL})
        try:
            if node.keys() in ({"anyOf"}, {"oneOf"}):
                return self._union(node, path)
            written = [self._conjunction(one, path) for one in alternatives(node, self._references)]
        except (_Ordered, Unwritable):
            return self._in_order(node, path)
        return list(dict.fromkeys(option for some in written for option in some))

    def _check(self, node: Node) -> None:
        if self._lenient:
            return
        if not node.keys() <= KNOWN:
            raise _NotStrict(f"unknown keywords {sorted(node.keys() - KNOWN)}")
        if "oneOf" in node and compiles(json_value(self._text(node)))[0]:
            raise _NotStrict("oneOf of schemas that may overlap")

    def _in_order(self, node: Node, path: str) -> list[str]:
        leaf = self._leaf(node)
        if leaf is not None:
            self.kept.append(path)
            if respelled(node) and needs_u(json.dumps(node)):
                self.respelled.append(path)
        return [] if leaf is None else [leaf]

    def _union(self, node: Node, path: str) -> list[str]:
        keyword = next(iter(node))
        schemas = cast("list[Schema]", node[keyword])
        free = [one for one in schemas if not self._references.ordered(one)]
        found = [self._leaf(free[0] if len(free) == 1 else {"anyOf": free})] if free else []
        for i, one in enumerate(schemas):
            if self._references.ordered(one):
                found.append(self.value(one, f"{path}/{keyword}/{i}"))
        return list(dict.fromkeys(one for one in found if one is not None))

    def _conjunction(self, nodes: Conjunction, path: str) -> list[str]:
        """The alternatives of what conjoined schemas admit: objects, arrays, and all other values."""
        whole, constants = both(nodes), [ordered_constants(node) for node in nodes]
        if False in constants or not self._references.ordered(whole):
            leaf = self._leaf(whole)
            return [] if leaf is None else [leaf]
        if True in constants:
            raise _Ordered
        for node in nodes:
            self._check(node)
        types, options = types_of(nodes), list[str]()
        if "object" in types:
            options += self._object(nodes, path)
        rest = types - _OBJECT
        if "array" in types and self._references.ordered(narrowed(nodes, _ARRAY)):
            rest -= _ARRAY
            options += array_options(array_parts(nodes), lambda one: self.value(one, f"{path}/items"), self._separators)
        leaf = self._leaf(narrowed(nodes, rest)) if rest else None
        return options if leaf is None else [*options, leaf]

    def _object(self, nodes: Conjunction, path: str) -> list[str]:
        parts = object_parts(nodes, matches)
        required, optional = list[Property](), list[Property]()
        for name, schema in parts.properties.items():
            value = self.value(schema, f"{path}/properties/{pointer(name)}")
            if value is not None:
                (required if name in parts.required else optional).append(Property(literal(json_text(name)), value))
            elif name in parts.required:
                return []
        bits = max(0, MAX_PROPERTIES - len(required))
        self.watched = self.watched or len(optional) > bits
        others = [*optional[bits:], *self._others(parts, path)]
        written = AnyOrder(required, optional[:bits], others, parts.least, parts.most)
        if not written.writable or len(required) + len(optional) > MAX_DECLARED:
            raise _Ordered
        if not written.possible:
            return []
        name = f"o{self._salt}_{len(self._rules)}"
        self._rules[name], self._closing[name] = written.lines(name, self._separators)
        return [name]

    def _others(self, parts: ObjectParts, path: str) -> list[Property]:
        """Properties of made-up names: of each pattern, and all others."""
        names, patterns = [*parts.properties], [*parts.patterns]
        if (
            len(patterns) > 1
            and compiles(json_value(self._text({"type": "object", "patternProperties": parts.patterns})))[0]
        ):
            raise _Ordered
        found = list[Property]()
        rest = self.value(parts.others, f"{path}/additionalProperties")
        for pattern, schema in parts.patterns.items():
            value = self.value(schema, f"{path}/patternProperties/{pointer(pattern)}")
            if value is None:
                continue
            taken = [name for name in names if matches(pattern, name)]
            if rest is None and not taken:
                key = self._leaf({"type": "string", "pattern": pattern})
            else:
                key = self._terminal(pattern_key(pattern, taken))
            found.append(Property(key, value)) if key is not None else None
        if rest is not None:
            key = self._terminal(other_key(names, patterns)) if names or patterns else self._leaf({"type": "string"})
            assert key is not None
            found.append(Property(key, rest))
        return found

    def _terminal(self, body: str) -> str:
        name = "K" + _digest(body).upper()
        self._rules[name] = [f"{name}: {body}"]
        return name

    def _leaf(self, schema: Schema) -> str | None:
        """A value that `%json` writes."""
        if schema is False:
            return None
        text = self._text(schema)
        if text in self._impossible:
            return None
        name = "j" + _digest(text)
        self.leaves.add(text)
        self._rules[name] = [f"{name}: %json {text}"]
        return name

    def _text(self, schema: Schema) -> str:
        alone = self._references.alone(schema)
        mixed = respelled(alone)
        escapes = PLAIN_ESCAPES if mixed and not needs_u(json.dumps(alone)) else None
        return with_options(alone, self._separators, lenient=self._lenient, escapes=escapes)


def _spelled_out(node: Node) -> Node:
    """A node of constants as schemas of these; any other as it is."""
    if not node.keys() <= {"const", "enum", "type"} or {"const", "enum"} <= node.keys():
        return node
    values = cast("list[object]", node["enum"] if "enum" in node else [node["const"]])
    types = types_of((node,))
    return {"anyOf": [_literal(value) for value in values if _types_of_value(value) & types]}


def _literal(value: object) -> Node:
    """The schema of one value."""
    if isinstance(value, dict):
        properties = {name: _literal(one) for name, one in cast("Node", value).items()}
        return {
            "type": "object",
            "properties": properties,
            "required": [*properties],
            "additionalProperties": False,
        }
    if isinstance(value, list):
        items = [_literal(one) for one in cast("list[object]", value)]
        return {"type": "array", "prefixItems": items, "items": False, "minItems": len(items), "maxItems": len(items)}
    return {"const": value}


def _types_of_value(value: object) -> frozenset[str]:
    if isinstance(value, bool):
        return frozenset({"boolean"})
    if isinstance(value, (int, float)):
        return frozenset({"number", "integer"} if value == value // 1 else {"number"})
    if value is None:
        return frozenset({"null"})
    return frozenset({"string"} if isinstance(value, str) else _OBJECT if isinstance(value, dict) else _ARRAY)


def _digest(text: str) -> str:
    return blake2b(text.encode(errors="surrogatepass"), digest_size=6).hexdigest()

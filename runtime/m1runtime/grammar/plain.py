"""The plain part of JSON Schema, which most tools keep to, as a tree that table masks are made of.

Plain are objects, arrays, free strings, numbers, integers with bounds, enums and constants, unions of these, any value,
and definitions without recursion. What else there is (patterns, lengths, combinations) is llguidance's.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

from m1runtime.grammar.keywords import STANDARD_FORMATS
from m1runtime.grammar.size import MAX_DEPTH, MAX_KEYS

JsonObject: TypeAlias = "dict[str, Any]"

STRING, NUMBER = 24, 24
"""Bytes that finish a string at most (the rest of a character and the quote), and a number."""
MOST_DIGITS = 10**15
FEW_ITEMS = 16
ENDLESS = 1 << 40
"""Bytes where no bound is known."""
MAX_SIZE = 20_000
"""Nodes of one schema, definitions counted wherever they are used."""


class Node:
    """A value of the schema. `most`: bytes that finish one from any place in it."""

    __slots__ = ("least", "most")

    def __init__(self, least: int, most: int) -> None:
        self.least, self.most = least, most


class Words(Node):
    """One of these JSON texts (sorted, none twice)."""

    __slots__ = ("words",)

    def __init__(self, words: Sequence[bytes]) -> None:
        self.words = tuple(sorted(set(words)))
        super().__init__(min(map(len, self.words)), max(map(len, self.words)))


class Text(Node):
    """Any string."""

    __slots__ = ()


class Number(Node):
    """Any number."""

    __slots__ = ()


class Integer(Node):
    """An integer from `low` to `high`; None for no bound."""

    __slots__ = ("high", "low")

    def __init__(self, low: int | None, high: int | None) -> None:
        self.low, self.high = low, high
        super().__init__(1, NUMBER)


class Items(Node):
    """An array of `low` to `high` items; `high` None for any number."""

    __slots__ = ("high", "item", "low")

    def __init__(self, item: Node, low: int, high: int | None) -> None:
        self.item, self.low, self.high = item, low, high
        super().__init__(2 + (item.least + 2) * low, min(ENDLESS, 2 + (item.most + 2) * (low + 1)))


@dataclass(frozen=True, slots=True, eq=False)
class Member:
    """A property: its name, with the colon as JSON writes them, whether it is required, and its value."""

    name: str
    key: bytes
    required: bool
    value: Node


class Members(Node):
    """An object of these properties, in this order; `extra`: what any other property may be, None for none."""

    __slots__ = ("extra", "members", "names")

    def __init__(self, members: tuple[Member, ...], extra: Node | None = None) -> None:
        self.members, self.extra = members, extra
        self.names = frozenset(one.name for one in members)
        sizes = [(len(one.key) + 2, one) for one in members]
        least = 2 + sum(size + one.value.least for size, one in sizes if one.required)
        most = 2 + sum(size + one.value.most for size, one in sizes if one.required)
        longest = max((size + one.value.most for size, one in sizes), default=0)
        super().__init__(least, ENDLESS if extra is not None else min(ENDLESS, most + longest))


class Anything(Node):
    """Any value."""

    __slots__ = ()


class Either(Node):
    """Any of several."""

    __slots__ = ("choices",)

    def __init__(self, choices: tuple[Node, ...]) -> None:
        self.choices = choices
        super().__init__(min(one.least for one in choices), max(one.most for one in choices))


ANYTHING = Anything(1, ENDLESS)
NEVER = Node(0, 0)
"""A value that cannot be: an enumeration of other types than its own."""


class NotPlain(Exception):
    """The schema is not plain."""


def read(schema: object, *, separators: tuple[str, str], tool: bool) -> Node | None:
    """The tree of a plain schema (in the tool reading if `tool`), or None; never more work than MAX_SIZE nodes."""
    try:
        return _Reader(schema, separators, tool).root()
    except (NotPlain, RecursionError, TypeError, ValueError, LookupError, AttributeError):
        return None


_ANNOTATIONS = frozenset(
    {"title", "description", "default", "examples", "example", "deprecated", "readOnly", "writeOnly", "$comment"}
)
_OF_TYPE: dict[str, frozenset[str]] = {
    "null": frozenset(),
    "boolean": frozenset(),
    "string": frozenset(),
    "integer": frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}),
    "number": frozenset(),
    "array": frozenset({"items", "minItems", "maxItems"}),
    "object": frozenset({"properties", "required", "additionalProperties"}),
}
_PYTHON: dict[str, tuple[type, ...]] = {
    "null": (type(None),), "boolean": (bool,), "string": (str,), "integer": (int,), "number": (int, float),
}  # fmt: skip
_LITERAL = frozenset({"enum", "const"})
_ROOT = frozenset({"$defs", "definitions", "$schema"})
_LOCAL = ("#/$defs/", "#/definitions/")


class _Reader:
    def __init__(self, schema: object, separators: tuple[str, str], tool: bool) -> None:
        self._schema: object = schema
        self._separators = separators
        self._tool = tool
        self._size = 0
        self._known: dict[str, Node] = {}

    def root(self) -> Node:
        given: object = self._schema
        if not isinstance(given, dict):
            raise NotPlain
        schema = cast("JsonObject", given)
        if self._tool and "type" not in schema:
            schema = {**schema, "type": "object"}
        if self._tool and schema["type"] != "object":
            raise NotPlain
        node = self._node({k: v for k, v in schema.items() if k not in _ROOT}, 0)
        return self._possible(node)

    def _possible(self, node: Node) -> Node:
        if node is NEVER:
            raise NotPlain
        return node

    def _node(self, schema: object, depth: int) -> Node:
        self._size += 1
        if schema is True:
            return ANYTHING
        if not isinstance(schema, dict) or depth > MAX_DEPTH or self._size > MAX_SIZE:
            raise NotPlain
        node = cast("JsonObject", schema)
        keys = {key for key in node if key not in _ANNOTATIONS}
        if "format" in keys and node["format"] not in STANDARD_FORMATS:
            keys.discard("format")
        if not keys:
            return ANYTHING
        if keys == {"$ref"}:
            return self._reference(node["$ref"], depth)
        if keys == {"anyOf"} or (keys == {"oneOf"} and len(node["oneOf"]) == 1):
            return self._either([self._node(one, depth + 1) for one in node[keys.pop()]])
        if keys & _LITERAL:
            return self._literals(node, keys)
        types = node.get("type")
        kinds = cast("list[str]", types) if isinstance(types, list) else [cast("str", types)]
        if not kinds or any(kind not in _OF_TYPE for kind in kinds) or len(set(kinds)) < len(kinds):
            raise NotPlain
        allowed = frozenset({"type"}).union(*(_OF_TYPE[kind] for kind in kinds))
        if not keys <= allowed:
            raise NotPlain
        if "integer" in kinds and "number" in kinds:
            raise NotPlain
        return self._either([self._of_type(kind, node, depth) for kind in kinds])

    def _either(self, nodes: list[Node]) -> Node:
        nodes = [node for node in nodes if node is not NEVER]
        if not nodes:
            return NEVER
        return nodes[0] if len(nodes) == 1 else Either(tuple(nodes))

    def _reference(self, name: object, depth: int) -> Node:
        """What a local definition says; one that is being read already refers to itself, and is not plain."""
        if not isinstance(name, str) or not name.startswith(_LOCAL) or "~" in name or "%" in name:
            raise NotPlain
        known = self._known.get(name)
        if known is None:
            section, _, key = name.removeprefix("#/").partition("/")
            root = cast("JsonObject", self._schema)
            known = self._node(root[section][key] if key in root.get(section, {}) else None, depth + 1)
            self._known[name] = known
        return known

    def _literals(self, node: JsonObject, keys: set[str]) -> Node:
        if not keys <= {"enum", "const", "type"} or _LITERAL <= keys:
            raise NotPlain
        given: object = node["enum"] if "enum" in node else [node["const"]]
        if not isinstance(given, list) or not given:
            raise NotPlain
        values = cast("list[object]", given)
        types = node.get("type")
        if types is not None:
            named = [types] if isinstance(types, str) else types
            if not all(isinstance(kind, str) and kind in _PYTHON for kind in named):
                raise NotPlain
            values = [value for value in values if any(_is_of(value, _PYTHON[kind]) for kind in named)]
        if any(not isinstance(value, (str, bool, int, type(None))) for value in values):
            raise NotPlain
        return NEVER if not values else Words([json_text(value) for value in values])

    def _of_type(self, kind: str, node: JsonObject, depth: int) -> Node:
        if kind == "null":
            return Words([b"null"])
        if kind == "boolean":
            return Words([b"true", b"false"])
        if kind == "string":
            return Text(2, STRING)
        if kind == "number":
            return Number(1, NUMBER)
        if kind == "integer":
            return self._integer(node)
        return self._array(node, depth) if kind == "array" else self._object(node, depth)

    def _integer(self, node: JsonObject) -> Node:
        limits = [node[key] for key in _OF_TYPE["integer"] if key in node]
        if any(type(limit) is not int or abs(limit) >= MOST_DIGITS for limit in limits):
            raise NotPlain
        lows = [node[key] + more for key, more in (("minimum", 0), ("exclusiveMinimum", 1)) if key in node]
        highs = [node[key] - less for key, less in (("maximum", 0), ("exclusiveMaximum", 1)) if key in node]
        low, high = max(lows, default=None), min(highs, default=None)
        if low is not None and high is not None and low > high:
            raise NotPlain
        return Integer(low, high)

    def _array(self, node: JsonObject, depth: int) -> Node:
        low, high = node.get("minItems", 0), node.get("maxItems")
        if type(low) is not int or not 0 <= low <= FEW_ITEMS:
            raise NotPlain
        if high is not None and (type(high) is not int or high < low):
            raise NotPlain
        return Items(self._possible(self._node(node.get("items"), depth + 1)), low, high)

    def _object(self, node: JsonObject, depth: int) -> Node:
        properties: object = node.get("properties", {})
        if not isinstance(properties, dict) or len(cast("JsonObject", properties)) > MAX_KEYS:
            raise NotPlain
        if not self._tool and "additionalProperties" not in node:
            raise NotPlain
        more: object = node.get("additionalProperties", "properties" not in node)
        extra = None if more is False else self._possible(self._node(more, depth + 1))
        required = node.get("required", [])
        if not isinstance(required, list) or not set(cast("list[str]", required)) <= set(
            cast("JsonObject", properties)
        ):
            raise NotPlain
        needed = set(cast("list[str]", required))
        key = self._separators[1].encode()
        members: list[Member] = []
        for name, value in cast("JsonObject", properties).items():
            read = self._node(value, depth + 1)
            if read is not NEVER:
                members.append(Member(name, json_text(name) + key, name in needed, read))
            elif name in needed:
                raise NotPlain
        return Members(tuple(members), extra)


def _is_of(value: object, kind: tuple[type, ...]) -> bool:
    return isinstance(value, kind) and (bool in kind or not isinstance(value, bool))


def json_text(value: Any) -> bytes:
    """A scalar as JSON writes it, readable where UTF-8 can carry it; DEL is escaped, as in free strings."""
    text = json.dumps(value, ensure_ascii=False)
    return text.replace("\x7f", "\\u007f").encode()


_KEPT = 1024
_trees: dict[tuple[str, tuple[str, str], bool], Node | None] = {}


def tree(schema: object, *, separators: tuple[str, str], tool: bool) -> tuple[str, Node | None]:
    """A schema as JSON, and its tree if it is plain; some are kept."""
    text = as_json(schema)
    if not text:
        return "", None
    key = (text, separators, tool)
    found = _trees.get(key, NEVER)
    if found is NEVER:
        found = _trees[key] = read(schema, separators=separators, tool=tool)
        if len(_trees) > _KEPT:
            _trees.clear()
    return text, found


def as_json(schema: object) -> str:
    """A schema as JSON; empty if it is none."""
    try:
        return json.dumps(schema)
    except (TypeError, ValueError, RecursionError):
        return ""

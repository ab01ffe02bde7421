"""How many bytes may be missing, at most, to finish an instance of a plain schema from any place inside it.

Far from the end of the budget this bound replaces the proof that a token leaves a way to close. It is known for what
most tools declare: closed objects, arrays, free strings, numbers, enums and unions of these. What else there is, whose
ends can be far away or nowhere (references, patterns, lengths, open objects, combinations), has none.
"""

from __future__ import annotations

import json
from typing import Any, TypeAlias, cast

Node: TypeAlias = "dict[str, Any]"

STRING = 24
"""The rest of a character, of a surrogate pair, and the quote."""
NUMBER = 24
MOST_DIGITS = 10**15

_PLAIN = {
    "null": frozenset({"type"}),
    "boolean": frozenset({"type"}),
    "string": frozenset({"type"}),
    "integer": frozenset({"type", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}),
    "number": frozenset({"type"}),
    "array": frozenset({"type", "items", "minItems", "maxItems"}),
    "object": frozenset({"type", "properties", "required", "additionalProperties"}),
}
_SCALARS = {"null": 4, "boolean": 5, "string": STRING, "integer": NUMBER, "number": NUMBER}
FEW_ITEMS = 16


def bound(schema: object) -> int | None:
    """Bytes of the longest shortest end, a whole instance among them; None if no bound is known."""
    if not isinstance(schema, dict):
        return None
    node = cast("Node", schema)
    if "enum" in node or "const" in node:
        return _literals(node)
    if "anyOf" in node:
        return _most([bound(one) for one in node["anyOf"]]) if node.keys() == {"anyOf"} else None
    types = node.get("type")
    kinds = cast("list[str]", types) if isinstance(types, list) else [types]
    if isinstance(types, list) and not {"type"} == node.keys():
        return None
    return _most([_of_type(node, kind) for kind in kinds])


def _literals(node: Node) -> int | None:
    if not node.keys() <= {"enum", "const", "type"} or {"enum", "const"} <= node.keys():
        return None
    values = cast("list[object]", node["enum"] if "enum" in node else [node["const"]])
    return _most([len(json.dumps(value)) for value in values])


def _of_type(node: Node, kind: object) -> int | None:
    if not isinstance(kind, str) or not node.keys() <= _PLAIN.get(kind, frozenset[str]()):
        return None
    if kind == "object":
        return _object(node)
    if kind == "array":
        return _array(node)
    limits = [value for key, value in node.items() if key != "type"]
    return _SCALARS[kind] if all(abs(value) < MOST_DIGITS for value in limits) else None


def _array(node: Node) -> int | None:
    item, least = bound(node.get("items")), node.get("minItems", 0)
    if item is None or least > FEW_ITEMS or node.get("maxItems", least + 1) < least:
        return None
    return 2 + (item + 2) * (least + 1)


def _object(node: Node) -> int | None:
    properties, required = node.get("properties", {}), node.get("required", [])
    if node.get("additionalProperties") is not False or not set(required) <= properties.keys():
        return None
    ends = {name: bound(value) for name, value in properties.items()}
    if any(end is None for end in ends.values()):
        return None
    sizes = {name: len(json.dumps(name)) + 4 + cast("int", end) for name, end in ends.items()}
    return 2 + max(sizes.values(), default=0) + sum(sizes[name] for name in required)


def _most(ends: list[int | None]) -> int | None:
    known = [end for end in ends if end is not None]
    return max(known, default=None) if len(known) == len(ends) else None

"""Where a schema lets property names be made up, and what that asks of the grammar.

llguidance keeps no memory of the names it has read, so a made-up name can come twice: the constraint refuses the token
that would close one again (`Shape.repeated`). Beside declared names or patterns its lexeme of a made-up name also takes
needless escapes, and `"\\u0061"` slips past a declared `a`: there strings are compiled without `\\u`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, TypeAlias, cast

Node: TypeAlias = "dict[str, Any]"

PLAIN_ESCAPES = 'nrbtf\\"'
"""Every escape but `\\u`: with these a name has one spelling. Control characters without a letter cannot be written."""

_NEEDS_U = re.compile(r"\\u00[01]|\x7f")
_DELEGATES = frozenset({"$ref", "anyOf", "oneOf", "allOf", "const", "enum"})
_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_ONES = ("additionalProperties", "items", "contains", "not", "if", "then", "else", "unevaluatedProperties")


def open_objects(schema: object) -> bool:
    """Whether an instance may hold a name the schema does not declare; True where that is not certain."""
    return any(node is True or (isinstance(node, dict) and _open(cast("Node", node))) for node in _nodes(schema))


def respelled(schema: object) -> list[str]:
    """JSON pointers of the objects whose declared names or patterns an escaped spelling could slip past."""
    if not any(isinstance(node, dict) and _mixes(cast("Node", node)) for node in _nodes(schema)):
        return []
    return [path for node, path in _places(schema, "") if isinstance(node, dict) and _mixes(cast("Node", node))]


def needs_u(text: str) -> bool:
    """Whether a schema (as JSON) names characters that only `\\u` escapes can write."""
    return _NEEDS_U.search(text) is not None


def _mixes(node: Node) -> bool:
    declares = node.get("properties") or node.get("patternProperties")
    return bool(declares) and node.get("additionalProperties", True) is not False and _admits(node, "object")


def _open(node: Node) -> bool:
    if _admits(node, "object") and (node.get("additionalProperties", True) is not False or _made_up(node)):
        return not _DELEGATES & node.keys() or _made_up(node)
    fixed = "items" in node or node.get("maxItems") == 0 or _DELEGATES & node.keys()
    return _admits(node, "array") and not fixed


def _made_up(node: Node) -> bool:
    return bool(node.get("patternProperties")) or node.get("additionalProperties", False) is not False


def _admits(node: Node, kind: str) -> bool:
    types = node.get("type", kind)
    return kind in cast("list[object]", types) if isinstance(types, list) else types == kind


def _nodes(node: object) -> Iterator[object]:
    yield node
    for _, child in _below(node):
        yield from _nodes(child)


def _places(node: object, path: str) -> Iterator[tuple[object, str]]:
    yield node, path
    for steps, child in _below(node):
        yield from _places(child, "/".join((path, *map(pointer, steps))))


def _below(node: object) -> Iterator[tuple[tuple[str, ...], object]]:
    if not isinstance(node, dict):
        return
    for keyword, value in cast("Node", node).items():
        if keyword in _MAPS and isinstance(value, dict):
            for name, child in cast("Node", value).items():
                yield (keyword, name), child
        elif keyword in _LISTS and isinstance(value, list):
            for i, child in enumerate(cast("list[object]", value)):
                yield (keyword, str(i)), child
        elif keyword in _ONES:
            yield (keyword,), value


def pointer(name: str) -> str:
    """One step of a JSON pointer."""
    return name.replace("~", "~0").replace("/", "~1")

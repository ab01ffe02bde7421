"""Where a schema lets property names be made up, and what that asks of the grammar.

llguidance keeps no memory of the names it has read, so a made-up name can come twice: the constraint refuses the token
that would close one again (`Shape.repeated`). Beside declared names or patterns its lexeme of a made-up name also takes
needless escapes, and `"\\u0061"` slips past a declared `a`: there strings are compiled without `\\u`.
"""

from __future__ import annotations

import re
from typing import cast

from m1runtime.grammar.keywords import Node, nodes, places

PLAIN_ESCAPES = 'nrbtf\\"'
"""Every escape but `\\u`: with these a name has one spelling. Control characters without a letter cannot be written."""

_NEEDS_U = re.compile(r"\\u00[01]|\x7f")
_DELEGATES = frozenset({"$ref", "anyOf", "oneOf", "allOf", "const", "enum"})


def open_objects(schema: object) -> bool:
    """Whether an instance may hold a name the schema does not declare; True where that is not certain."""
    return any(node is True or (isinstance(node, dict) and _open(cast("Node", node))) for node in nodes(schema))


def respelled(schema: object) -> list[str]:
    """JSON pointers of the objects whose declared names or patterns an escaped spelling could slip past."""
    if not any(isinstance(node, dict) and _mixes(cast("Node", node)) for node in nodes(schema)):
        return []
    return [path for node, path in places(schema) if isinstance(node, dict) and _mixes(cast("Node", node))]


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

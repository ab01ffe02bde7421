"""A JSON Schema → one of the same instances in the keywords that llguidance enforces exactly.

A schema is a union of cubes (`normalise_cube`), and so are its negation, its conditions and its exclusive choices. The
union is written again in plain keywords (`normalise_emit`). Nodes that need nothing of this keep their form. What is
not written is listed, and only ever admits more.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, cast

from m1runtime.grammar.effort import Effort
from m1runtime.grammar.keywords import ANNOTATIONS, Node, Schema, places, pointer
from m1runtime.grammar.normalise_cube import Malformed
from m1runtime.grammar.report import ToolSchemaReport, Unenforced

_PLAIN = (
    frozenset({"type", "properties", "required", "items", "additionalProperties", "minItems", "maxItems", "$ref"})
    | {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minLength", "maxLength"}
    | {"pattern", "format", "$schema", "$defs", "definitions", "$comment", "anyOf"}
    | ANNOTATIONS
)
"""Keywords that need no rewriting, whatever stands beside them."""


@dataclass(frozen=True, slots=True)
class Normal:
    """A rewritten schema, what it leaves out, and the JSON pointers its nodes come from, by their id.

    A node that is not in `origins` stands where it stood.
    """

    schema: Schema
    lost: tuple[Unenforced, ...] = ()
    origins: dict[int, str] = field(default_factory=dict[int, str])
    rewritten: bool = False

    def reported(self, report: ToolSchemaReport) -> ToolSchemaReport:
        """A report about the rewritten schema, told of the original."""
        if not self.rewritten or not (self.lost or report.unenforced or report.in_order):
            return report
        origins = {path: self.origins[id(node)] for node, path in places(self.schema) if id(node) in self.origins}
        told = [replace(item, path=_origin(origins, item.path)) for item in report.unenforced]
        in_order = dict.fromkeys(_origin(origins, path) for path in report.in_order)
        return replace(report, unenforced=tuple(dict.fromkeys((*self.lost, *told))), in_order=tuple(in_order))


def normalise(schema: Schema, effort: Effort, *, tool: bool = False, merge: bool = False) -> Normal:
    """`schema` rewritten; `tool`: for objects alone; `merge`: with nothing left to combine.

    A schema that is malformed, or too deep to be rewritten, is returned as it is.
    """
    if not isinstance(schema, dict) or (plain(schema) and not merge):
        return Normal(schema)
    try:
        return _normalised(schema, effort, tool, merge)
    except (Malformed, RecursionError):
        return Normal(schema)


def _normalised(schema: Node, effort: Effort, tool: bool, merge: bool) -> Normal:
    from m1runtime.grammar.normalise_dialect import scope_of
    from m1runtime.grammar.normalise_emit import Emitter
    from m1runtime.grammar.normalise_expand import Expander

    paths, keywords = _places(schema)
    scope = scope_of(schema, dynamic=bool(keywords & {"$dynamicRef", "$recursiveRef"}))
    expander = Expander(paths, effort)
    emitter = Emitter(expander, merge=merge)
    state = expander.state(schema, scope, "")
    if tool and "type" not in schema and not emitter.is_soft(state):
        state = (*expander.made({"type": "object"}, "", scope), *state)
    made = emitter.document(state)
    return Normal(made, tuple(emitter.lost), emitter.origins, rewritten=True)


def _origin(origins: dict[str, str], path: str) -> str:
    """Where a place of the rewritten schema comes from: the nearest known node around it, and the steps left."""
    above, left = path, ""
    while above and above not in origins:
        above, _, step = above.rpartition("/")
        left = f"/{step}{left}"
    return origins.get(above, "") + left


def _places(schema: Node) -> tuple[dict[int, str], set[str]]:
    """The JSON pointers of all objects in a document, by their id, and all their keys."""
    paths: dict[int, str] = {}
    keys: set[str] = set()
    waiting: list[tuple[object, str]] = [(schema, "")]
    while waiting:
        node, path = waiting.pop()
        if isinstance(node, dict):
            children = cast("Node", node)
            if not all(isinstance(key, str) for key in cast("dict[object, object]", node)):
                raise Malformed
            paths.setdefault(id(children), path)
            keys |= children.keys()
            waiting += [(child, f"{path}/{pointer(name)}") for name, child in children.items()]
        elif isinstance(node, list):
            waiting += [(child, f"{path}/{i}") for i, child in enumerate(cast("list[object]", node))]
    return paths, keys


def plain(schema: Node) -> bool:
    """Whether a schema needs no rewriting at all: objects, arrays, scalars, enumerations, `anyOf`, local references."""
    waiting: list[Any] = [schema]
    while waiting:
        node = waiting.pop()
        if isinstance(node, bool):
            continue
        if not isinstance(node, dict) or not _plain(cast("Node", node), schema):
            return False
        for keyword, value in cast("Node", node).items():
            if keyword in _NAMED:
                waiting += value.values()
            elif keyword in _INSIDE:
                waiting.append(value)
            elif keyword == "anyOf":
                waiting += value
    return True


_NAMED = frozenset({"properties", "$defs", "definitions"})
_INSIDE = frozenset({"items", "additionalProperties"})
_COUNTS = frozenset({"minItems", "maxItems", "minLength", "maxLength"})
_LIMITS = frozenset({"exclusiveMinimum", "exclusiveMaximum"})
_VALUES = ANNOTATIONS | {"type", "$schema"}


def _plain(node: Node, root: Node) -> bool:
    """Whether one node needs no rewriting, whatever its schemas are."""
    if not node.keys() <= _PLAIN:
        return node.keys() <= _VALUES | {"enum"} or node.keys() <= _VALUES | {"const"}
    if any(not isinstance(node[keyword], dict) for keyword in node.keys() & _NAMED):
        return False
    if any(type(node[keyword]) is not int for keyword in node.keys() & _COUNTS):
        return False
    if any(type(node[keyword]) is bool for keyword in node.keys() & _LIMITS):
        return False
    if not isinstance(node.get("anyOf", []), list):
        return False
    return "$ref" not in node or _plain_reference(node, root)


def _plain_reference(node: Node, root: Node) -> bool:
    """A reference to a definition at the root, with nothing asserted beside it."""
    reference = node["$ref"]
    if not isinstance(reference, str) or not node.keys() - ANNOTATIONS <= {"$ref", "$defs", "definitions", "$schema"}:
        return False
    steps = reference.split("/")
    if len(steps) != 3:
        return reference == "#"
    plain_name = "~" not in steps[2] and "%" not in steps[2]
    return steps[0] == "#" and plain_name and steps[1] in _NAMED and steps[2] in root.get(steps[1], ())

"""One node of a schema as draft 2020-12 would write it, and where the references in it lead."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, cast

from referencing import Registry, Resource
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012, SchemaRegistry, lookup_recursive_ref, specification_with

from m1runtime.grammar.keywords import TYPES, Node
from m1runtime.grammar.normalise_cube import Malformed

ASSERTIONS = frozenset(
    {"$ref", "$dynamicRef", "$recursiveRef", "type", "enum", "const", "allOf", "anyOf", "oneOf", "not", "if"}
    | {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minLength", "maxLength", "pattern"}
    | {"format", "minItems", "maxItems", "uniqueItems", "prefixItems", "items", "contains", "minProperties"}
    | {"maxProperties", "required", "properties", "patternProperties", "additionalProperties", "propertyNames"}
    | {"dependentRequired", "dependentSchemas", "unevaluatedItems", "unevaluatedProperties"}
)
COUNTS = frozenset({"minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"})
_BOUNDS = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"})
_DEPENDENT = frozenset({"dependentRequired", "dependentSchemas"})


_ODD = (ValueError, TypeError, AttributeError, LookupError)
"""What the library that follows references raises for identifiers and schemas of wrong types."""


@dataclass(frozen=True, slots=True)
class Scope:
    """What references are resolved against, and the number of the draft."""

    resolver: Any
    draft: int
    dynamic: bool

    @property
    def key(self) -> object:
        """Equal where every reference leads to the same place."""
        base = self.resolver._base_uri
        if not self.dynamic:
            return base
        outer = [uri for uri, _ in self.resolver.dynamic_scope()]
        return (base, *dict.fromkeys(reversed(outer)))

    def inside(self, node: Node) -> Scope:
        """The scope of what stands in `node`, which may name itself or its draft."""
        scope = self
        if isinstance(node.get("$schema"), str):
            scope = replace(scope, draft=draft_of(node, self.draft))
        if "$id" in node and not (scope.draft <= 7 and "$ref" in node):
            try:
                resolver = self.resolver.in_subresource(Resource(node, DRAFT202012))
            except _ODD:
                raise Malformed from None
            scope = replace(scope, resolver=resolver)
        return scope

    def follow(self, keyword: str, reference: str) -> tuple[Any, Scope] | None:
        """The schema that a reference leads to, and its scope; None if there is none within the document."""
        try:
            if keyword == "$recursiveRef":
                found = lookup_recursive_ref(self.resolver)
            else:
                found = self.resolver.lookup(reference)
        except (Unresolvable, *_ODD):
            return None
        return found.contents, replace(self, resolver=found.resolver)


def scope_of(root: Node, *, dynamic: bool) -> Scope:
    """The scope of a document; beside itself it knows the meta-schemas. Raises Malformed."""
    draft = draft_of(root, 2020)
    specification = specification_with(str(root.get("$schema", "")), default=DRAFT202012)
    resource: Resource[Any] = Resource(root, specification)
    registry: SchemaRegistry = _known() if "json-schema.org" in str(root) else Registry[Any]()
    try:
        return Scope(registry.resolver_with_root(resource), draft, dynamic)
    except _ODD:
        raise Malformed from None


def _known() -> SchemaRegistry:
    return cast("SchemaRegistry", import_module("jsonschema_specifications").REGISTRY)


def draft_of(root: Node, default: int) -> int:
    """4, 6, 7, 2019 or 2020."""
    name = root.get("$schema")
    for draft in (4, 6, 7):
        if isinstance(name, str) and f"draft-0{draft}" in name:
            return draft
    return 2019 if isinstance(name, str) and "2019-09" in name else default


def modern(node: Node, draft: int) -> tuple[Node, dict[str, str]]:
    """The assertions of a node, in the spelling of 2020-12, and those that cannot be read, each with the reason.

    `if` holds its `then` and `else`, and `contains` its counts. Raises Malformed.
    """
    said = _spelled({"$ref": node["$ref"]} if draft <= 7 and "$ref" in node else node)
    if "if" in said:
        said["if"] = {key: node[key] for key in ("if", "then", "else") if key in node}
    if "contains" in said:
        counts = {key: _count(node[key]) for key in ("minContains", "maxContains") if key in node and draft >= 2019}
        said["contains"] = {"contains": said["contains"], **counts}
    for keyword in COUNTS & said.keys():
        said[keyword] = _count(said[keyword])
    unread: dict[str, str] = {}
    for keyword, value in list(said.items()):
        why = _unread(keyword, value)
        if why is not None:
            unread[keyword] = why
            del said[keyword]
        elif not _WELL.get(keyword, _any)(value):
            raise Malformed
    return said, unread


def _spelled(node: Node) -> Node:
    said: Node = {}
    for keyword, value in node.items():
        if keyword == "items" and isinstance(value, list):
            said["prefixItems"] = value
            said |= {"items": node["additionalItems"]} if "additionalItems" in node else {}
        elif keyword == "dependencies":
            _split(cast("object", value), said)
        elif keyword in ("exclusiveMinimum", "exclusiveMaximum") and isinstance(value, bool):
            continue
        elif keyword in ("minimum", "maximum") and node.get(f"exclusive{keyword.capitalize()}") is True:
            said[f"exclusive{keyword.capitalize()}"] = value
        elif keyword in _DEPENDENT:
            if not isinstance(value, dict):
                raise Malformed
            said[keyword] = {**said.get(keyword, {}), **value}
        elif keyword in ASSERTIONS:
            said[keyword] = value
    return said


def _split(value: object, said: Node) -> None:
    if not isinstance(value, dict):
        raise Malformed
    for name, need in cast("Node", value).items():
        keyword = "dependentRequired" if isinstance(need, (list, str)) else "dependentSchemas"
        said[keyword] = {**said.get(keyword, {}), name: [need] if isinstance(need, str) else need}


def _unread(keyword: str, value: Any) -> str | None:
    """Why an assertion that stands alone cannot be read."""
    if keyword in COUNTS:
        return "not a count" if value is None else None
    if keyword in _BOUNDS:
        finite = isinstance(value, (int, float)) and not isinstance(value, bool) and _finite(value)
        return None if finite and (keyword != "multipleOf" or value > 0) else "not a finite number"
    if keyword == "type":
        names = cast("list[object]", value) if isinstance(value, list) else [value]
        unknown = [name for name in names if not isinstance(name, str) or name not in TYPES]
        return f"unknown type {unknown[0]!r}" if unknown else None
    if keyword == "required":
        return None if _strings(value) else "not a list of names"
    return None


def _any(value: object) -> bool:
    return True


def _schema(value: object) -> bool:
    return isinstance(value, (dict, bool))


def _strings(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in cast("list[object]", value))


def _count(value: object) -> int | None:
    whole = isinstance(value, (int, float)) and not isinstance(value, bool) and _finite(value)
    return int(cast("float", value)) if whole and cast("float", value) == cast("float", value) // 1 >= 0 else None


def _finite(value: float) -> bool:
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False


def _schemas(value: object) -> bool:
    return isinstance(value, list) and all(map(_schema, cast("list[object]", value)))


def _named_schemas(value: object) -> bool:
    return isinstance(value, dict) and all(map(_schema, cast("Node", value).values()))


def _named_strings(value: object) -> bool:
    return isinstance(value, dict) and all(map(_strings, cast("Node", value).values()))


def _is(kind: type) -> Callable[[object], bool]:
    return lambda value: isinstance(value, kind)


def _counted(value: Any) -> bool:
    return _schema(value["contains"])


_WELL: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("not", "items", "additionalProperties", "propertyNames"), _schema),
    **dict.fromkeys(("unevaluatedItems", "unevaluatedProperties"), _schema),
    **dict.fromkeys(("allOf", "anyOf", "oneOf", "prefixItems"), _schemas),
    **dict.fromkeys(("properties", "patternProperties", "dependentSchemas", "if"), _named_schemas),
    **dict.fromkeys(("$ref", "$dynamicRef", "$recursiveRef", "pattern", "format"), _is(str)),
    "contains": _counted,
    "dependentRequired": _named_strings,
    "enum": _is(list),
}
"""What the values of keywords must be, for a schema to be one."""

"""Combinations written out: a schema as alternatives, each of them keywords that hold at once and what these come to.

allOf, anyOf and references beside other keywords are multiplied out. Values that several keywords speak of become an
`allOf` of their own, which is written out in its turn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import TypeAlias, cast

from m1runtime.grammar.keywords import TYPES, Node, Schema
from m1runtime.grammar.references import References, Unwritable, canonical

Conjunction: TypeAlias = "tuple[Node, ...]"

MAX_ALTERNATIVES = 64

COMBINING = frozenset({"allOf", "anyOf", "oneOf", "$ref"})
NEUTRAL = frozenset({"$defs", "definitions", "$anchor", "id", "contentMediaType", "contentEncoding"})
KNOWN = (
    COMBINING
    | NEUTRAL
    | {"const", "enum", "type", "properties", "required", "additionalProperties", "patternProperties"}
    | {"minProperties", "maxProperties", "items", "prefixItems", "additionalItems", "minItems", "maxItems"}
    | {"minLength", "maxLength", "pattern", "format", "multipleOf"}
    | {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}
)
"""Keywords that llguidance knows or may ignore."""


def alternatives(schema: Schema, references: References, seen: frozenset[str] = frozenset()) -> list[Conjunction]:
    """The schema as a list of conjunctions of schemas without combining keywords. Raises Unwritable."""
    if not isinstance(schema, dict):
        return [()] if schema else []
    own = {keyword: value for keyword, value in schema.items() if keyword not in COMBINING | NEUTRAL}
    factors: list[list[Conjunction]] = [[(own,)] if own else [()]]
    if "$ref" in schema:
        reference = schema["$ref"]
        if reference in seen:
            raise Unwritable(f"reference {reference!r} names itself")
        factors.append(alternatives(references.target(reference), references, seen | {reference}))
    factors += [alternatives(one, references, seen) for one in schema.get("allOf", ())]
    for keyword in ("anyOf", "oneOf"):
        if keyword in schema:
            options = [alternatives(one, references, seen) for one in schema[keyword]]
            factors.append([option for some in options for option in some])
    if math.prod(map(len, factors)) > MAX_ALTERNATIVES:
        raise Unwritable("too many alternatives")
    return [_distinct(sum(choice, ())) for choice in product(*factors)]


def _distinct(nodes: Conjunction) -> Conjunction:
    return tuple({canonical(node): node for node in nodes}.values()) if len(nodes) > 1 else nodes


def both(schemas: Sequence[Schema]) -> Schema:
    """What holds where all of these do."""
    parts = {canonical(one): one for one in schemas if one is not True and one != {}}
    if False in parts.values():
        return False
    values = list(parts.values())
    return True if not values else values[0] if len(values) == 1 else {"allOf": values}


def types_of(nodes: Conjunction) -> frozenset[str]:
    """The types all of these admit; a number may be an integer."""
    admitted = TYPES
    for node in nodes:
        declared = node.get("type")
        if declared is not None:
            names = set(cast("list[str]", declared) if isinstance(declared, list) else [declared])
            admitted &= names | ({"integer"} if "number" in names else set())
    return admitted


def narrowed(nodes: Conjunction, types: frozenset[str]) -> Schema:
    """These schemas for values of `types` alone."""
    return both([{**node, "type": sorted(_without_subtype(types & types_of((node,))))} for node in nodes or ({},)])


def _without_subtype(types: frozenset[str]) -> frozenset[str]:
    return types - {"integer"} if "number" in types else types


@dataclass(frozen=True, slots=True)
class ObjectParts:
    """What conjoined schemas say of an object: each property, those whose names match a pattern, and all others."""

    properties: dict[str, Schema]
    required: frozenset[str]
    patterns: dict[str, Schema]
    others: Schema
    least: int
    most: int | None


@dataclass(frozen=True, slots=True)
class ArrayParts:
    """What conjoined schemas say of an array."""

    prefix: list[Schema] = field(default_factory=list["Schema"])
    items: Schema = True
    least: int = 0
    most: int | None = None


def object_parts(nodes: Conjunction, matches: Callable[[str, str], bool]) -> ObjectParts:
    """The object keywords of all nodes in one; `matches(pattern, name)`. Raises Unwritable."""
    required = [name for node in nodes for name in node.get("required", ())]
    names = dict.fromkeys([name for node in nodes for name in node.get("properties", {})] + required)
    with_patterns = [node for node in nodes if node.get("patternProperties")]
    if len(with_patterns) > 1:
        raise Unwritable("patternProperties in several schemas at once")
    beside = [node.get("additionalProperties", True) for node in nodes if not node.get("patternProperties")]
    patterns = {
        pattern: both([value, *beside])
        for node in with_patterns
        for pattern, value in node["patternProperties"].items()
    }
    return ObjectParts(
        {name: both([part for node in nodes for part in _said_of(name, node, matches)]) for name in names},
        frozenset(required),
        patterns,
        both([node.get("additionalProperties", True) for node in nodes]),
        max((int(node.get("minProperties", 0)) for node in nodes), default=0),
        _least_of([node.get("maxProperties") for node in nodes]),
    )


def _said_of(name: str, node: Node, matches: Callable[[str, str], bool]) -> list[Schema]:
    declared = node.get("properties", {})
    parts: list[Schema] = [declared[name]] if name in declared else []
    parts += [value for pattern, value in node.get("patternProperties", {}).items() if matches(pattern, name)]
    return parts or [node.get("additionalProperties", True)]


def array_parts(nodes: Conjunction) -> ArrayParts:
    """The array keywords of all nodes in one. Raises Unwritable."""
    if any(isinstance(node.get("items"), list) or "additionalItems" in node for node in nodes):
        raise Unwritable("items as a list")
    length = max((len(node.get("prefixItems", ())) for node in nodes), default=0)
    return ArrayParts(
        [both([_item(node, i) for node in nodes]) for i in range(length)],
        both([node.get("items", True) for node in nodes]),
        max((int(node.get("minItems", 0)) for node in nodes), default=0),
        _least_of([node.get("maxItems") for node in nodes]),
    )


def _item(node: Node, i: int) -> Schema:
    prefix = node.get("prefixItems", ())
    return prefix[i] if i < len(prefix) else node.get("items", True)


def _least_of(limits: Sequence[float | None]) -> int | None:
    return min((int(limit) for limit in limits if limit is not None), default=None)

"""The keywords of JSON Schema, by what stands under them, and the steps of JSON pointers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias, cast

Node: TypeAlias = "dict[str, Any]"
Schema: TypeAlias = "dict[str, Any] | bool"

FORMATS = frozenset({"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uri", "uuid"})
"""Formats that the mask enforces; the others are annotations."""
LOOSE_FORMATS = frozenset({"date-time", "time", "date", "hostname"})
"""Of these, those of which the mask holds the shape but not every rule, such as the days of a month."""
STANDARD_FORMATS = FORMATS | {
    "idn-email", "idn-hostname", "iri", "iri-reference", "json-pointer", "regex", "relative-json-pointer",
    "uri-reference", "uri-template",
}  # fmt: skip
"""Those that JSON Schema 2020-12 defines."""
TYPES = frozenset({"null", "boolean", "object", "array", "number", "integer", "string"})
ANNOTATIONS = frozenset(
    {"title", "description", "default", "examples", "example", "deprecated", "readOnly", "writeOnly"}
)
ONES = frozenset(
    {"additionalProperties", "items", "contains", "propertyNames", "not", "if", "then", "else"}
    | {"unevaluatedProperties", "unevaluatedItems", "additionalItems", "contentSchema"}
)
"""Keywords whose value is a schema."""
LISTS = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
"""Keywords whose value is a list of schemas."""
MAPS = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
"""Keywords whose value maps names to schemas."""


def pointer(name: str) -> str:
    """One step of a JSON pointer."""
    return name.replace("~", "~0").replace("/", "~1")


def below(node: object) -> Iterator[tuple[tuple[str, ...], object]]:
    """The schemas directly inside a schema, each with the steps that lead to it."""
    if not isinstance(node, dict):
        return
    for keyword, value in cast("Node", node).items():
        if keyword in MAPS and isinstance(value, dict):
            for name, child in cast("Node", value).items():
                yield (keyword, name), child
        elif keyword in LISTS and isinstance(value, list):
            for i, child in enumerate(cast("list[object]", value)):
                yield (keyword, str(i)), child
        elif keyword in ONES:
            yield (keyword,), value


def places(node: object, path: str = "") -> Iterator[tuple[object, str]]:
    """A schema and all schemas in it, each with its JSON pointer."""
    yield node, path
    for steps, child in below(node):
        yield from places(child, "/".join((path, *map(pointer, steps))))


def nodes(node: object) -> Iterator[object]:
    """A schema and all schemas in it."""
    yield node
    for _, child in below(node):
        yield from nodes(child)

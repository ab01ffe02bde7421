"""The check of a function's arguments, made when its first call needs it.

jsonschema takes longer to import than the rest of this package; a program that only defines tools does without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, cast

from m1agent.messages import JsonSchema

if TYPE_CHECKING:
    from m1agent.validation import ArgumentsSchema, Checked

DEEPEST = 30
LOCAL = "#/$defs/"
TYPES = frozenset({"object", "array", "string", "integer", "number", "boolean", "null"})
TEXTS = frozenset({"title", "description", "format"})
ANYTHING = frozenset({"default", "const"})
NUMBERS = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"})
COUNTS = frozenset({"minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"})
SUBSCHEMA = frozenset({"items", "additionalProperties"})
SUBSCHEMAS = frozenset({"anyOf", "oneOf", "allOf", "prefixItems"})
NAMED = frozenset({"properties", "$defs"})


class Checker(Protocol):
    """What holds a call's arguments against a schema."""

    def check(self, arguments: Mapping[str, Any]) -> Checked:
        """The arguments after coercion, and what is wrong with them."""
        ...


class FunctionArguments:
    """The schema of a function's arguments, which allows no others.

    Raises SchemaError at once where the schema is none: only one that obviously is a schema waits for the first call.
    """

    def __init__(self, schema: JsonSchema) -> None:
        self._schema = schema
        if not is_plain(schema):
            _ = self._made

    @cached_property
    def _made(self) -> ArgumentsSchema:
        from m1agent.validation import ArgumentsSchema

        return ArgumentsSchema(self._schema, closed=True)

    def check(self, arguments: Mapping[str, Any]) -> Checked:
        """Coerce what can safely be coerced and tell every problem left, up to a cap."""
        return self._made.check(arguments)


def is_plain(schema: JsonSchema) -> bool:
    """Whether this surely is a JSON Schema of an object, such as pydantic writes; False where that takes a look."""
    named: Any = schema.get("$defs")
    names = cast("dict[str, Any]", named) if isinstance(named, dict) else {}
    definitions = frozenset(name for name in names if name.isidentifier())
    return schema.get("type", "object") == "object" and _is_plain(schema, definitions, 0)


def _is_plain(schema: Any, definitions: frozenset[str], depth: int) -> bool:
    if isinstance(schema, bool):
        return True
    if not isinstance(schema, dict) or depth > DEEPEST:
        return False
    part = cast("JsonSchema", schema)
    return all(_is_keyword(key, value, definitions, depth) for key, value in part.items())


def _is_keyword(key: str, value: Any, definitions: frozenset[str], depth: int) -> bool:
    if key in TEXTS:
        return isinstance(value, str)
    if key in ANYTHING:
        return True
    if key == "type":
        return isinstance(value, str) and value in TYPES
    if key in NUMBERS:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if key in COUNTS:
        return isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if key in SUBSCHEMA:
        return _is_plain(value, definitions, depth + 1)
    if key == "$ref":
        return isinstance(value, str) and value.startswith(LOCAL) and value.removeprefix(LOCAL) in definitions
    return _is_collection(key, value, definitions, depth)


def _is_collection(key: str, value: Any, definitions: frozenset[str], depth: int) -> bool:
    if key in NAMED:
        if not isinstance(value, dict):
            return False
        return all(_is_plain(part, definitions, depth + 1) for part in cast("dict[str, Any]", value).values())
    if not isinstance(value, list) or not value:
        return False
    items = cast("list[Any]", value)
    if key in SUBSCHEMAS:
        return all(_is_plain(part, definitions, depth + 1) for part in items)
    if key == "required":
        return all(isinstance(item, str) for item in items) and len({*items}) == len(items)
    return key == "enum"

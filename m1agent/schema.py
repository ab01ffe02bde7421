"""JSON Schemas in canonical form, so that the same tool is always the same prompt."""

from __future__ import annotations

import json
from typing import Any, cast

from m1agent.messages import JsonSchema, ToolSpec

# Readers meet a parameter's type and meaning before its details; servers differ in key order between protocol versions.
KEYWORD_ORDER = ("type", "description", "enum", "const", "format", "default", "items", "properties", "required")
DROPPED = frozenset({"title", "$schema"})


def canonical_json(value: Any) -> str:
    """JSON with the separators of the chat template (`", "` and `": "`) and no escapes beyond the needed ones."""
    return json.dumps(value, ensure_ascii=False, separators=(", ", ": "))


def canonical_schema(schema: JsonSchema) -> JsonSchema:
    """`schema` with keywords in one order, without `title`, `$schema` and null defaults; properties keep their order."""
    kept = {key: schema[key] for key in sorted(schema, key=_rank) if _is_shown(key, schema[key])}
    return {key: _canonical_value(key, value) for key, value in kept.items()}


def prompt_json(spec: ToolSpec) -> str:
    """The line that presents a tool in a prompt: name, description, parameters."""
    return canonical_json(
        {"name": spec.name, "description": spec.description, "parameters": canonical_schema(spec.parameters)}
    )


def _rank(keyword: str) -> tuple[int, str]:
    known = KEYWORD_ORDER.index(keyword) if keyword in KEYWORD_ORDER else len(KEYWORD_ORDER)
    return known, keyword


def _is_shown(keyword: str, value: Any) -> bool:
    return not (keyword in DROPPED and isinstance(value, str)) and not (keyword == "default" and value is None)


def _canonical_value(keyword: str, value: Any) -> Any:
    if keyword in ("enum", "const", "default", "required", "examples"):
        return value
    if keyword in ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas"):
        named = cast("dict[str, Any]", value)
        return {name: canonical_schema(sub) if isinstance(sub, dict) else sub for name, sub in named.items()}
    if isinstance(value, dict):
        return canonical_schema(cast("JsonSchema", value))
    if isinstance(value, list):
        items = cast("list[Any]", value)
        return [canonical_schema(cast("JsonSchema", item)) if isinstance(item, dict) else item for item in items]
    return value

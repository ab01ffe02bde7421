"""The data's function descriptions as tools: its types in JSON Schema, its dotted names in names that servers take."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

from m1agent.messages import JsonSchema, ToolSpec

# `any` is left open: the accepted values of such parameters are of several types.
TYPES = {"dict": "object", "float": "number", "tuple": "array", "any": None}
KEPT = ("description", "enum", "default", "format", "minimum", "maximum", "pattern")
NAME = re.compile(r"[^A-Za-z0-9_-]")
LONGEST = 64


def tools_of(functions: Sequence[Mapping[str, Any]]) -> dict[str, ToolSpec]:
    """The functions as tools, each under its name in the data.

    A tool's own name has no dots and at most 64 characters, as OpenAI's API asks for; two never get the same.
    """
    names: dict[str, str] = {}
    for function in functions:
        names[function["name"]] = _free(NAME.sub("_", function["name"])[:LONGEST], set(names.values()))
    return {
        function["name"]: ToolSpec(
            names[function["name"]], function.get("description", ""), schema_of(function["parameters"])
        )
        for function in functions
    }


def schema_of(declared: Mapping[str, Any]) -> JsonSchema:
    """JSON Schema of one declaration. An object with properties has no others: the scoring would refuse them."""
    kind = declared.get("type", "any")
    schema: JsonSchema = {name: declared[name] for name in KEPT if name in declared}
    if (kind := TYPES.get(kind, kind)) is not None:
        schema["type"] = kind
    if "items" in declared:
        schema["items"] = schema_of(declared["items"])
    properties = cast("Mapping[str, Mapping[str, Any]]", declared.get("properties") or {})
    if properties:
        schema["properties"] = {name: schema_of(one) for name, one in properties.items()}
        schema["required"] = [name for name in declared.get("required", ()) if name in properties]
    if properties or "properties" in declared:
        schema["additionalProperties"] = False
    return schema


def _free(name: str, taken: set[str]) -> str:
    number, free = 2, name
    while free in taken:
        free, number = f"{name[: LONGEST - len(str(number)) - 1]}_{number}", number + 1
    return free

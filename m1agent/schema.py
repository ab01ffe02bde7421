"""JSON Schemas: made from functions, and in canonical form, so that the same tool is always the same prompt."""

from __future__ import annotations

import functools
import inspect
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, cast, get_args, get_origin

from pydantic import BaseModel, Field, TypeAdapter, create_model
from pydantic.errors import PydanticSchemaGenerationError, PydanticUserError
from pydantic.fields import FieldInfo
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaWarningKind

from m1agent.context import Context
from m1agent.docstrings import parse_docstring
from m1agent.errors import ToolDefinitionError
from m1agent.messages import JsonSchema, ToolSpec

# Readers meet a parameter's type and meaning before its details; servers differ in key order between protocol versions.
KEYWORD_ORDER = ("type", "description", "enum", "const", "format", "default", "items", "properties", "required")
LITERAL = frozenset({"enum", "const", "default", "required", "examples"})
NAMED = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
DEFINITIONS = "#/$defs/"
DROPPED = frozenset({"title", "$schema"})
REFUSED_KINDS = {
    inspect.Parameter.POSITIONAL_ONLY: "positional-only",
    inspect.Parameter.VAR_POSITIONAL: "variadic (*)",
    inspect.Parameter.VAR_KEYWORD: "variadic (**)",
}


def canonical_json(value: Any) -> str:
    """JSON with the separators of the chat template (`", "` and `": "`) and no escapes beyond the needed ones."""
    return json.dumps(value, ensure_ascii=False, separators=(", ", ": "))


def canonical_schema(schema: JsonSchema) -> JsonSchema:
    """`schema`, keywords in one order, without `title`, `$schema` and null defaults; properties keep their order."""
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
    if keyword in LITERAL:
        return value
    if keyword in NAMED:
        named = cast("dict[str, Any]", value)
        return {
            name: canonical_schema(cast("JsonSchema", sub)) if isinstance(sub, dict) else sub
            for name, sub in named.items()
        }
    if isinstance(value, dict):
        return canonical_schema(cast("JsonSchema", value))
    if isinstance(value, list):
        items = cast("list[Any]", value)
        return [canonical_schema(cast("JsonSchema", item)) if isinstance(item, dict) else item for item in items]
    return value


@dataclass(frozen=True, slots=True)
class FunctionParameters:
    """A function's parameters: their JSON Schema, and the pydantic model that turns JSON into its Python values."""

    schema: JsonSchema
    description: str
    model: type[BaseModel]
    names: tuple[str, ...]
    takes_context: bool = False

    def bind(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Python keyword arguments of a JSON object, defaults filled in.

        Raises:
            pydantic.ValidationError: the arguments do not fit.
        """
        values = self.model.model_validate(dict(arguments))
        return {name: getattr(values, field) for name, field in zip(self.names, self.model.model_fields, strict=True)}


def function_parameters(function: Callable[..., Any]) -> FunctionParameters:
    """The parameters of a function, from its signature, its annotations and its Google-style docstring.

    `Annotated[str, Field(alias="from")]` gives the model a name that Python cannot.

    Raises:
        ToolDefinitionError: a parameter is positional-only, variadic, not annotated, or of a type JSON cannot hold.
    """
    doc = parse_docstring(inspect.getdoc(_unwrapped(function)))
    fields: dict[str, Any] = {}
    names: list[str] = []
    # Fields are numbered and the names are aliases, so that `from`, `json` or `model_config` are names like any other.
    given = list(_annotated(function))
    takes_context = bool(given) and _is_context(given[0][1])
    for number, (parameter, annotation) in enumerate(given[takes_context:]):
        fields[f"p{number}"] = _field(parameter, annotation, doc.parameters.get(parameter.name))
        names.append(parameter.name)
    try:
        model = create_model(function_name(function), **fields)
        schema = model.model_json_schema(schema_generator=_QuietSchema)
    except (PydanticUserError, PydanticSchemaGenerationError, TypeError, ValueError) as error:
        raise _culprit(function) or ToolDefinitionError(f"{function_name(function)}: {_first_line(error)}") from error
    schema.pop("description", None)
    return FunctionParameters(canonical_schema(inlined(schema)), doc.description, model, tuple(names), takes_context)


def inlined(schema: JsonSchema) -> JsonSchema:
    """`schema` with every definition that is used once put where it is used; the others stay in `$defs`."""
    definitions = cast("dict[str, JsonSchema]", schema.get("$defs", {}))
    text = json.dumps(schema)
    once = {DEFINITIONS + name: part for name, part in definitions.items() if text.count(f'"{DEFINITIONS}{name}"') == 1}
    kept = {name: part for name, part in definitions.items() if DEFINITIONS + name not in once}
    bare = {key: value for key, value in schema.items() if key != "$defs"}
    return _with_definitions({**bare, "$defs": kept} if kept else bare, once)


def _with_definitions(value: Any, definitions: Mapping[str, JsonSchema]) -> Any:
    if isinstance(value, list):
        return [_with_definitions(item, definitions) for item in cast("list[Any]", value)]
    if not isinstance(value, dict):
        return value
    part = cast("JsonSchema", value)
    reference = part.get("$ref")
    if isinstance(reference, str) and reference in definitions:
        part = definitions[reference] | {key: item for key, item in part.items() if key != "$ref"}
    return {key: _keyword_with_definitions(key, item, definitions) for key, item in part.items()}


def _keyword_with_definitions(keyword: str, value: Any, definitions: Mapping[str, JsonSchema]) -> Any:
    if keyword in LITERAL:
        return value
    if keyword in NAMED and isinstance(value, dict):
        named = cast("dict[str, Any]", value)
        return {name: _with_definitions(sub, definitions) for name, sub in named.items()}
    return _with_definitions(value, definitions)


def function_name(function: Callable[..., Any]) -> str:
    """What a function is called, also when it is a partial or a callable object."""
    inner = _unwrapped(function)
    return getattr(inner, "__name__", type(inner).__name__)


def _unwrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    return function.func if isinstance(function, functools.partial) else function


class _QuietSchema(GenerateJsonSchema):
    def emit_warning(self, kind: JsonSchemaWarningKind, detail: str) -> None:
        """A default that JSON cannot hold is left out of the schema; the function still has it."""


def _annotated(function: Callable[..., Any]) -> Iterator[tuple[inspect.Parameter, Any]]:
    name = function_name(function)
    try:
        parameters = inspect.signature(function, eval_str=True).parameters.values()
    except NameError as error:
        raise ToolDefinitionError(f"{name}: {error} in an annotation; define that type at module level") from error
    except (TypeError, ValueError) as error:
        raise ToolDefinitionError(f"{name}: {error}; wrap it in a typed function") from error
    for parameter in parameters:
        if parameter.kind in REFUSED_KINDS:
            raise ToolDefinitionError(
                f"{name}: parameter '{parameter.name}' is {REFUSED_KINDS[parameter.kind]}; "
                "a model passes arguments by name, so give every parameter a name of its own"
            )
        if parameter.annotation is parameter.empty:
            raise ToolDefinitionError(f"{name}: parameter '{parameter.name}' has no type; {_remedy(parameter.name)}")
        yield parameter, parameter.annotation


def _is_context(annotation: Any) -> bool:
    return annotation is Context or get_origin(annotation) is Context


def _holds_context(annotation: Any) -> bool:
    return _is_context(annotation) or any(map(_holds_context, get_args(annotation)))


def _remedy(parameter: str) -> str:
    if parameter in ("self", "cls"):
        return "make a tool of the bound method instead: tool(instance.method)"
    return f"annotate it, for example '{parameter}: str'"


def _field(parameter: inspect.Parameter, annotation: Any, description: str | None) -> tuple[Any, Any]:
    given = [item for item in getattr(annotation, "__metadata__", ()) if isinstance(item, FieldInfo)]
    name = next((item.alias for item in given if item.alias), parameter.name)
    if description is None or any(item.description for item in given):
        info = Field(alias=name, validation_alias=name)
    else:
        info = Field(alias=name, validation_alias=name, description=description)
    return Annotated[annotation, info], ... if parameter.default is parameter.empty else parameter.default


def _culprit(function: Callable[..., Any]) -> ToolDefinitionError | None:
    """Which parameter a schema could not be made of; found by trying them one by one."""
    for parameter, annotation in _annotated(function):
        if _holds_context(annotation):
            return ToolDefinitionError(
                f"{function_name(function)}: '{parameter.name}' is a Context, which must be the first parameter, "
                "annotated 'Context' or 'Context[Deps]' alone"
            )
        try:
            TypeAdapter(annotation).json_schema(schema_generator=_QuietSchema)
        except (PydanticUserError, PydanticSchemaGenerationError, TypeError, ValueError) as error:
            return ToolDefinitionError(
                f"{function_name(function)}: parameter '{parameter.name}' has a type that JSON cannot hold "
                f"({_first_line(error)}); use str, int, float, bool, list, dict, Literal, an Enum, a dataclass, "
                "a TypedDict or a pydantic model"
            )
    return None


def _first_line(error: Exception) -> str:
    return re.split(r"\n|\. (?=Set )", str(error))[0].strip()

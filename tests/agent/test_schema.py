from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from enum import Enum
from typing import Annotated, Any, Literal, Optional

import pytest
from jsonschema import Draft202012Validator
from pydantic import BaseModel, Field
from typing_extensions import TypedDict

from m1agent.docstrings import parse_docstring
from m1agent.errors import ToolDefinitionError
from m1agent.messages import ToolSpec
from m1agent.schema import canonical_json, canonical_schema, function_parameters, prompt_json

OPERATIONS = ["add", "subtract", "derivative", "integral"]


def calculate_math(expression: str, operation: Literal["add", "subtract", "derivative", "integral"]) -> str:
    """Perform mathematical calculations.

    Args:
        expression: Mathematical expression to evaluate.
        operation: Type of mathematical operation.
    """
    return f"{operation} {expression}"


class Color(Enum):
    RED = "red"
    BLUE = "blue"


class Point(BaseModel):
    """A place on the plane."""

    x: float
    y: float = 0.0


@dataclass
class Box:
    corner: Point
    colors: list[Color]


class Options(TypedDict, total=False):
    limit: int
    order: Literal["up", "down"]


class Tree(BaseModel):
    value: int
    children: list[Tree] = []


def properties(function: Callable[..., Any]) -> dict[str, Any]:
    schema = function_parameters(function).schema
    Draft202012Validator.check_schema(schema)
    return schema["properties"]


def test_the_schema_of_the_design() -> None:
    parameters = function_parameters(calculate_math)
    expected = {
        "type": "object",
        "properties": {
            "expression": {"type": "string", "description": "Mathematical expression to evaluate."},
            "operation": {
                "type": "string",
                "description": "Type of mathematical operation.",
                "enum": ["add", "subtract", "derivative", "integral"],
            },
        },
        "required": ["expression", "operation"],
    }
    assert canonical_json(canonical_schema(parameters.schema)) == canonical_json(expected)
    assert canonical_json(parameters.schema) == canonical_json(expected)
    assert parameters.description == "Perform mathematical calculations."


def test_types_become_schemas() -> None:
    def f(
        a: int,
        b: float | None,
        c: Color,
        d: Point,
        e: Box,
        g: Options,
        h: list[Literal["x", "y"]],
        i: dict[str, int],
        k: Annotated[int, Field(ge=1, le=9, description="One digit.")],
        l: date,
        m: tuple[int, str],
        n: Literal["only"],
        o: Optional[str] = None,  # noqa: UP045
        p: bool = True,
        q: int | str = 3,
    ) -> None: ...

    assert properties(f) == {
        "a": {"type": "integer"},
        "b": {"anyOf": [{"type": "number"}, {"type": "null"}]},
        "c": {"$ref": "#/$defs/Color"},
        "d": {"$ref": "#/$defs/Point"},
        "e": {
            "type": "object",
            "properties": {
                "corner": {"$ref": "#/$defs/Point"},
                "colors": {"type": "array", "items": {"$ref": "#/$defs/Color"}},
            },
            "required": ["corner", "colors"],
        },
        "g": {
            "type": "object",
            "properties": {"limit": {"type": "integer"}, "order": {"type": "string", "enum": ["up", "down"]}},
        },
        "h": {"type": "array", "items": {"type": "string", "enum": ["x", "y"]}},
        "i": {"type": "object", "additionalProperties": {"type": "integer"}},
        "k": {"type": "integer", "description": "One digit.", "maximum": 9, "minimum": 1},
        "l": {"type": "string", "format": "date"},
        "m": {
            "type": "array",
            "maxItems": 2,
            "minItems": 2,
            "prefixItems": [{"type": "integer"}, {"type": "string"}],
        },
        "n": {"type": "string", "const": "only"},
        "o": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "p": {"type": "boolean", "default": True},
        "q": {"default": 3, "anyOf": [{"type": "integer"}, {"type": "string"}]},
    }
    schema = function_parameters(f).schema
    assert set(schema["$defs"]) == {"Color", "Point"}
    assert schema["required"] == list("abcdeghiklmn")


def test_a_definition_used_once_stands_where_it_is_used() -> None:
    def f(color: Color, at: Point) -> None:
        """Paint.

        Args:
            color: Which.
        """

    assert function_parameters(f).schema == {
        "type": "object",
        "properties": {
            "color": {"type": "string", "description": "Which.", "enum": ["red", "blue"]},
            "at": {
                "type": "object",
                "description": "A place on the plane.",
                "properties": {"x": {"type": "number"}, "y": {"type": "number", "default": 0.0}},
                "required": ["x"],
            },
        },
        "required": ["color", "at"],
    }


def test_definitions_reach_parameters_called_like_keywords() -> None:
    def f(default: Point, enum: Color, properties: list[Tree]) -> None: ...

    found = properties(f)
    assert found["default"]["required"] == ["x"] and found["enum"]["enum"] == ["red", "blue"]
    assert found["properties"] == {"type": "array", "items": {"$ref": "#/$defs/Tree"}}


def test_a_recursive_model_keeps_its_definition() -> None:
    def f(tree: Tree) -> None: ...

    schema = function_parameters(f).schema
    assert schema["properties"]["tree"] == {"$ref": "#/$defs/Tree"}
    assert schema["$defs"]["Tree"]["properties"]["children"]["items"] == {"$ref": "#/$defs/Tree"}


def test_bound_values_are_python_values() -> None:
    def f(color: Color, box: Box, day: date, options: Options | None = None) -> None: ...

    given = {"color": "red", "box": {"corner": {"x": 1}, "colors": ["blue"]}, "day": "2026-01-02"}
    assert function_parameters(f).bind(given) == {
        "color": Color.RED,
        "box": Box(Point(x=1), [Color.BLUE]),
        "day": date(2026, 1, 2),
        "options": None,
    }


AWKWARD = ["schema", "model_config", "copy", "json", "dict", "validate", "model_fields", "_private", "__dunder", "type"]


@pytest.mark.parametrize("name", AWKWARD)
def test_any_parameter_name_will_do(name: str) -> None:
    scope: dict[str, Any] = {}
    exec(f"def f({name}: int, *, other: str = 'x'): return {name}, other", scope)
    parameters = function_parameters(scope["f"])
    assert list(parameters.schema["properties"]) == [name, "other"]
    assert scope["f"](**parameters.bind({name: 7})) == (7, "x")


def test_an_alias_gives_a_name_that_python_cannot() -> None:
    def f(from_: Annotated[str, Field(alias="from")]) -> str:
        return from_

    parameters = function_parameters(f)
    assert list(parameters.schema["properties"]) == ["from"]
    assert f(**parameters.bind({"from": "x"})) == "x"


def test_no_parameters() -> None:
    def f() -> None: ...

    assert function_parameters(f).schema == {"type": "object", "properties": {}}


def test_a_default_that_json_cannot_hold_stays_with_the_function() -> None:
    marker = object()

    def f(x: Any = marker) -> Any:
        return x

    parameters = function_parameters(f)
    assert parameters.schema["properties"] == {"x": {}}
    assert parameters.bind({}) == {"x": marker}


def test_bound_methods_and_partials() -> None:
    class Shop:
        def buy(self, item: str, count: int = 1) -> str:
            return f"{count} {item}"

    assert list(properties(Shop().buy)) == ["item", "count"]
    fixed = functools.partial(calculate_math, operation="add")
    assert function_parameters(fixed).schema["required"] == ["expression"]
    assert function_parameters(fixed).description == "Perform mathematical calculations."


class Opaque: ...


def _refused() -> dict[str, tuple[Callable[..., Any], str]]:
    def positional(x: int, /) -> None: ...
    def star(*rest: int) -> None: ...
    def stars(**rest: int) -> None: ...
    def bare(x) -> None: ...  # type: ignore[no-untyped-def]
    def method(self, x: int) -> None: ...  # type: ignore[no-untyped-def]
    def opaque(a: int, thing: Opaque) -> None: ...
    def function(run: Callable[[int], int]) -> None: ...
    def unknown(x: Nowhere) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    return {
        "positional": (positional, "positional: parameter 'x' is positional-only; a model passes arguments by name"),
        "star": (star, "star: parameter 'rest' is variadic (*); a model passes arguments by name"),
        "stars": (stars, "stars: parameter 'rest' is variadic (**); a model passes arguments by name"),
        "bare": (bare, "bare: parameter 'x' has no type; annotate it, for example 'x: str'"),
        "method": (method, "method: parameter 'self' has no type; make a tool of the bound method instead: tool("),
        "opaque": (opaque, "opaque: parameter 'thing' has a type that JSON cannot hold ("),
        "function": (function, "function: parameter 'run' has a type that JSON cannot hold ("),
        "unknown": (unknown, "unknown: name 'Nowhere' is not defined in an annotation; define that type at module"),
    }


@pytest.mark.parametrize("name", _refused())
def test_what_cannot_be_a_tool_is_refused_with_a_remedy(name: str) -> None:
    function, text = _refused()[name]
    with pytest.raises(ToolDefinitionError) as caught:
        function_parameters(function)
    assert str(caught.value).startswith(text)


DOCSTRING = """Find a book.

    Looks in the catalogue first,
    then in the store room.

    Args:
        title (str): The title,
            or a part of it: "Moby".

            Case does not matter.
        *authors: Who wrote it.
        limit (int, optional): At most
          so many.
        empty:
        10 books: no entry

    Returns:
        title: not a parameter.

    Raises:
        KeyError: no book.

    Example:
        >>> find("x")
    """


def test_docstrings_of_the_google_convention() -> None:
    doc = parse_docstring(DOCSTRING)
    assert doc.description == "Find a book.\nLooks in the catalogue first, then in the store room."
    assert doc.parameters == {
        "title": 'The title, or a part of it: "Moby". Case does not matter.',
        "authors": "Who wrote it.",
        "limit": "At most so many.",
        "empty": "10 books: no entry",
    }


@pytest.mark.parametrize(
    "text", [None, "", "\n  \n", "Just words: and more.", "Args:", "Args:\n\nReturns:\n  x", "x\n-"]
)
def test_docstrings_of_no_convention(text: str | None) -> None:
    doc = parse_docstring(text)
    assert doc.parameters == {}
    assert doc.description in ("", "Just words: and more.", "x -")


def test_canonical_form_forgets_the_order_of_keywords_but_not_of_properties() -> None:
    one = {
        "type": "object",
        "title": "T",
        "properties": {"b": {"type": "string", "default": None}, "a": {"title": "A"}},
    }
    two = {"properties": {"b": {"default": None, "type": "string"}, "a": {}}, "type": "object", "$schema": "draft"}
    parameters = '{"type": "object", "properties": {"b": {"type": "string"}, "a": {}}}'
    text = f'{{"name": "t", "description": "d", "parameters": {parameters}}}'
    assert prompt_json(ToolSpec("t", "d", one)) == prompt_json(ToolSpec("t", "d", two)) == text


def test_canonical_form_keeps_properties_called_like_keywords() -> None:
    schema = {"type": "object", "properties": {"title": {"type": "string"}, "default": {"type": "null"}}}
    assert canonical_schema(schema) == schema

"""Checks of function arguments are made late, but a schema that is none is told at once."""

from __future__ import annotations

import subprocess
import sys
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field, TypeAdapter

from m1agent.arguments import FunctionArguments, is_plain
from m1agent.errors import SchemaError, ToolDefinitionError
from m1agent.tools import tool
from m1agent.validation import ArgumentsSchema


class Tree(BaseModel):
    value: Annotated[int, Field(ge=0, le=9)] = 1
    children: list[Tree] = Field(default=[], max_length=3)


class Order(BaseModel):
    """What is wanted."""

    kind: Literal["a", "b"] = "a"
    note: str | None = Field(None, max_length=20, description="In words.")
    tree: Tree
    sizes: dict[str, float]
    pair: tuple[int, str]


@pytest.mark.parametrize("kind", [Tree, Order])
def test_what_pydantic_writes_is_plain_and_checked_the_same(kind: Any) -> None:
    schema = TypeAdapter(kind).json_schema()
    schema = {**schema, "type": "object", "properties": schema.get("properties", {})} | {
        key: schema[key] for key in ("$defs",) if key in schema
    }
    assert is_plain(schema)
    wrong = {"tree": {"value": "many"}, "other": 1}
    assert FunctionArguments(schema).check(wrong) == ArgumentsSchema(schema, closed=True).check(wrong)


NAMES = st.sampled_from(["a", "b", "c d", "t/u", "%41"])
SCALARS = st.none() | st.booleans() | st.integers(-3, 3) | st.floats(-2, 2) | st.text("ab", max_size=3)
TYPES = st.sampled_from(["object", "object", "array", "string", "integer", "null", ["string", "null"]])


def mostly(good: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """What belongs there, and now and then what does not."""
    return st.integers(0, 19).flatmap(lambda number: good if number else SCALARS)


def keywords(parts: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Schemas, and much that is nearly one."""
    named = st.dictionaries(NAMES, parts, max_size=3)
    known = {
        "type": mostly(TYPES),
        "properties": mostly(named),
        "required": mostly(st.lists(NAMES, max_size=3, unique=True)),
        "enum": mostly(st.lists(SCALARS, min_size=1, max_size=3)),
        "anyOf": mostly(st.lists(parts, min_size=1, max_size=3)),
        "items": mostly(parts),
        "additionalProperties": mostly(parts),
        "minLength": mostly(st.integers(0, 3)),
        "maximum": mostly(st.integers()),
        "description": mostly(st.text("ab")),
        "$ref": mostly(st.sampled_from(["#/$defs/a", "#/$defs/b", "#/$defs/%41", "#/$defs/c d", "#/$defs/t/u", "#/"])),
        "$defs": mostly(named),
        "pattern": mostly(st.sampled_from(["a", "a+"])),
        "default": SCALARS | parts,
    }
    return st.sets(st.sampled_from(sorted(known)), max_size=3).flatmap(
        lambda keys: st.fixed_dictionaries({key: known[key] for key in sorted(keys)})
    )


SCHEMAS = st.recursive(st.booleans() | st.just({}), keywords, max_leaves=8).filter(lambda one: isinstance(one, dict))


@settings(max_examples=400, deadline=None)
@given(SCHEMAS)
def test_a_plain_schema_is_always_a_schema(schema: Any) -> None:
    try:
        ArgumentsSchema(schema, closed=True)
    except SchemaError:
        assert not is_plain(schema)
        with pytest.raises(SchemaError):
            FunctionArguments(schema)


def test_a_schema_written_by_hand_that_is_none_is_told_when_the_tool_is_made() -> None:
    def broken(a: Annotated[int, Field(json_schema_extra={"type": "strin"})]) -> int:
        """Has a schema of its own."""
        return a

    with pytest.raises((SchemaError, ToolDefinitionError), match="not a JSON Schema"):
        tool(broken)


def test_a_program_that_only_defines_tools_does_without_jsonschema() -> None:
    program = """
import sys
from m1agent import Agent, tool
@tool
def add(a: int, b: int | None = None) -> int:
    '''Add.'''
    return a
assert not {"jsonschema", "mcp", "torch", "anyio.to_thread"} & set(sys.modules)
assert add.validate({"a": "1"}).arguments == {"a": 1}
assert "jsonschema" in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)

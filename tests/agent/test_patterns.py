"""Schemas of others are checked in bounded time, whatever they hold."""

from __future__ import annotations

from typing import Any

import pytest

from m1agent.errors import SchemaError
from m1agent.patterns import BadPattern, TooSlow, compiled, matches
from m1agent.validation import TOO_SLOW, ArgumentsSchema

SLOW = r"^(?=(a|aa)+$)"
TEXT = "a" * 60 + "!"


def arguments(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


@pytest.mark.parametrize(
    ("pattern", "fits", "does_not"),
    [
        ("b", "abc", "acd"),
        (r"^\p{Lu}\p{Ll}+$", "Ärger", "ärger"),
        (r"^(?!\.)[\w.]+@\w+\.[a-z]{2,}$", "ada@example.org", ".ada@example.org"),
        (r"^(\w)\w*\1$", "level", "lever"),
        (r"^(?<year>\d{4})-\d\d$", "2026-11", "26-11"),
        (r"^(a+)+$", "a" * 60, TEXT),
    ],
)
def test_patterns_of_every_kind(pattern: str, fits: str, does_not: str) -> None:
    assert matches(pattern, fits) and not matches(pattern, does_not)


@pytest.mark.parametrize(
    "pattern", ["[", "(?P<", "(?:(?:a{1000}){1000}){1000}", "(?=(?:(?:a{1000}){1000}){1000})", "*"]
)
def test_no_patterns(pattern: str) -> None:
    with pytest.raises(BadPattern):
        compiled(pattern)
    with pytest.raises(SchemaError, match="pattern"):
        ArgumentsSchema(arguments(a={"type": "string", "pattern": pattern}))


def test_a_pattern_that_backtracks_for_ever_is_stopped() -> None:
    with pytest.raises(TooSlow):
        matches(SLOW, TEXT, 0.05)


@pytest.mark.parametrize(
    "schema",
    [
        arguments(a={"type": "string", "pattern": SLOW}),
        {"type": "object", "patternProperties": {SLOW: True}},
        {"type": "object", "patternProperties": {SLOW: True}, "additionalProperties": False},
        {"type": "object", "patternProperties": {SLOW: True}, "additionalProperties": {"type": "integer"}},
        {"type": "object", "propertyNames": {"pattern": SLOW}},
        {"$schema": "http://json-schema.org/draft-07/schema#", **arguments(a={"type": "string", "pattern": SLOW})},
        arguments(a={"$schema": "https://json-schema.org/draft/2020-12/schema", "type": "string", "pattern": SLOW})
        | {"$schema": "https://json-schema.org/draft/2020-12/schema"},
    ],
)
def test_wherever_it_stands(schema: dict[str, Any]) -> None:
    assert ArgumentsSchema(schema).check({"a": TEXT, TEXT: 1}).problems == (TOO_SLOW,)


@pytest.mark.parametrize("dialect", ["", "http://json-schema.org/draft-07/schema#"])
def test_references_that_double_at_every_step_are_stopped(dialect: str) -> None:
    steps = {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(40)}
    schema = {"$defs": {**steps, "d40": {}}, **arguments(a={"$ref": "#/$defs/d0"})}
    if dialect:
        schema["$schema"] = dialect
    assert ArgumentsSchema(schema).check({"a": 1}).problems == (TOO_SLOW,)


def test_additional_properties_as_before() -> None:
    checker = ArgumentsSchema(
        arguments(a={"type": "integer"})
        | {"patternProperties": {"^x-": {"type": "string"}}, "additionalProperties": False}
    )
    assert checker.check({"a": 1, "x-b": "c"}).problems == ()
    assert checker.check({"a": 1, "x-b": 2, "c": 3}).problems == (
        "x-b: expected string, got 2. Put it in quotes.",
        "c: unknown argument. Allowed: a.",
    )
    open_to = ArgumentsSchema({"type": "object", "additionalProperties": {"type": "integer"}})
    assert open_to.check({"a": "7"}).arguments == {"a": 7}
    assert open_to.check({"a": "x"}).problems == ('a: expected integer, got the string "x".',)


def test_schemas_that_cannot_be_checked_in_bounded_time_are_refused() -> None:
    nested: dict[str, Any] = {"type": "string"}
    for _ in range(200):
        nested = arguments(a=nested)
    with pytest.raises(SchemaError, match="nested too deeply"):
        ArgumentsSchema(nested)
    with pytest.raises(SchemaError, match="unevaluatedProperties together with patternProperties"):
        ArgumentsSchema({"type": "object", "patternProperties": {"a": True}, "unevaluatedProperties": False})
    with pytest.raises(SchemaError, match="different drafts"):
        ArgumentsSchema(arguments(a={"$schema": "http://json-schema.org/draft-07/schema#"}))

"""Names of open objects: none comes twice, none slips past its declaration by an escaped spelling."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from benchmarks.bytewise import BYTES, END, draw, takes
from benchmarks.fuzz import flaw
from m1runtime.grammar import Grammar, ToolGrammar
from m1runtime.grammar.names import open_objects

INTEGER = {"type": "integer"}
A = {"properties": {"a": INTEGER}, "type": "object"}
SCHEMAS: list[dict[str, Any]] = [
    A,
    A | {"additionalProperties": {"type": "boolean"}},
    A | {"required": ["a"], "patternProperties": {"^z": {"type": "null"}}},
    A | {"patternProperties": {"^z": INTEGER}, "additionalProperties": {"type": "string", "maxLength": 2}},
    {"type": "object", "patternProperties": {"^[az]$": INTEGER}, "additionalProperties": False},
    {"type": "object", "additionalProperties": A},
    {"type": "array", "items": A, "minItems": 2, "maxItems": 3},
    {"allOf": [A, {"type": "object", "properties": {"u": {"type": "boolean"}}}]},
    {"anyOf": [A | {"required": ["a"]}, {"type": "object", "properties": {"z": {"type": "null"}}, "required": ["z"]}]},
    {"$defs": {"n": A | {"additionalProperties": {"$ref": "#/$defs/n"}}}, "$ref": "#/$defs/n"},
    {"type": "object", "properties": {"a": {"type": "object"}, "z": {}}},
    {"type": "object", "properties": {"a\n": INTEGER, '"a': INTEGER, "/": INTEGER, "é": INTEGER}},
]
CLOSED: list[dict[str, Any]] = [
    A | {"additionalProperties": False},
    {"type": "array", "items": A | {"additionalProperties": False}},
    {"anyOf": [{"type": "string"}, {"type": ["null", "integer"]}]},
    {"$defs": {"n": {"enum": [{"x": 1}]}}, "type": "array", "items": {"$ref": "#/$defs/n"}},
]


NAMING = frozenset((*b'"\\u0061a,z:{}[] 1', END))
"""Of a model that likes to repeat names and to spell them with escapes."""


@pytest.mark.parametrize("schema", [*SCHEMAS, *CLOSED], ids=range(len(SCHEMAS) + len(CLOSED)))
def test_walks_satisfy_the_schema_and_name_nothing_twice(schema: dict[str, Any]) -> None:
    grammar = Grammar.from_json_schema(schema)
    assert grammar.reports[0].enforced
    random = Random(0)
    least = grammar.start(BYTES, max_new_tokens=1000).min_tokens
    for budget in [*range(least, least + 30), *[120] * 10]:
        text = draw(grammar, budget, random, NAMING)
        assert text is not None, "cut"
        assert not flaw(schema, text), text


@pytest.mark.parametrize("mode", ["auto", "required"])
def test_calls_name_nothing_twice(mode: Any) -> None:
    tools = [ToolGrammar("f", {"type": "object"}), ToolGrammar("g", A | {"additionalProperties": INTEGER})]
    grammar = Grammar.tool_calls(tools, mode=mode)
    for arguments, taken in (
        ('"f", "arguments": {"z": {"z": 1, "a": [{"a": 1}, {"a": 2}]}}', True),
        ('"f", "arguments": {"z": 1, "z": 2}', False),
        ('"f", "arguments": {"z": {"a": 1, "\\u0061": 2}}', False),
        ('"g", "arguments": {"a": 1, "z": 2}', True),
        ('"g", "arguments": {"a": 1, "z": 2, "z": 2}', False),
        ('"g", "arguments": {"a": 1, "\\u0061": 2}', False),
    ):
        assert takes(grammar, f'<tool_calls>\n{{"name": {arguments}}}\n</tool_calls>') is taken, arguments


def test_two_spellings_of_one_name_are_one_name() -> None:
    grammar = Grammar.from_json_schema({"type": "object"})
    assert takes(grammar, '{"\\n": 1, "\\\\n": 1, "n": 1, "\\t": "\\u0001"}')
    assert not takes(grammar, '{"\\n": 1, "\\u000a": 2}')


def test_a_name_is_refused_where_only_used_ones_can_follow() -> None:
    schema = {"type": "object", "patternProperties": {"^[az]$": INTEGER}, "additionalProperties": False}
    grammar = Grammar.from_json_schema(schema)
    assert takes(grammar, '{"a": 1, "z": 2}')
    assert not takes(grammar, '{"a": 1, "z": 2, ')
    constraint = grammar.start(BYTES, max_new_tokens=100)
    assert all(constraint.try_accept(b, 90) for b in b'{"a": 1, "z": 2')
    assert not constraint.try_accept(ord(","), 90) and constraint.try_accept(ord("}"), 90)


def test_what_only_escapes_can_write_is_kept_and_the_hole_reported() -> None:
    schema = {"type": "object", "properties": {"a": {"enum": ["\x01"]}}}
    (report,) = Grammar.from_json_schema(schema).reports
    assert [(item.path, item.keyword) for item in report.unenforced] == [("", "properties")]
    assert takes(Grammar.from_json_schema(schema), '{"a": "\\u0001"}')


def test_where_names_can_be_made_up() -> None:
    assert [open_objects(schema) for schema in CLOSED] == [False] * len(CLOSED)
    assert [open_objects(schema) for schema in SCHEMAS] == [True] * len(SCHEMAS)


def test_each_object_that_escapes_could_slip_past_is_reported_where_it_stands() -> None:
    inner = {"type": "object", "properties": {"x": {"const": "\x02"}}}
    schema = {"anyOf": [{"type": "array", "items": inner}, {"type": "object", "properties": {"a/b": inner}}]}
    (report,) = Grammar.from_json_schema(schema).reports
    assert [item.path for item in report.unenforced] == ["/anyOf/0/items", "/anyOf/1", "/anyOf/1/properties/a~1b"]

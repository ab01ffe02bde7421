"""What of a schema the grammar enforces, what it reports, and that one bad tool leaves its siblings alone."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import pytest
from llguidance import LLMatcher

from benchmarks.bytewise import BYTES, ROOMY, draw, takes
from m1runtime.errors import SchemaError
from m1runtime.grammar import Grammar, ToolGrammar
from m1runtime.grammar.keywords import FORMATS

GOOD = ToolGrammar("good", {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]})


def call(name: str, arguments: object) -> str:
    return f"<tool_calls>\n{json.dumps({'name': name, 'arguments': arguments}, ensure_ascii=False)}\n</tool_calls>"


def beside_good(schema: Any) -> Grammar:
    """The schema's tool and a good one; the good one must work whatever the schema is."""
    grammar = Grammar.tool_calls([ToolGrammar("tool", schema), GOOD], mode="required")
    assert [report.name for report in grammar.reports] == ["tool", "good"]
    assert grammar.reports[1].enforced
    assert takes(grammar, call("good", {"x": 7})) and not takes(grammar, call("good", {"x": "7"}))
    return grammar


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


@pytest.mark.parametrize(
    ("schema", "lost"),
    [
        ({"properties": {"a": {"type": "array", "uniqueItems": True}}}, [("/properties/a", "uniqueItems")]),
        ({"properties": {"a": {"not": {"pattern": "x"}}}}, [("/properties/a", "not")]),
        ({"properties": {"a/b": {"pattern": "(?=x)y", "type": "string"}}}, [("/properties/a~1b", "pattern")]),
        ({"type": "dict", "properties": {"a": {"type": "any"}}}, [("", "type"), ("/properties/a", "type")]),
        ({"properties": {"a": {"$ref": "https://example.org/x"}}}, [("/properties/a", "$ref")]),
        ({"properties": {"a": {"maximum": 10**400}}}, [("/properties/a", "maximum")]),
        (
            {"properties": {key: {} for key in "abcdefgh"}, "maxProperties": 3, "additionalProperties": {}},
            [("", "maxProperties")],
        ),
        ({"properties": {"a": {"minLength": 10**6, "type": "string"}}}, [("/properties/a", "minLength")]),
        ({"if": {"propertyNames": {"pattern": "^x"}}, "then": {"required": ["xa"]}}, [("", "if")]),
        ({"properties": {"a": {"contains": {"type": "null"}}}}, [("/properties/a", "contains")]),
    ],
)
def test_a_keyword_that_cannot_be_enforced_is_reported_where_it_stands(
    schema: Any, lost: list[tuple[str, str]]
) -> None:
    report = beside_good(schema).reports[0]
    assert [(item.path, item.keyword) for item in report.unenforced] == lost
    assert all(item.why for item in report.unenforced) and not report.enforced


@pytest.mark.parametrize(
    "schema",
    [
        *(nested(10_000), 7, None, "x", [], False, {"properties": {"a": 5}}, {"required": "a"}, {"enum": []}),
        {"properties": {f"p{i}": {} for i in range(2000)}},
        {"type": "object", "required": ["a"], "additionalProperties": False},
    ],
    ids=range(11),
)
def test_a_tool_nobody_can_compile_becomes_a_free_object(schema: Any) -> None:
    grammar = beside_good(schema)
    assert [(item.path, item.keyword) for item in grammar.reports[0].unenforced] == [("", "*")]
    assert takes(grammar, call("tool", {"anything": [1, None]})) and not takes(grammar, call("tool", [1]))


def test_deep_and_wide_schemas_compile() -> None:
    assert beside_good(nested(40)).reports[0].enforced
    entries = [f"entry {i}" for i in range(10_000)]
    grammar = beside_good({"properties": {"e": {"enum": entries}}, "required": ["e"]})
    assert grammar.reports[0].enforced
    assert takes(grammar, call("tool", {"e": "entry 9999"})) and not takes(grammar, call("tool", {"e": "entry 10000"}))


def test_an_unknown_format_is_an_annotation_and_the_known_ones_compile() -> None:
    report = beside_good({"properties": {"a": {"type": "string", "format": "color"}}}).reports[0]
    assert report.enforced
    for name in FORMATS:
        text = json.dumps({"type": "string", "format": name})
        assert LLMatcher.validate_grammar(LLMatcher.grammar_from_lark(f"start: %json {text}")) == ""


@pytest.mark.parametrize(
    ("schema", "open_"),
    [
        ({"properties": {"a": {}}}, False),
        ({"properties": {}}, False),
        ({"type": "object"}, True),
        ({}, True),
        (True, True),
        ({"properties": {"a": {}}, "additionalProperties": True}, True),
        ({"properties": {"a": {}}, "additionalProperties": {"type": "integer"}}, True),
        ({"properties": {"a": {}}, "additionalProperties": False}, False),
        ({"properties": {"a": {}}, "patternProperties": {"^z": {}}}, True),
    ],
)
def test_arguments_are_the_declared_ones_unless_the_schema_says_otherwise(schema: Any, open_: bool) -> None:
    grammar = beside_good(schema)
    assert grammar.reports[0].enforced
    assert takes(grammar, call("tool", {"zz": 1})) is open_
    assert not takes(grammar, call("tool", 1))


def test_nested_objects_close_too_but_not_beside_combinators() -> None:
    inner = {"type": "object", "properties": {"x": {"type": "integer"}}}
    grammar = beside_good({"properties": {"a": inner, "b": {"allOf": [inner, {"properties": {"y": {}}}]}}})
    assert takes(grammar, call("tool", {"a": {"x": 1}})) and not takes(grammar, call("tool", {"a": {"x": 1, "y": 2}}))
    assert takes(grammar, call("tool", {"b": {"x": 1, "y": 2}}))


@pytest.mark.parametrize(
    ("schema", "taken", "refused"),
    [
        (
            {"properties": {"a": {}, "b": {}}, "oneOf": [{"required": ["a"]}, {"required": ["b"]}]},
            [{"a": 1}, {"b": 1}],
            [{}, {"a": 1, "b": 1}, {"a": 1, "zz": 1}],
        ),
        (
            {"properties": {"a": {}, "b": {}}, "dependencies": {"a": ["b"]}},
            [{}, {"b": 1}, {"a": 1, "b": 1}],
            [{"a": 1}, {"b": 1, "zz": 1}],
        ),
        ({"not": {"required": ["a"]}}, [{}, {"zz": 1}], [{"a": 1}]),
        ({"properties": {"a": {}}, "additionalProperties": True, "not": {"required": ["b"]}}, [{"zz": 1}], [{"b": 1}]),
        (
            {"properties": {"o": {"properties": {"a": {}}, "if": {"required": ["a"]}, "else": False}}},
            [{}, {"o": {"a": 1}}],
            [{"o": {}}, {"o": {"a": 1, "zz": 1}}],
        ),
    ],
)
def test_a_rewritten_object_takes_what_its_alternatives_declare(
    schema: Any, taken: list[Any], refused: list[Any]
) -> None:
    grammar = beside_good(schema)
    assert grammar.reports[0].enforced
    assert all(takes(grammar, call("tool", arguments)) for arguments in taken)
    assert not any(takes(grammar, call("tool", arguments)) for arguments in refused)


def test_from_json_schema_follows_the_specification_and_refuses_what_nobody_can_compile() -> None:
    assert takes(Grammar.from_json_schema({"type": "object", "properties": {"a": {}}}), '{"zz": 1}')
    assert takes(Grammar.from_json_schema({"type": "object"}, separators=(",", ":")), '{"zz":1}')
    assert not takes(Grammar.from_json_schema({"type": "object"}), '{"zz":1}')
    partly = Grammar.from_json_schema({"type": "array", "uniqueItems": True})
    assert [item.keyword for item in partly.reports[0].unenforced] == ["uniqueItems"]
    for broken in (nested(10_000), {"properties": {"a": 5}}, {"enum": []}):
        with pytest.raises(SchemaError):
            Grammar.from_json_schema(broken)


def named(pattern: str) -> dict[str, Any]:
    return {
        "patternProperties": {pattern: {"type": "integer"}, "^z$": {"type": "null"}},
        "additionalProperties": False,
    }


def test_names_may_be_asked_for_their_end() -> None:
    grammar = beside_good(named("y$"))
    assert grammar.reports[0].enforced
    assert takes(grammar, call("tool", {"y": 1, "any": 2, "z": None}))
    for wrong in ({"yx": 1}, {"y": "1"}, {"z": 1}):
        assert not takes(grammar, call("tool", wrong))


def test_names_whose_pattern_cannot_be_held_are_taken_and_listed() -> None:
    grammar = beside_good(named("^(?!x)y"))
    lost = {(item.path, item.keyword) for item in grammar.reports[0].unenforced}
    assert lost == {("", "patternProperties"), ("", "additionalProperties")}
    assert takes(grammar, call("tool", {"y": 1})) and takes(grammar, call("tool", {"z": None}))
    assert not takes(grammar, call("tool", {"z": 1}))


def test_options_in_a_schema_do_not_reach_the_grammar() -> None:
    schema = {"properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}, "x-guidance": {"item_separator": ";"}}
    grammar = beside_good(schema)
    assert takes(grammar, call("tool", {"a": 1, "b": 2}))


def test_tool_lists_that_make_no_sense_are_errors() -> None:
    for tools, most in (([], None), ([GOOD, GOOD], None), ([GOOD], 0)):
        with pytest.raises(SchemaError):
            Grammar.tool_calls(tools, max_calls=most)


def file_and_code(file: str) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {
            "file": {"type": "string", "pattern": file},
            "code": {"type": "string", "pattern": "^[A-Z]{2}$"},
        },
        "required": ["file", "code"],
    }


@pytest.mark.parametrize(
    ("pattern", "right", "wrong"),
    [
        (r"\.csv$", ["a.csv", ".csv"], ["a.cs", ""]),
        (r"\.(jpe?g|png)$", ["x.png", ".jpeg"], ["x.pngs"]),
        ("foo.*bar", ["foobar", "a foo, bar!"], ["bar foo"]),
        (r"#[0-9a-f]{6}$", ["a #00ff00"], ["#00ff0"]),
    ],
)
def test_patterns_may_ask_for_an_end(pattern: str, right: list[str], wrong: list[str]) -> None:
    grammar = Grammar.from_json_schema(file_and_code(pattern))
    assert grammar.reports[0].enforced
    for text in (*right, *wrong):
        assert takes(grammar, f'{{"file": "{text}", "code": "AB"}}') is (text in right), text


@pytest.mark.parametrize(
    ("pattern", "right", "wrong"),
    [
        (r"^\s$", " \u00a0\u2028\u2003", "a\u0085\ufeff"),
        (r"^\S$", "a–", " \u00a0\u0085\ufeff"),
        (r"^[^\s]$", "a–", " \u00a0\u0085\ufeff"),
        (r"^[^\S]$", " \u00a0", "a\u0085\ufeff"),
        (r"^[,\s]$", ", ", "a\u0085\ufeff"),
        (r"^[\]\S]$", "],", " \u0085\ufeff"),
    ],
)
def test_spaces_are_those_that_every_dialect_takes_for_one(pattern: str, right: str, wrong: str) -> None:
    grammar = Grammar.from_json_schema({"type": "string", "pattern": pattern})
    assert grammar.reports[0].enforced
    for text in right + wrong:
        assert takes(grammar, json.dumps(text, ensure_ascii=False)) is (text in right), repr(text)
    assert not takes(grammar, '"\\u001c"')


def test_a_backslash_before_an_s_is_no_space() -> None:
    grammar = Grammar.from_json_schema({"type": "string", "pattern": r"^\\\\s$"})
    assert takes(grammar, json.dumps(r"\\s")) and not takes(grammar, json.dumps("\\ "))


def test_strings_that_must_end_in_some_way_do_within_every_budget() -> None:
    grammar = Grammar.from_json_schema(file_and_code(r"\.csv$"))
    least = grammar.start(BYTES, max_new_tokens=ROOMY).min_tokens
    assert least == len('{"file": ".csv", "code": "AA"}') + 1
    for budget in range(least, least + 40):
        text = draw(grammar, budget, Random(budget))
        assert text is not None and json.loads(text)["file"].endswith(".csv"), budget


def test_a_pattern_without_a_known_text_is_listed_and_the_rest_still_enforced() -> None:
    grammar = Grammar.from_json_schema(file_and_code(r"x{300}y$"))
    assert [(u.path, u.keyword) for u in grammar.reports[0].unenforced] == [("/properties/file", "pattern")]
    assert takes(grammar, '{"file": "a", "code": "AB"}')
    assert not takes(grammar, '{"file": "a", "code": "ab"}')


@pytest.mark.parametrize(
    "schema",
    [
        {
            "$defs": {"n": {"properties": {"n": {"$ref": "#/$defs/n"}}, "required": ["n"], "type": "object"}},
            "$ref": "#/$defs/n",
        },
        {"properties": {"a": {"type": "integer", "multipleOf": 999999937, "minimum": 1}}, "required": ["a"]},
    ],
    ids=["endless", "fuel"],
)
def test_a_tool_that_no_call_is_found_for_is_freed_and_its_sibling_kept(schema: dict[str, Any]) -> None:
    sibling = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    for mode in ("required", "auto"):
        grammar = Grammar.tool_calls([ToolGrammar("odd", schema), ToolGrammar("ok", sibling)], mode=mode)
        assert [report.enforced for report in grammar.reports] == [False, True]
        for arguments in ('"odd", "arguments": {}', '"ok", "arguments": {"a": 1}'):
            assert takes(grammar, f'<tool_calls>\n{{"name": {arguments}}}\n</tool_calls>')


def test_a_product_of_alternatives_is_bounded_and_what_is_left_out_listed() -> None:
    choices = [[f"a{i}{j}" for j in range(4)] for i in range(6)]
    schema = {
        "allOf": [{"anyOf": [{"properties": {n: {"type": "integer"}}, "required": [n]} for n in c]} for c in choices]
    }
    (report,) = Grammar.tool_calls([ToolGrammar("odd", schema)], mode="required").reports
    assert not report.enforced
    assert {item.path for item in report.unenforced} <= {"", *(f"/allOf/{i}" for i in range(6))}


def test_a_name_written_twice_counts_for_nothing() -> None:
    grammar = Grammar.from_json_schema(
        {"type": "object", "minProperties": 2, "additionalProperties": {"type": "integer"}}
    )
    assert grammar.reports[0].enforced
    assert takes(grammar, '{"a": 1, "b": 2}')
    assert not takes(grammar, '{"a": 1}') and not takes(grammar, '{"a": 1, "a": 2}')


@pytest.mark.parametrize(
    "schema", [False, {"not": {}}, {"oneOf": [True, True]}, {"type": "integer", "not": {"type": "number"}}]
)
def test_a_schema_that_admits_nothing_is_refused_and_said_so(schema: Any) -> None:
    with pytest.raises(SchemaError, match="admits nothing"):
        Grammar.from_json_schema(schema)


def test_formats_that_are_annotations_are_told() -> None:
    kinds = ("date", "uri-template", "ipv4", "of-our-own")
    schema = {"type": "object", "properties": {kind: {"type": "string", "format": kind} for kind in kinds}}
    (report,) = Grammar.tool_calls([ToolGrammar("f", schema)]).reports
    assert report.enforced
    told = {item.path: item.why for item in report.annotations}
    assert told == {
        "/properties/date": "date: its shape alone",
        "/properties/uri-template": "uri-template: an annotation",
    }


@pytest.mark.parametrize(("step", "told"), [(0.01, True), (0.5, False), (3, False)])
def test_multiples_that_validators_round_are_checked_afterwards(step: float, told: bool) -> None:
    grammar = Grammar.from_json_schema({"type": "number", "multipleOf": step})
    assert [item.keyword for item in grammar.reports[0].unenforced] == (["multipleOf"] if told else [])

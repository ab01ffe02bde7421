"""Rewritten schemas: the same instances as the original's under jsonschema, and everything left out listed."""

from __future__ import annotations

import json
import re
from itertools import count
from random import Random
from typing import Any

import pytest
from jsonschema import Draft4Validator, Draft7Validator, Draft201909Validator, Draft202012Validator
from jsonschema.validators import validator_for

from m1runtime.grammar import Grammar, ToolGrammar
from m1runtime.grammar.effort import UNLIMITED, Effort
from m1runtime.grammar.normalise import Normal, normalise, plain
from m1runtime.grammar.normalise_words import all_but

SCALARS: list[Any] = [None, True, False, 0, 1, 2, 3, 1.5, -1, "", "a", "b", "ab", "abc"]
ARRAYS: list[Any] = [[], [1], ["a"], [1, 2], [1, 1], ["a", "b", 1], [[]], [None, None], [{"a": 1}], [True, 1]]
ARRAYS += [["b", "b", "a", "b"], [0, 1, 2, 3], ["a", "a", "a"], [1, "a"], ["a", 1, 1]]
OBJECTS: list[Any] = [{}, {"a": 1}, {"a": "a"}, {"b": 1}, {"a": 1, "b": 2}, {"a": "b", "c": []}, {"c": 1, "b": "a"}]
OBJECTS += [{"a": {"a": 1}}, {"ab": 1}, {"ab": "a", "a": 2}, {"a": 1, "b": 1, "c": 1}, {"d": 1}, {"a": [1, "a"]}]
OBJECTS += [{"a": None}, {"d": "a", "e": 1}, {"a": 0, "d": 2, "e": 3}, {"a": 1, "c": 1}, {"b": "x", "a": "x"}]
VALUES = SCALARS + ARRAYS + OBJECTS

A, B = {"required": ["a"]}, {"required": ["b"]}
INTEGER, STRING = {"type": "integer"}, {"type": "string"}
EXACT: list[Any] = [
    {"$defs": {"x": INTEGER}, "$ref": "#/$defs/x", "minimum": 1},
    {"$defs": {"x": {"$anchor": "here", **INTEGER}}, "properties": {"a": {"$ref": "#here"}}},
    {"$id": "http://e.org/a", "$defs": {"x": {"$id": "b", **STRING}}, "items": {"$ref": "b"}},
    {"$defs": {"n": {"properties": {"a": {"$ref": "#/$defs/n"}}, "not": {"type": "null"}}}, "$ref": "#/$defs/n"},
    {"$dynamicAnchor": "n", "properties": {"a": {"$dynamicRef": "#n"}}, "type": ["object", "integer"], "not": B},
    {
        "allOf": [
            {"properties": {"a": INTEGER}, **A},
            {"properties": {"a": {"minimum": 1}}, "additionalProperties": False},
        ]
    },
    {"allOf": [{"enum": [1, "a", "b", None]}, STRING, {"pattern": "^a"}]},
    {"anyOf": [A, B], "oneOf": [{"type": "object"}, INTEGER], "maxProperties": 2},
    {"oneOf": [A, B]},
    {"oneOf": [A, B, {"required": ["a", "b"]}]},
    {"oneOf": [INTEGER, STRING, {"type": "array"}]},
    {"oneOf": [{"enum": [1, 2, "a"]}, {"enum": [2, "b"]}, {"enum": ["a", "b", None]}]},
    {"oneOf": [{"properties": {"a": {"const": i}}, **A} for i in (1, 2, "a")]},
    {"type": "object", "oneOf": [{"properties": {"a": {"enum": ["a"]}}}, {"properties": {"a": INTEGER}}], **A},
    {"dependentRequired": {"a": ["b"], "c": ["a"]}},
    {"dependentSchemas": {"a": {"properties": {"b": INTEGER}}}},
    {"dependencies": {"a": ["b"], "c": {"maxProperties": 2}}, "$schema": "http://json-schema.org/draft-07/schema#"},
    {"if": {"properties": {"a": {"const": 1}}, **A}, "then": B, "else": {"maxProperties": 1}},
    {"if": {"type": "object"}, "else": {"enum": [1, "a", []]}},
    {"if": {"minLength": 2}, "then": {"pattern": "b"}},
    {"not": {"type": ["string", "null", "array"]}},
    {"not": {"enum": ["a", "ab", 1, None, True, [], {}, ""]}},
    {"not": {"not": {"properties": {"a": INTEGER}, **A}}},
    {"not": {"required": ["a", "b"]}},
    {"not": {"properties": {"a": STRING}}, "type": "object"},
    {"not": {"minimum": 1, "maximum": 2}},
    {"not": {"anyOf": [A, {"type": "string"}, {"maxItems": 1}]}},
    {"type": ["integer", "array"], "enum": [1, 1.5, "a", [], {}], "maxItems": 3},
    {"const": {"a": 1}, "required": ["a"], "minProperties": 1},
    {"enum": [[1], [1, 1], [1, 2]], "uniqueItems": True},
    {"contains": STRING, "maxItems": 3},
    {"contains": STRING, "minContains": 2, "maxContains": 2, "maxItems": 3},
    {"contains": STRING, "minContains": 0},
    {"prefixItems": [STRING], "minItems": 1, "contains": STRING},
    {"uniqueItems": True, "maxItems": 1},
    {"prefixItems": [STRING, INTEGER], "items": False, "uniqueItems": True},
    {"items": {"type": "boolean"}, "type": "array", "uniqueItems": True},
    {"items": {"enum": ["a", "b", 1]}, "minItems": 1, "uniqueItems": True},
    {"propertyNames": {"enum": ["a", "b"]}},
    {"propertyNames": {"pattern": "^a"}, "properties": {"b": INTEGER, "a": INTEGER}},
    {"propertyNames": {"maxLength": 1}},
    {"propertyNames": False},
    {"properties": {"a": INTEGER, "b": {}}, "additionalProperties": False, "minProperties": 1},
    {"properties": {"a": INTEGER, "b": {}}, "minProperties": 2},
    {"properties": {"a": {}, "b": {}, "c": {}}, "maxProperties": 2},
    {"properties": {"a": {}}, "additionalProperties": STRING, "minProperties": 2, **A},
    {"items": [STRING, INTEGER], "additionalItems": False, "$schema": "http://json-schema.org/draft-07/schema#"},
    {"minimum": 1, "exclusiveMinimum": True, "$schema": "http://json-schema.org/draft-04/schema#"},
    {"properties": {"a": {}}, "allOf": [{"properties": {"b": {}}}], "unevaluatedProperties": False},
    {"anyOf": [{"properties": {"a": INTEGER}, **A}, {"properties": {"b": {}}, **B}], "unevaluatedProperties": False},
    {"if": A, "then": {"properties": {"a": {}, "c": {}}}, "unevaluatedProperties": INTEGER},
    {"prefixItems": [{}], "allOf": [{"prefixItems": [{}, STRING]}], "unevaluatedItems": False},
    {"contains": STRING, "unevaluatedItems": False, "maxItems": 3},
    {"properties": {"a": True, "b": False}, "patternProperties": {"^c": False}, "allOf": [True]},
    {
        "patternProperties": {"a": INTEGER, "^a": {"minimum": 1}, "zz": {}},
        "properties": {"a": {"maximum": 1}},
        "not": B,
    },
    {"nullable": True, "type": "string", "x-unknown": {"not": {}}, "not": {"const": "a"}},
]


def validates(schema: Any, value: Any) -> bool:
    return validator_for(schema, default=Draft202012Validator)(schema).is_valid(value)


def agree(schema: Any, normal: Normal, values: list[Any] = VALUES) -> None:
    """Nothing valid is rejected; where nothing is listed, nothing invalid is taken."""
    for value in values:
        valid, taken = validates(schema, value), validates(normal.schema, value)
        assert taken or not valid, (schema, normal.schema, value)
        assert valid or not taken or normal.lost, (schema, normal.schema, value)


@pytest.mark.parametrize("merge", [False, True], ids=["", "merged"])
@pytest.mark.parametrize("schema", EXACT, ids=[json.dumps(schema)[:60] for schema in EXACT])
def test_a_rewritten_schema_has_the_same_instances(schema: Any, merge: bool) -> None:
    normal = normalise(schema, UNLIMITED, merge=merge)
    if "patternProperties" not in schema:
        assert normal.lost == ()
    assert normal.rewritten
    agree(schema, normal)
    assert not re.search(r'"(not|if|oneOf|contains|dependentRequired|unevaluated\w+)": ', json.dumps(normal.schema))


class Drawn:
    """Schemas drawn at random from every keyword."""

    names = "abc"
    patterns = ("^a", "b$", "a", "^[ab]$", "^.{2}$")
    kinds = ("null", "boolean", "number", "integer", "string", "array", "object")
    counts = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
    one = ("additionalProperties", "propertyNames", "items", "contains", "not", "unevaluatedProperties")
    many = ("allOf", "anyOf", "oneOf", "prefixItems")

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)

    def document(self) -> dict[str, Any]:
        schema = {keyword: value for _ in range(3) for keyword, value in self.pairs(2)}
        return {**schema, "$defs": {"x": self.schema(1), "y": self.schema(0)}}

    def schema(self, depth: int) -> Any:
        random = self.random
        if random.random() < 0.1:
            return random.random() < 0.5
        return {keyword: value for _ in range(random.randint(1, 3)) for keyword, value in self.pairs(depth)}

    def pairs(self, depth: int) -> list[tuple[str, Any]]:
        """The keywords of one choice."""
        random = self.random
        choice = random.randint(0, 13 if depth else 6)
        name = random.choice(self.names)
        if choice > 6:
            return self.combined(choice, name, depth - 1)
        return [
            [("type", random.sample(self.kinds, random.randint(1, 2)))],
            [("enum", random.sample(VALUES, random.randint(1, 4)))],
            [(random.choice(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")), random.randint(0, 2))],
            [(random.choice(self.counts), random.randint(0, 3))],
            [("required", random.sample(self.names, random.randint(1, 2))), ("dependentRequired", {name: ["a"]})],
            [("pattern", random.choice(self.patterns)), ("multipleOf", random.choice((1, 2, 0.5)))],
            [("uniqueItems", True), ("const", random.choice(VALUES))][random.randint(0, 1) :][:1],
        ][choice]

    def combined(self, choice: int, name: str, depth: int) -> list[tuple[str, Any]]:
        random = self.random
        if choice < 9:
            return [(random.choice(self.one), self.schema(depth))]
        if choice < 11:
            return [(random.choice(self.many), [self.schema(depth) for _ in range(random.randint(1, 3))])]
        if choice == 11:
            return [("properties", {n: self.schema(depth) for n in random.sample(self.names, 2)})]
        if choice == 12:
            parts = [("if", self.schema(depth)), ("then", self.schema(depth)), ("else", self.schema(depth))]
            return parts[: random.randint(2, 3)]
        return [
            ("patternProperties", {random.choice(self.patterns): self.schema(depth)}),
            ("dependentSchemas", {name: self.schema(depth)}),
            ("$ref", "#/$defs/" + random.choice("xy")),
            ("unevaluatedItems", self.schema(depth)),
        ][random.randint(0, 3) :][:1]


@pytest.mark.parametrize("part", range(4))
def test_schemas_drawn_at_random_keep_their_instances(part: int) -> None:
    listed = judged = 0
    for seed in range(part * 400, part * 400 + 400):
        schema = Drawn(seed).document()
        try:
            valid = [validates(schema, value) for value in VALUES]
        except RecursionError:
            continue
        normal = normalise(schema, UNLIMITED, merge=seed % 3 == 0)
        listed += bool(normal.lost)
        agree(schema, normal)
        judged += len(valid)
    assert judged > 10_000 and 0 < listed < 200


@pytest.mark.parametrize(
    ("schema", "lost"),
    [
        ({"properties": {"a/b": {"not": {"pattern": "x"}}}}, [("/properties/a~1b", "not")]),
        ({"items": {"contains": INTEGER}}, [("/items", "contains")]),
        ({"type": "array", "uniqueItems": True}, [("", "uniqueItems")]),
        ({"anyOf": [{"$ref": "other.json"}, {"not": {}}]}, [("/anyOf/0", "$ref")]),
        ({"type": "number", "not": {"type": "integer"}}, [("", "not")]),
        ({"oneOf": [{"pattern": "a"}, {"pattern": "b"}]}, [("", "oneOf")]),
        ({"if": {"contains": STRING}, "then": {"minItems": 3}}, [("/if", "contains")]),
        (
            {"$defs": {"x": {"type": "array", "uniqueItems": True}}, "items": {"$ref": "#/$defs/x"}},
            [("/$defs/x", "uniqueItems")],
        ),
        ({"properties": {n: {} for n in "abcdefgh"}, "maxProperties": 2}, [("", "maxProperties")]),
        ({"required": "a", "not": {"type": "null"}}, [("", "required")]),
        ({"patternProperties": {"a": INTEGER, "b": STRING}}, [("", "patternProperties")]),
    ],
)
def test_what_is_left_out_is_listed_where_it_stands(schema: Any, lost: list[tuple[str, str]]) -> None:
    normal = normalise(schema, UNLIMITED)
    assert [(item.path, item.keyword) for item in normal.lost] == lost
    assert all(item.why for item in normal.lost)


def test_plain_schemas_are_passed_through_as_they_are() -> None:
    tool = {
        "type": "object",
        "properties": {
            "a": {"type": "array", "items": {"$ref": "#/$defs/x"}},
            "b": {"enum": [1, 2]},
            "c": {"const": 1},
        },
        "required": ["a"],
        "$defs": {"x": {"anyOf": [STRING, {"type": "null"}], "description": "x"}},
    }
    assert plain(tool)
    assert normalise(tool, UNLIMITED).schema is tool
    for other in (
        {"not": {}},
        {"minLength": 2.0},
        {"$ref": "#/examples/0"},
        {"$ref": "#/$defs/none"},
        {"properties": 1},
    ):
        assert not plain({"properties": {"a": other}})


@pytest.mark.parametrize(
    "schema",
    [{"properties": {"a": 5}, "not": {}}, {"allOf": {}}, {"oneOf": [1]}, {"not": 1}, {"dependencies": [1]}, {"if": 3}],
)
def test_a_malformed_schema_is_left_to_those_who_refuse_it(schema: Any) -> None:
    normal = normalise(schema, UNLIMITED)
    assert normal.schema is schema and not normal.rewritten


@pytest.mark.parametrize(
    "odd", [5, None, [], {"a": 1}, "http://[", "#/x", "urn:x", "\ud800", "%zz", [{}], float("inf")]
)
@pytest.mark.parametrize(
    "keyword",
    ["$id", "$ref", "$anchor", "$dynamicRef", "$schema", "$defs", "format", "type", "required", "enum", "items"],
)
def test_values_of_the_wrong_kind_are_no_exceptions(keyword: str, odd: Any) -> None:
    for schema in (
        {keyword: odd, "not": A},
        {"properties": {"a": {keyword: odd}}, "not": A},
        {"$ref": "urn:y", keyword: odd},
    ):
        normalise(schema, UNLIMITED)
        Grammar.tool_calls([ToolGrammar("tool", schema)])


def test_nesting_and_products_end() -> None:
    deep: Any = {"not": {"required": ["z"]}}
    for _ in range(95):
        deep = {"properties": {"a": deep}, "oneOf": [A, B]}
    normalise(deep, UNLIMITED)
    wide = {"allOf": [{"oneOf": [{"required": [f"a{i}{j}"]} for j in range(8)]} for i in range(8)]}
    normal = normalise(wide, Effort(3, clock(500)), merge=True)
    assert normal.lost
    agree(wide, normal, [{}, {f"a{i}0": 1 for i in range(8)}, {f"a{i}{j}": 1 for i in range(8) for j in range(2)}])


def clock(looks: int) -> Any:
    ticks = count()
    return lambda: next(ticks) / looks


def test_an_effort_that_is_over_leaves_keywords_out_and_lists_them() -> None:
    schema = {"type": "object", "not": A, "oneOf": [B, {"maxProperties": 1}]}
    normal = normalise(schema, Effort(0, clock(1)))
    assert {item.keyword for item in normal.lost} == {"not", "oneOf"}
    agree(schema, normal)


@pytest.mark.parametrize("words", [["a"], ["a", "ab", "b"], ["", "x"], ["]", "^", "-", "\\", "a.b"], ["é", "\n"]])
def test_all_texts_but_some(words: list[str]) -> None:
    pattern = all_but(words)
    assert pattern is not None
    others = ["", "a", "b", "ab", "abc", "x", "xx", "]", "]]", "^", "-", "\\", "a.b", "aXb", "é", "\n", "\n\n"]
    for text in {*others, *words}:
        assert bool(re.search(pattern.replace("$", r"\Z"), text)) is (text not in words), (pattern, text)
    assert all_but(["x" * 1000]) is None


def test_each_draft_is_read_as_its_validator_does() -> None:
    schemas = {
        Draft4Validator: {"properties": {"a": {"maximum": 1, "exclusiveMaximum": True}}, "dependencies": {"b": ["a"]}},
        Draft7Validator: {
            "properties": {"a": {"$ref": "#/definitions/x", "maximum": 0}},
            "definitions": {"x": INTEGER},
            "not": B,
        },
        Draft201909Validator: {"items": [INTEGER], "additionalItems": STRING, "unevaluatedItems": False},
        Draft202012Validator: {"prefixItems": [INTEGER], "items": STRING, "minContains": 2, "not": {"type": "null"}},
    }
    for kind, schema in schemas.items():
        named = {**schema, "$schema": kind.META_SCHEMA.get("$schema")}
        normal = normalise(named, UNLIMITED)
        assert normal.lost == ()
        for value in VALUES:
            assert kind(schema).is_valid(value) is validates(normal.schema, value), (schema, value)

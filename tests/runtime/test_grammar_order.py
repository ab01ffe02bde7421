"""Properties in any order: exact in presence and uniqueness, closed within every budget at which a call fits."""

from __future__ import annotations

import json
from itertools import permutations
from pathlib import Path
from random import Random
from typing import Any

import pytest

from benchmarks.bytewise import BYTES, END, draw, takes
from benchmarks.fuzz import flaw
from m1runtime.errors import BudgetError
from m1runtime.grammar import Grammar, ToolGrammar

SAMPLE = Path(__file__).parents[1] / "data" / "bfcl-sample.jsonl"
CASES = [json.loads(line) for line in SAMPLE.read_text().splitlines()]
INTEGER, STRING = {"type": "integer", "multipleOf": 1}, {"type": "string"}
"""Not plain, so that the rules are what is tested here; of the tables, test_grammar_table.py speaks."""
CLOSED: dict[str, Any] = {"type": "object", "additionalProperties": False}
POINT = CLOSED | {"properties": {"x": INTEGER, "y": INTEGER}, "required": ["x", "y"]}
TREE = CLOSED | {
    "properties": {
        "value": INTEGER,
        "next": {"$ref": "#/$defs/t"},
        "also": {"type": "array", "items": {"$ref": "#"}},
    },
    "required": ["value"],
}

OBJECTS: list[dict[str, Any]] = [
    POINT,
    TREE | {"$defs": {"t": TREE}},
    CLOSED | {"properties": dict.fromkeys("abcdefghij", INTEGER), "required": list("acegi")},
    CLOSED | {"properties": dict.fromkeys("abcd", INTEGER), "minProperties": 3, "maxProperties": 3},
    {"type": "object", "properties": {"a": POINT}, "required": ["a", "b"], "maxProperties": 3},
    {"anyOf": [POINT, CLOSED | {"properties": {"x": STRING, "z": STRING}, "required": ["z"]}]},
    {"type": "object", "properties": {"a": INTEGER, "aa": INTEGER, '"a': POINT, "é": INTEGER, "a\n": STRING}},
    {"type": "object", "properties": {"a": INTEGER}, "patternProperties": {"^z": POINT}, "required": ["a"]},
    {"allOf": [{"type": "object", "properties": {"a": INTEGER}}, {"properties": {"u": {"type": "boolean"}}}]},
    {"type": "array", "items": {"type": "object", "properties": {"a": INTEGER, "z": {}}}, "minItems": 2},
]


NAMING = frozenset((*b'"\\u0061a,z:{}[] 1', END))
"""Of a model that likes to repeat names and to spell them with escapes."""


def shuffled(value: Any, random: Random) -> Any:
    """The same with the keys of every object in another order."""
    if isinstance(value, dict):
        return {key: shuffled(value[key], random) for key in random.sample(list(value), len(value))}
    return [shuffled(one, random) for one in value] if isinstance(value, list) else value


def dumped(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


@pytest.mark.parametrize("case", CASES, ids=[case["id"] for case in CASES])
def test_calls_of_real_tools_in_any_order(case: dict[str, Any]) -> None:
    tools = [
        ToolGrammar(one["properties"]["name"]["const"], one["properties"]["arguments"])
        for one in case["schema"].get("anyOf", [case["schema"]])
    ]
    free, fixed = (Grammar.tool_calls(tools, mode="required", order=order) for order in ("any", "schema"))
    assert not any(report.in_order for report in free.reports)
    random = Random(0)
    for test in case["tests"]:
        call = test["data"] | {"arguments": shuffled(test["data"]["arguments"], random)}
        assert takes(free, f"<tool_calls>\n{dumped(call)}\n</tool_calls>") is test["valid"], call
        if test["valid"] and call["arguments"]:
            name = dumped(next(iter(call["arguments"])))
            again = dumped(call)[:-2] + f", {name}: {dumped(next(iter(call['arguments'].values())))}}}}}"
            assert json.loads(again) == call
            assert not any(takes(one, f"<tool_calls>\n{again}\n</tool_calls>") for one in (free, fixed)), again


def test_every_order_of_what_must_and_may_be_there() -> None:
    schema = CLOSED | {"properties": {"a": INTEGER, "b": STRING, "c": POINT}, "required": ["a", "c"]}
    grammar = Grammar.from_json_schema(schema, order="any")
    values = {"a": 1, "b": "", "c": {"y": 1, "x": 2}}
    for count in range(4):
        for names in permutations(values, count):
            text = dumped({name: values[name] for name in names})
            assert takes(grammar, text) is {"a", "c"}.issubset(names), text
    assert not takes(grammar, '{"a": 1, "c": {"x": 1}}') and not takes(
        grammar, '{"a": 1, "c": {"x": 1, "y": 1, "x": 1}}'
    )


@pytest.mark.parametrize(
    ("schema", "texts"),
    [
        (
            {"properties": {"a": INTEGER}, "required": ["a", "z"], "type": "object"},
            {
                '{"n": {"m": [{}]}, "z": [], "a": 1, "o": null}': True,
                '{"a": 1, "n": 1}': False,
                '{"z": 1, "a": ""}': False,
                '{"n": 1, "\\u0061": 2, "z": 1}': False,
                '{"n": 1, "\\u0061": 2, "z": 1, "a": 1}': False,
                '{"n": 1, "n": 2, "z": 1, "a": 1}': False,
                '{"n": {"a": 1, "\\u0061": 2}, "z": 1, "a": 1}': False,
                '{"\\n": 1, "z": "\\u0001", "é": 1, "a": 1}': True,
            },
        ),
        (
            {
                "type": "object",
                "properties": {"a": {}, "b": {}},
                "minProperties": 2,
                "maxProperties": 3,
                "required": ["b"],
            },
            {
                '{"b": 1}': False,
                '{"n": 1, "b": 1}': True,
                '{"n": 1, "m": 1, "o": 1': False,
                '{"n": 1, "m": 1, "b": 1}': True,
                '{"a": 1, "b": 1, "m": 1, "n": 1}': False,
            },
        ),
        (
            CLOSED | {"properties": {"a": {}, "b": {}, "c": {}}, "minProperties": 1, "maxProperties": 2},
            {'{"c": 1, "a": 1}': True, "{}": False, '{"c": 1}': True, '{"a": 1, "c": 1, "b"': False},
        ),
        (
            {
                "type": "object",
                "properties": {"a": {}, "x-b": {"minimum": 1}},
                "patternProperties": {"^x-": INTEGER},
                "additionalProperties": False,
                "required": ["a"],
            },
            {
                '{"x-c": 1, "a": "", "x-b": 2}': True,
                '{"x-c": "", "a": ""}': False,
                '{"x-b": 0, "a": ""}': False,
                '{"x-b": 1.5, "a": ""}': False,
                '{"y": 1, "a": ""}': False,
            },
        ),
        (
            {
                "type": "object",
                "properties": {"a": {}},
                "patternProperties": {"^x-": INTEGER, "^q": False},
                "additionalProperties": STRING,
                "required": ["a"],
            },
            {
                '{"y": "", "x-c": 1, "a": 1, "z": "1"}': True,
                '{"y": 1, "a": 1}': False,
                '{"x-c": "", "a": 1}': False,
                '{"qy": "", "a": 1}': False,
            },
        ),
        (
            {"type": "array", "prefixItems": [POINT, INTEGER], "items": POINT, "minItems": 1, "maxItems": 4},
            {
                "[]": False,
                '[{"y": 1, "x": 1}]': True,
                '[{"y": 1, "x": 1}, 1, {"y": 2, "x": 2}, {"x": 1, "y": 2}]': True,
                '[{"y": 1, "x": 1}, {"y": 2, "x": 2}]': False,
                '[{"y": 1, "x": 1}, 1, {"y": 2, "x": 2}, {"x": 1, "y": 2}, ': False,
                '[{"y": 1, "x": 1}, 1, {"y": 2}': False,
            },
        ),
        (
            {"type": "array", "items": POINT, "minItems": 2},
            {'[{"y": 1, "x": 1}]': False, '[{"y": 1, "x": 1}, {"y": 1, "x": 1}, {"x": 1, "y": 1}]': True},
        ),
        (
            {"anyOf": [POINT, {"type": "null"}, STRING, CLOSED | {"properties": {"y": STRING, "z": STRING}}]},
            {
                '{"y": 1, "x": 1}': True,
                '{"z": "", "y": ""}': True,
                '{"y": "", "x": 1}': False,
                "null": True,
                '""': True,
            },
        ),
        (
            {"allOf": [{"properties": {"a": INTEGER}, "required": ["b"]}, {"properties": {"a": {"minimum": 3}}}]}
            | {"type": ["object", "integer"], "$defs": {"b": {"required": ["c"]}}, "$ref": "#/$defs/b"},
            {
                '{"c": 1, "b": 1, "a": 3}': True,
                '{"b": 1, "a": 3}': False,
                '{"c": 1, "b": 1, "a": 2}': False,
                "7": True,
                '"7"': False,
            },
        ),
        (
            TREE | {"$defs": {"t": TREE}},
            {
                '{"next": {"next": {"value": 1}, "value": 2}, "value": 3}': True,
                '{"also": [{"also": [], "value": 1}], "value": 2}': True,
                '{"next": {"next": {}, "value": 2}, "value": 3}': False,
            },
        ),
        (
            {"enum": [{"a": 1, "b": [{"c": 2, "d": 3}]}, 4]},
            {'{"b": [{"d": 3, "c": 2}], "a": 1}': True, "4": True, '{"b": [], "a": 1}': False, '{"a": 1}': False},
        ),
        (
            CLOSED
            | {"properties": {"a": {"enum": []}, "b": {"type": "string", "minLength": 2, "maxLength": 1}, "c": {}}},
            {'{"c": 1}': True, "{}": True, '{"a"': False, '{"b"': False},
        ),
    ],
)
def test_what_schemas_say(schema: dict[str, Any], texts: dict[str, bool]) -> None:
    grammar = Grammar.from_json_schema(schema, order="any")
    assert not grammar.reports[0].in_order
    for text, taken in texts.items():
        assert takes(grammar, text) is taken, text


@pytest.mark.parametrize("schema", OBJECTS, ids=range(len(OBJECTS)))
def test_walks_satisfy_the_schema_within_every_budget(schema: dict[str, Any]) -> None:
    grammar = Grammar.from_json_schema(schema, order="any")
    random = Random(0)
    least = grammar.start(BYTES, max_new_tokens=1000).min_tokens
    with pytest.raises(BudgetError):
        grammar.start(BYTES, max_new_tokens=least - 1)
    orders: set[tuple[str, ...]] = set()
    for budget in [*range(least, least + 25), *[120] * 10]:
        text = draw(grammar, budget, random, NAMING)
        assert text is not None, "cut"
        assert not flaw(schema, text), text
        value = json.loads(text)
        orders |= {tuple(value)} if isinstance(value, dict) else set()
    assert any(list(order) != sorted(order) for order in orders) or "items" in schema


def test_the_shortest_end_is_known_from_anywhere() -> None:
    names = [f"argument_{i}" for i in range(20)]
    schema = CLOSED | {"properties": dict.fromkeys(names, INTEGER), "required": names[::2]}
    grammar = Grammar.from_json_schema(schema, order="any")
    begun = ['"argument_5": 1', '"argument_18": 2', '"argument_2": 3']
    left = [name for name in names[::2] if name not in ("argument_18", "argument_2")]
    constraint, written = grammar.start(BYTES, max_new_tokens=2000), 0
    for text in ("{" + begun[0], ", " + begun[1], ", " + begun[2]):
        assert all(constraint.try_accept(byte, 1000) for byte in text.encode())
        written += len(text)
    assert constraint.min_tokens == sum(len(f', "{name}": 0') for name in left) + len("}") + 1


def test_more_properties_than_bits_still_come_once_in_any_order() -> None:
    names = [f"p{i}" for i in range(100)]
    grammar = Grammar.from_json_schema(
        CLOSED | {"properties": dict.fromkeys(names, INTEGER), "required": names[:3]}, order="any"
    )
    assert not grammar.reports[0].in_order and grammar.reports[0].enforced
    assert takes(grammar, dumped(dict.fromkeys(reversed(names), 1)))
    assert not takes(grammar, dumped(dict.fromkeys(reversed(names[1:]), 1)))
    assert not takes(grammar, '{"p99": 1, "p2": 1, "p1": 1, "p0": 1, "p99": 1}')
    constraint = grammar.start(BYTES, max_new_tokens=10_000)
    every = dumped(dict.fromkeys(reversed(names), 1)).encode()
    assert all(constraint.try_accept(byte, 5000) for byte in every[:-1])
    assert not constraint.try_accept(ord(","), 5000) and constraint.try_accept(ord("}"), 5000)


@pytest.mark.parametrize(("count", "required"), [(61, 61), (201, 1)])
def test_objects_too_large_for_any_order_keep_their_own_and_are_listed(count: int, required: int) -> None:
    names = [f"p{i}" for i in range(count)]
    wide = CLOSED | {"properties": dict.fromkeys(names, INTEGER), "required": names[:required]}
    grammar = Grammar.from_json_schema(CLOSED | {"properties": {"wide": wide, "b": INTEGER}}, order="any")
    assert grammar.reports[0].in_order == ("/properties/wide",) and grammar.reports[0].enforced
    assert takes(grammar, dumped({"b": 1, "wide": dict.fromkeys(names, 1)}))
    assert not takes(grammar, dumped({"b": 1, "wide": dict.fromkeys(reversed(names), 1)}))


def test_the_wrapper_of_a_call_and_an_answer_beside_it() -> None:
    grammar = Grammar.tool_calls([ToolGrammar("f", POINT), ToolGrammar("g", POINT)], answer=POINT, order="any")
    assert takes(grammar, '<tool_calls>\n{"name": "g", "arguments": {"y": 1, "x": 2}}\n</tool_calls>')
    assert takes(grammar, '{"y": 1, "x": 2}')
    assert not takes(grammar, '<tool_calls>\n{"arguments": {"y": 1, "x": 2}, "name": "g"}\n</tool_calls>')
    assert not takes(grammar, '{"y": 1}')

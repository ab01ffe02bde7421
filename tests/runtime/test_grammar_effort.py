"""Schemas made to be expensive: the work on one is bounded, and what it costs to leave out is reported."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

import pytest

from benchmarks.bytewise import BYTES
from m1runtime.grammar import Grammar, ToolGrammar
from m1runtime.grammar.effort import Effort
from m1runtime.grammar.grammar import SEPARATORS
from m1runtime.grammar.report import CompiledSchema
from m1runtime.grammar.schema import compile_schema

LOOKS = 200
"""At the clock in a second: a clock that counts makes the work of a search countable."""


def required(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


def ticking() -> tuple[Callable[[], float], Callable[[], int]]:
    ticks = count()
    return lambda: next(ticks) / LOOKS, lambda: next(ticks)


def compiled(schema: Any) -> tuple[CompiledSchema, int]:
    clock, looks = ticking()
    found = compile_schema("t", schema, separators=SEPARATORS, tool=True, clock=clock)
    assert found is not None
    return found, looks()


def doubled(depth: int) -> dict[str, Any]:
    schema = required({"x": {"type": "integer"}})
    for _ in range(depth):
        schema = required({"a": schema, "b": schema})
    return schema


def test_an_effort_ends_when_its_clock_says_so() -> None:
    effort = Effort(3, count().__next__)
    assert [effort.over for _ in range(4)] == [False, False, True, True]


def test_patterns_without_a_text_cost_no_more_for_being_many() -> None:
    schemas = [
        required(
            {f"p{i}": {"type": "string", "pattern": rf"x{{300}}y{i}$"} for i in range(n)} | {"n": {"type": "integer"}}
        )
        for n in (3, 60)
    ]
    (few, _), (many, looks) = (compiled(schema) for schema in schemas)
    assert looks < 4 * LOOKS
    for found, n in ((few, 3), (many, 60)):
        assert [item.path for item in found.report.unenforced] == [f"/properties/p{i}" for i in range(n)]
        assert {item.keyword for item in found.report.unenforced} == {"pattern"}
        assert b'"n": ' in found.instance


@pytest.mark.parametrize(
    "schema",
    [
        {"$defs": {"n": required({c: {"$ref": "#/$defs/n"} for c in "abcdefgh"})}, "$ref": "#/$defs/n"},
        required({f"p{i}": {"type": "string", "minLength": 1000} for i in range(60)}),
        {"anyOf": [required({f"a{i}": {"type": "string", "pattern": rf"\.x{i}$"}}) for i in range(40)]},
    ],
    ids=["endless", "long", "union"],
)
def test_a_search_for_an_instance_ends_and_is_reported(schema: Any) -> None:
    found, looks = compiled(schema)
    assert looks < 4 * LOOKS
    assert not found.report.enforced
    grammar = Grammar.tool_calls([ToolGrammar("t", schema)], mode="required")
    assert grammar.start(BYTES, max_new_tokens=20_000).min_tokens < 20_000


def test_too_many_keys_are_refused_before_they_are_compiled() -> None:
    wide = {f"p{i}": {} for i in range(900)}
    found, looks = compiled(required({f"o{j}": {"type": "object", "properties": wide} for j in range(20)}))
    assert looks == 0
    assert [(item.path, item.keyword, item.why) for item in found.report.unenforced] == [
        ("", "*", "too many keys in all")
    ]


def test_a_call_too_long_for_any_budget_is_freed() -> None:
    found, _ = compiled(doubled(10))
    assert [(item.path, item.keyword) for item in found.report.unenforced] == [("", "*")]
    assert found.instance == b"{}"


def test_large_tools_do_not_weaken_each_other() -> None:
    wide = {"type": "object", "properties": {f"p{i}": {"type": "string", "minLength": 1} for i in range(300)}}
    small = required({"x": {"type": "integer"}})
    tools = [ToolGrammar("small", small), *(ToolGrammar(f"t{i}", wide) for i in range(4))]
    grammar = Grammar.tool_calls(tools, mode="required", skip=("", ""))
    assert all(report.enforced for report in grammar.reports)
    constraint = grammar.start(BYTES, max_new_tokens=400)
    for token in b'<tool_calls>\n{"name": "t3", "arguments": {"p299": "x"}}\n</tool_calls>':
        mask = constraint.mask()
        assert mask is not None and int(mask[token // 32]) >> token % 32 & 1
        assert constraint.try_accept(token, constraint.min_tokens + 400)
    assert constraint.done

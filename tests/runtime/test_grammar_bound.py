"""Far from the end of the budget a bound stands for the proof that a call can be closed: it must hold everywhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks.bytewise import BYTES
from m1runtime.grammar import Grammar, ToolGrammar
from m1runtime.grammar.bound import bound
from m1runtime.grammar.guided import Text
from m1runtime.grammar.inside import programs


def closed(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


TEXT, COUNT = {"type": "string"}, {"type": "integer", "minimum": -7, "maximum": 123456}
PLAIN: list[dict[str, Any]] = [
    TEXT,
    {"type": "number"},
    COUNT,
    {"enum": ["é🙂", "x", 12, None, {"a": [1]}]},
    closed(["city"], city=TEXT, days=COUNT, kind={"enum": ["long " * 6, "s"]}, exact={"type": ["boolean", "null"]}),
    closed([], list={"type": "array", "items": closed(["q"], q=TEXT, r={"type": "number"}), "minItems": 3}),
    {"anyOf": [closed(["a", "b"], a=TEXT, b=TEXT), closed([], c=COUNT), {"type": "null"}]},
]
UNKNOWN: list[Any] = [
    True,
    {},
    {"type": "object"},
    {"type": "string", "minLength": 3},
    {"type": "string", "pattern": "^a+$"},
    {"type": "integer", "multipleOf": 3},
    {"type": "array", "minItems": 1000, "items": TEXT},
    {"type": "array"},
    {"$ref": "#"},
    closed(["a"], a={"$ref": "#"}),
    {"allOf": [closed([], a=TEXT)]},
    {"type": "object", "properties": {"a": TEXT}},
]


def walk(grammar: Grammar, budget: int, rng: np.random.Generator, most: int | None) -> bytes | None:
    """A text drawn byte by byte; with `most`, the shortest completion is searched after every byte and compared."""
    constraint, text = grammar.start(BYTES, max_new_tokens=budget), bytearray()
    for left in range(budget - 1, -1, -1):
        mask = constraint.mask()
        assert mask is not None
        allowed = np.flatnonzero(np.unpackbits(mask.numpy().view(np.uint8), bitorder="little")[:257])
        while not constraint.try_accept(token := int(rng.choice(allowed)), left):
            allowed = allowed[allowed != token]
            assert len(allowed), bytes(text)
        if token == 256:
            return bytes(text)
        text.append(token)
        if most is not None and len(text) < 120:
            assert constraint.fork().min_tokens <= most + 1, bytes(text)
    return None


@pytest.mark.parametrize("schema", PLAIN, ids=range(len(PLAIN)))
def test_no_place_is_further_from_an_end_than_the_bound(schema: dict[str, Any]) -> None:
    most, grammar = bound(schema), Grammar.from_json_schema(schema)
    assert most is not None
    rng = np.random.default_rng(0)
    for _ in range(4):
        walk(grammar, 5000, rng, most)


@pytest.mark.parametrize("schema", UNKNOWN, ids=range(len(UNKNOWN)))
def test_where_an_end_may_be_far_away_there_is_no_bound(schema: Any) -> None:
    assert bound(schema) is None


def test_calls_are_closed_at_every_budget_around_the_place_where_the_proof_begins() -> None:
    tools = [ToolGrammar("plain", PLAIN[4]), ToolGrammar("list", PLAIN[5])]
    grammar = Grammar.tool_calls(tools, mode="required", skip=("", ""))
    constraint = grammar.start(BYTES, max_new_tokens=10_000)
    state = constraint._state
    roomy = state.program.roomy  # type: ignore[union-attr]
    assert roomy < 3000
    rng = np.random.default_rng(1)
    for budget in range(roomy - 12, roomy + 120, 6):
        text = walk(grammar, budget, rng, None)
        assert text is not None and text.endswith(b"\n</tool_calls>"), budget


def test_grammars_of_one_schema_share_their_program_and_lend_no_mask() -> None:
    schema = closed(["city"], city=TEXT | {"minLength": 1})
    first, second = (Grammar.from_json_schema(schema) for _ in range(2))
    assert isinstance(first._text, Text)
    assert programs(BYTES).get(first._text) is programs(BYTES).get(second._text)  # type: ignore[arg-type]
    mask = first.start(BYTES, max_new_tokens=100).mask()
    assert mask is not None
    mask.zero_()
    again = second.start(BYTES, max_new_tokens=100).mask()
    assert again is not None and again.any()

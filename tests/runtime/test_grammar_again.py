"""Going on after what stands, and writing a value again that failed."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from m1runtime import Engine, GenerationError, SamplingParams
from m1runtime.engine import BUNDLED
from m1runtime.errors import SchemaError
from m1runtime.grammar import Constraint, Grammar, ToolGrammar
from m1runtime.tokenizer import Tokenizer

BEFORE = '<think>\nhm\n</think>\n<tool_calls>\n{"name": "f", "arguments": {"first": 7, "v'


@cache
def nano() -> Tokenizer:
    return Tokenizer.from_file(BUNDLED["m1-nano"])


def grammar(schema: dict[str, Any], **options: Any) -> Grammar:
    arguments = {"properties": {"first": {"type": "integer"}, "v": schema}, "required": ["first", "v"]}
    return Grammar.tool_calls([ToolGrammar("f", {"type": "object", **arguments})], mode="required", **options)


def value_after(made: Grammar, before: str, known: Tokenizer, rng: random.Random, budget: int = 300) -> Any:
    """The value of `v` as a random model writes it, tokens drawn evenly from the mask."""
    constraint, ids, left = made.start(known, max_new_tokens=budget), list[int](), budget
    while not constraint.done:
        token = rng.choice(open_tokens(constraint, known))
        left -= 1
        if not constraint.try_accept(token, left):
            left += 1
            continue
        ids += [token, *(run := constraint.forced(left))]
        left -= len(run)
    text = before + known.decode(ids).removesuffix("<end_of_sentence>")
    return json.loads(text.splitlines()[4])["arguments"]["v"]


def open_tokens(constraint: Constraint, known: Tokenizer) -> list[int]:
    mask = constraint.mask()
    assert mask is not None
    words = mask.tolist()
    return [i for i in range(known.vocab_size) if words[i // 32] >> (i % 32) & 1]


CASES: list[tuple[dict[str, Any], Any]] = [
    ({"enum": ["ab", "cd", "abc"]}, "ab"),
    ({"enum": ["ab", "cd", "abc"]}, "abc"),
    ({"type": "boolean"}, True),
    ({"type": "integer"}, 1),
    ({"type": "number", "minimum": 0, "maximum": 20}, 1.5),
    ({"type": "string"}, "a"),
    ({"type": "array", "items": {"enum": ["x", "y"]}, "maxItems": 2}, ["x", "x"]),
    ({"type": "array", "items": {"type": "integer"}}, []),
    ({"type": "object", "properties": {"a": {"type": "boolean"}}, "additionalProperties": False}, {}),
]


@pytest.mark.parametrize(("schema", "failed"), CASES, ids=map(repr, CASES))
@pytest.mark.parametrize("whole", [True, False], ids=["value", "lead"])
def test_the_failed_value_is_not_written_again(schema: dict[str, Any], failed: Any, whole: bool) -> None:
    known, rng = nano(), random.Random(0)
    text = json.dumps(failed).encode()
    before = BEFORE + ('": ' if whole else "")
    made = grammar(schema).after(known.encode(before, special=False), lead=b"" if whole else b'": ', failed=text)
    values = [value_after(made, before, known, rng) for _ in range(12)]
    assert failed not in values


def test_what_stands_is_followed_by_what_followed_it_before() -> None:
    known, made = nano(), grammar({"enum": ["ab", "cd"]})
    for whole in (made, Grammar.tool_calls([ToolGrammar("f", {"type": "object"})]), made.after(())):
        ids = known.encode(BEFORE.replace(', "v', "") + ', "v": "ab"}}\n</tool_calls>', special=False)
        constraint = whole.start(known, max_new_tokens=200)
        for at, token in enumerate(ids):
            again = whole.after(ids[:at]).start(known, max_new_tokens=200 - at)
            now, then = constraint.mask(), again.mask()
            assert (now is None and then is None) or (now is not None and then is not None and now.equal(then))
            assert again.min_tokens == constraint.min_tokens
            assert constraint.try_accept(token, 199 - at)


def test_where_nothing_else_may_stand_this_is_told() -> None:
    stands = nano().encode(BEFORE + '": ', special=False)
    with pytest.raises(GenerationError, match=r'no other value than "ab"'):
        grammar({"const": "ab"}).after(stands, failed=b'"ab"').start(nano(), max_new_tokens=99)
    with pytest.raises(SchemaError, match="does not take the tokens"):
        grammar({"const": "ab"}).after([*stands, *stands]).start(nano(), max_new_tokens=99)
    with pytest.raises(SchemaError, match="does not take the value"):
        grammar({"const": "ab"}).after(stands, failed=b"true").start(nano(), max_new_tokens=99)


def test_a_session_goes_on_where_it_was_rewound_to() -> None:
    engine = Engine.from_pretrained("m1-nano")
    known = engine.tokenizer
    assert known is not None
    made, greedy = (
        grammar({"type": "string"}, parallel=False, skip=("", "")),
        SamplingParams(temperature=0, max_new_tokens=80),
    )
    with engine.session(known.encode("<beginning_of_sentence>ai name=assistant\n")) as session:
        start = session.length
        session.generate(greedy, made)
        first = session.tokens[start:]
        assert first[-1] in engine.eos_ids
        for keep in (0, 3, len(first) // 2, len(first) - 2):
            session.rewind(start + keep)
            session.generate(replace(greedy, max_new_tokens=80 - keep), made.after(first[:keep]))
            assert session.tokens[start:] == first

"""Random schemas and instances, judged by the mask and by jsonschema; each way in which they differ has a name here."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from benchmarks.bytewise import BYTES, ROOMY
from benchmarks.fuzz import (
    NARROWINGS,
    READINGS,
    Reading,
    Schema,
    draw,
    explain,
    flaw,
    instances_of,
    valid,
)
from benchmarks.fuzz_pairs import pair_schema
from m1runtime.errors import SchemaError

SEEDS = range(80)


def read(kind: str, random: Random) -> Reading | None:
    try:
        return READINGS[kind](pair_schema(random))
    except SchemaError:
        return None


@pytest.mark.parametrize("kind", READINGS)
def test_what_the_mask_accepts_is_valid_and_what_is_valid_is_accepted_or_explained(kind: str) -> None:
    judged = 0
    for seed in SEEDS:
        random = Random(f"pairs {seed}")
        reading = read(kind, random)
        for instance in instances_of(reading, random, 4) if reading is not None else ():
            expected, accepted = valid(reading.schema, instance), reading.accepts(instance)
            judged += 1
            if accepted:
                assert expected or not reading.enforced, (reading.schema, instance)
            elif expected:
                assert explain(reading, instance) != "unexplained", (reading.schema, instance)
    assert judged > 2 * len(SEEDS)


@pytest.mark.parametrize("kind", READINGS)
def test_what_is_drawn_under_the_mask_ends_in_time_and_is_valid(kind: str) -> None:
    drawn = 0
    for seed in SEEDS:
        random = Random(f"drawn {seed}")
        reading = read(kind, random)
        if reading is None:
            continue
        least = reading.grammar.start(BYTES, max_new_tokens=ROOMY).min_tokens
        for budget in (least, least + random.randint(0, 60)):
            text = draw(reading, budget, random)
            assert text is not None, (reading.schema, budget)
            problem = flaw(reading.schema, text)
            assert problem in ("", "" if reading.enforced else "invalid"), (reading.schema, text)
            drawn += 1
    assert drawn > len(SEEDS)


OPEN = {"type": "object", "properties": {"a": {"type": "integer"}}}
DELIBERATE: list[tuple[str, str, Schema, Any, Any]] = [
    ("number spelling", "value", {"type": "integer"}, 3.0, 3),
    ("number spelling", "value", {"enum": [1, "x"]}, 1.0, 1),
    ("number spelling", "value", {"type": "number", "minimum": 0}, 1e22, 10**22),
    ("characters", "value", {"type": "string"}, "a\x7f", "a"),
    (
        "characters",
        "value",
        {**OPEN, "additionalProperties": {"type": "string", "minLength": 1}},
        {"b": "\x01"},
        {"b": "\n"},
    ),
    ("end of a pattern", "value", {"type": "string", "pattern": "^[a-c]+$"}, "abc\n", "abc"),
    ("format", "value", {"type": "string", "format": "date"}, "soon", "2024-02-29"),
    ("closed arguments", "tool", OPEN, {"a": 1, "b": 2}, {"a": 1}),
    ("order", "value", {"properties": {"a": {}, "b": {}}, "type": "object"}, {"b": 1, "a": 2}, {"a": 2, "b": 1}),
]


@pytest.mark.parametrize(("name", "kind", "schema", "refused", "accepted"), DELIBERATE)
def test_a_deliberate_narrowing(name: str, kind: str, schema: Schema, refused: Any, accepted: Any) -> None:
    reading = READINGS[kind](schema)
    assert valid(reading.schema, refused) and not reading.accepts(refused)
    assert explain(reading, refused) == name
    assert valid(reading.schema, accepted) and reading.accepts(accepted)


def test_every_narrowing_has_its_example() -> None:
    assert {name for name, *_ in DELIBERATE} == {*NARROWINGS, "order"}


@pytest.mark.parametrize(
    ("schema", "instance"),
    [
        ({"type": "object", "properties": {"a": {"type": "string", "pattern": "b$"}}}, {"a": "b"}),
        ({**OPEN, "additionalProperties": False, "patternProperties": {"y$": {}}}, {"a": 1}),
        ({**OPEN, "required": ["a"], "properties": {"a": {}, "b": {}}, "minProperties": 2}, {"a": 1, "b": 2}),
    ],
    ids=["the end of a pattern", "the end of a name", "a count that is reported is not in the mask"],
)
def test_a_valid_instance_is_accepted(schema: Schema, instance: Any) -> None:
    reading = READINGS["value"](schema)
    assert valid(reading.schema, instance)
    assert reading.accepts(instance)


def test_branches_of_one_of_are_not_closed() -> None:
    branches = [{"properties": {"a": {}}, "required": ["a"]}, {"properties": {"b": {}}}]
    reading = READINGS["tool"]({"type": "object", "oneOf": branches})
    both = {"a": 1}
    assert not valid(reading.schema, both)
    assert not (reading.accepts(both) and reading.enforced)


@pytest.mark.parametrize(
    "schema", [{"type": "integer", "minimum": 5, "maximum": 4}, {"type": "array", "items": False, "minItems": 1}]
)
def test_a_schema_of_nothing_is_refused_and_told_why(schema: Schema) -> None:
    with pytest.raises(SchemaError) as caught:
        READINGS["value"](schema)
    assert "arguments" not in str(caught.value)


def test_multiples_of_a_fraction_are_judged_as_the_validator_does_or_listed() -> None:
    """The mask counts in decimals, jsonschema divides floats: 0.3 / 0.1 is no integer."""
    reading = READINGS["value"]({"type": "number", "multipleOf": 0.1})
    assert not reading.enforced or reading.accepts(0.3) == valid(reading.schema, 0.3)

"""Plain schemas as tables: the language and the masks of llguidance, the shortest completions, any order."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

import m1runtime
from m1runtime import Grammar
from m1runtime.grammar import Constraint, ToolGrammar, bounds, plain
from m1runtime.grammar.guided import Guided, Program, Text
from m1runtime.grammar.inside import programs
from m1runtime.grammar.places import Places
from m1runtime.grammar.schema import compile_schema
from m1runtime.grammar.table import Plan, Table
from m1runtime.grammar.tabled import Tabled
from m1runtime.grammar.vocabulary import vocabulary
from m1runtime.grammar.writer import Value, call_prefix
from m1runtime.tokenizer import Tokenizer

SEPARATORS = (", ", ": ")
SAMPLE = Path(__file__).parent.parent / "data" / "bfcl-sample.jsonl"
CASES = [json.loads(line) for line in SAMPLE.read_text().splitlines()]
NANO = Tokenizer.from_file(Path(m1runtime.__file__).parent / "nano")

SCHEMAS: list[dict[str, Any]] = [
    {"type": "object", "properties": {}},
    {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "integer"}}, "required": ["b"]},
    {"properties": {"n": {"type": ["number", "null"]}, "on": {"type": "boolean"}}, "required": ["n", "on"]},
    {"type": "object", "properties": {"k": {"enum": ["a", "ab", 1, 12, None, True, 'q"\n']}}, "required": ["k"]},
    {"type": "object", "properties": {"xs": {"type": "array", "items": {"type": "integer"}, "minItems": 1}}},
    {"type": "object", "properties": {"xs": {"type": "array", "items": {"type": "string"}, "maxItems": 2}}},
    {
        "type": "object",
        "properties": {"p": {"$ref": "#/$defs/P"}, "q": {"anyOf": [{"$ref": "#/$defs/P"}, {"type": "string"}]}},
        "required": ["p"],
        "$defs": {
            "P": {
                "type": "object",
                "properties": {"x": {"type": "number"}, "y": {"const": "a/b"}},
                "additionalProperties": False,
            }
        },
    },
    {"type": "object", "properties": {"i": {"type": "integer", "minimum": -12, "exclusiveMaximum": 1050}}},
    {"type": "object", "properties": {"i": {"type": "integer", "exclusiveMinimum": 0}}, "required": ["i"]},
    {"type": "object", "properties": {"s": {"anyOf": [{"const": "abc"}, {"type": "string"}]}}, "required": ["s"]},
    {"type": "object", "properties": {"o": {"type": "object"}, "v": {"description": "any"}}, "required": ["o"]},
    {
        "type": "object",
        "properties": {"aa": {"type": "integer"}, "a": {"type": "null"}},
        "required": ["aa"],
        "additionalProperties": {"type": "boolean"},
    },
    {"type": "object", "properties": {"m": {"type": "object", "additionalProperties": {"type": "string"}}}},
]


OPEN = 10
"""The schemas from here on take names of the model's own making: too many texts to try them all."""


def table_of(schemas: dict[str, Any], *, any_order: bool = False, max_calls: int | None = None) -> Table:
    """The table of a tool-calls grammar whose schemas must be plain."""
    grammar = Grammar.tool_calls(
        [ToolGrammar(name, schema) for name, schema in schemas.items()],
        mode="required",
        skip=("", ""),
        max_calls=max_calls,
        order="any" if any_order else "schema",
    )
    plan = grammar._text.direct  # type: ignore[union-attr]
    assert isinstance(plan, Plan)
    made = programs(NANO).get(plan)
    assert isinstance(made, Table)
    return made


def guided_of(schemas: dict[str, Any]) -> Guided:
    """The same grammar through llguidance alone."""
    pairs, names = list[tuple[str, Value]](), False
    for name, schema in schemas.items():
        compiled = compile_schema(name, schema, separators=SEPARATORS, tool=True)
        assert compiled is not None and compiled.report.enforced
        pairs.append((name, compiled.value))
        names = names or compiled.names
    lines = ['start: "<tool_calls>\\n" call "\\n" (call "\\n")* "</tool_calls>"']
    lines.append("call: " + " | ".join(f"call_{i}" for i in range(len(pairs))))
    for i, (name, value) in enumerate(pairs):
        lines.append(f'call_{i}: {json.dumps(call_prefix(name, SEPARATORS))} args_{i} "}}"')
        lines.append(f"args_{i}: {value.root}")
    lark = "\n".join(lines) + "\n"
    start = Program(vocabulary(NANO), Text(lark, True, names)).start
    assert start is not None
    return start


def tokens_of(mask: torch.Tensor) -> set[int]:
    """The ids a mask allows."""
    bits = (mask[:, None] >> torch.arange(32)) & 1
    return set(bits.flatten().nonzero().flatten().tolist())


def walk(table: Tabled, guided: Guided, seed: int, steps: int) -> None:
    """A random walk through both, every mask compared."""
    pick = random.Random(seed)
    for _ in range(steps):
        ours, theirs = tokens_of(table.mask(1 << 29)), tokens_of(guided.mask(1 << 29))
        forced = len(table.place.allowed) == 1
        extra, missing = ours - theirs, theirs - ours
        # Of several tokens of the same bytes, and where a token's rest is none, llguidance's side knows fewer; of
        # names that come twice, its mask knows nothing.
        taken = [NANO.token_bytes[token] for token in missing if guided.take((token,), 1 << 29) is not None]
        assert not taken or forced, taken
        for token in [*sorted(extra)[:20]]:
            assert guided.take((token,), 1 << 29) is not None, NANO.token_bytes[token]
        shared = sorted(ours & theirs)
        assert shared
        token = pick.choice(shared)
        after, peer = table.accept(token, 1 << 29), guided.accept(token, 1 << 29)
        assert after is not None and peer is not None
        table, guided = after, peer
        if table.finished:
            return


@pytest.mark.parametrize("number", range(len(SCHEMAS)))
def test_masks_are_those_of_llguidance(number: int) -> None:
    schemas = {"f": SCHEMAS[number], "fg": SCHEMAS[1]}
    table, guided = table_of(schemas).start, guided_of(schemas)
    for seed in range(6):
        walk(table, guided, seed, 40)


def test_masks_along_real_calls_are_those_of_llguidance() -> None:
    compared = 0
    for case in CASES[:12]:
        tools = case["schema"].get("anyOf", [case["schema"]])
        schemas = {one["properties"]["name"]["const"]: one["properties"]["arguments"] for one in tools}
        if any(plain.read(schema, separators=SEPARATORS, tool=True) is None for schema in schemas.values()):
            continue
        start, peer_start = table_of(schemas).start, guided_of(schemas)
        for test in (test for test in case["tests"] if test["valid"]):
            text = f"<tool_calls>\n{json.dumps(test['data'], ensure_ascii=False)}\n</tool_calls>"
            table, guided = start, peer_start
            for token in NANO.encode(text, special=False):
                ours, theirs = tokens_of(table.mask(1 << 29)), tokens_of(guided.mask(1 << 29))
                assert token in ours
                assert theirs <= ours or len(table.place.allowed) == 1
                after, peer = table.accept(token, 1 << 29), guided.accept(token, 1 << 29)
                assert after is not None and peer is not None
                table, guided, compared = after, peer, compared + 1
            assert table.done
    assert compared > 200


def test_valid_calls_are_accepted_and_invalid_ones_are_not_in_both_orders() -> None:
    judged = 0
    for case, any_order in itertools.product(CASES, (False, True)):
        tools = case["schema"].get("anyOf", [case["schema"]])
        schemas = {one["properties"]["name"]["const"]: one["properties"]["arguments"] for one in tools}
        if any(plain.read(schema, separators=SEPARATORS, tool=True) is None for schema in schemas.values()):
            continue
        table = table_of(schemas, any_order=any_order)
        for test in case["tests"]:
            text = f"<tool_calls>\n{json.dumps(test['data'], ensure_ascii=False)}\n</tool_calls>".encode()
            end = table.start.place.walk(text)
            assert (end is not None and end.accepting) == test["valid"], text
            judged += 1
    assert judged > 50


def test_any_order_takes_every_permutation_once() -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "string"}, "c": {"type": "boolean"}},
        "required": ["a", "c"],
    }
    node = plain.read(schema, separators=SEPARATORS, tool=True)
    assert node is not None
    places = Places(SEPARATORS, any_order=True)
    start = places.value(node, places.end)
    values = {"a": "1", "b": '"x"', "c": "true"}
    for size in range(4):
        for keys in itertools.product(values, repeat=size):
            text = "{" + ", ".join(f'"{key}": {values[key]}' for key in keys) + "}"
            end = start.walk(text.encode())
            valid = len(set(keys)) == len(keys) and {"a", "c"} <= set(keys)
            assert (end is not None and end.accepting) == valid, text


@given(st.integers(-40, 40) | st.none(), st.integers(-40, 40) | st.none())
@settings(max_examples=25, deadline=None)
def test_integers_between_bounds(low: int | None, high: int | None) -> None:
    if low is not None and high is not None and low > high:
        low, high = high, low
    node = plain.Integer(low, high)
    values = {str(n) for n in range(-999, 1000) if (low is None or n >= low) and (high is None or n <= high)}
    for n in range(-99, 100, 3):
        for text in (str(n), "-", "", "00", "-0", "01"):
            assert bounds.fits(node, text.encode()) == (text in values)
            begins = any(value.startswith(text) for value in values)
            assert bounds.may_become(node, text.encode()) == begins, text
            if begins:
                assert text + bounds.shortest(node, text.encode()).decode() in values


@pytest.mark.parametrize("number", range(OPEN))
def test_no_shorter_completion_exists(number: int) -> None:
    """Breadth first through every token the masks allow: nothing ends sooner than `shortest` says."""
    state = table_of({"f": SCHEMAS[number]}, max_calls=1).start
    run = state.forced(1 << 29)
    while run is not None:
        state = run[1]
        run = state.forced(1 << 29)
    best = state.refined()
    assert best.known.shortest
    assert _fewest(state, len(best.known.tokens)) == len(best.known.tokens)
    at: Tabled | None = best
    for left, token in enumerate(best.known.tokens):
        assert at is not None
        at = at.accept(token, len(best.known.tokens) - left - 1)
    assert at is not None and at.done


def _fewest(state: Tabled, limit: int) -> int:
    level, seen = [state.place], {state.place}
    for count in range(1, limit):
        following = []
        for place in level:
            if place.accepting:
                return count
            for token in tokens_of(state.program.mask(place)) - vocabulary(NANO).eos_ids:
                after = place.walk(vocabulary(NANO).bytes_of(token))
                if after is not None and after not in seen and len(seen) < 20_000:
                    seen.add(after)
                    following.append(after)
        level = following
    return limit


@pytest.mark.parametrize("any_order", [False, True])
def test_every_budget_at_which_a_call_fits_closes(any_order: bool) -> None:
    pick = random.Random(3)
    grammar = Grammar.tool_calls(
        [ToolGrammar(f"t{i}", schema) for i, schema in enumerate(SCHEMAS)],
        mode="required",
        order="any" if any_order else "schema",
    )
    least = grammar.start(NANO, max_new_tokens=4000).min_tokens
    with pytest.raises(ValueError, match=str(least)):
        grammar.start(NANO, max_new_tokens=least - 1)
    for budget in [*range(least, least + 25), 64, 200]:
        constraint, said = grammar.start(NANO, max_new_tokens=budget), list[int]()
        while not constraint.done:
            said += _one(constraint, budget - len(said), pick)
        assert len(said) + 1 <= budget
        text = b"".join(NANO.token_bytes[token] for token in said).decode(errors="replace")
        body = text.split("</think>")[-1].strip()
        for line in body.removeprefix("<tool_calls>\n").removesuffix("\n</tool_calls>").split("\n"):
            call = json.loads(line)
            Draft202012Validator(SCHEMAS[int(call["name"][1:])]).validate(call["arguments"])


def _one(constraint: Constraint, left: int, pick: random.Random) -> list[int]:
    mask = constraint.mask()
    assert mask is not None
    allowed = sorted(tokens_of(mask) - vocabulary(NANO).eos_ids)
    pick.shuffle(allowed)
    for token in allowed:
        if constraint.try_accept(token, left - 1):
            return [token, *constraint.forced(left - 1)]
    raise AssertionError("no allowed token was accepted")


def test_forced_runs_leave_the_models_own_spelling_open() -> None:
    names = ["find_flights", "fiogrioprak_grol", "fi", "get_weather", "get_weather_now"]
    table, spelled = table_of({name: SCHEMAS[n % len(SCHEMAS)] for n, name in enumerate(names)}), 0
    for name in names:
        for arguments in ("{}", '{"a": "x", "b": 1}', '{"n": null, "on": true}'):
            text = f'<tool_calls>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_calls>'
            if table.start.place.walk(text.encode()) is None:
                continue
            tokens, state, spelled = NANO.encode(text, special=False), table.start, spelled + 1
            while tokens:
                run = state.forced(1 << 29)
                if run is not None:
                    assert list(run[0]) == tokens[: len(run[0])], text
                    tokens, state = tokens[len(run[0]) :], run[1]
                    continue
                assert tokens[0] in tokens_of(state.mask(1 << 29)), text
                after = state.accept(tokens.pop(0), 1 << 29)
                assert after is not None
                state = after
    assert spelled > 3


@pytest.mark.parametrize("any_order", [False, True])
def test_made_up_names_come_once_and_are_no_declared_ones(any_order: bool) -> None:
    schema = {"type": "object", "properties": {"ab": {"type": "integer"}}, "additionalProperties": {"type": "null"}}
    node = plain.read(schema, separators=SEPARATORS, tool=True)
    assert node is not None
    places = Places(SEPARATORS, any_order=any_order)
    start = places.value(node, places.end)
    cases = {
        "{}": True,
        '{"ab": 1, "a": null, "abc": null}': True,
        '{"ab": null}': False,
        '{"a": null, "a": null}': False,
        '{"a": null, "a\\n": null, "a\\u000a": null}': False,
        '{"\\n": null, "": null}': True,
        '{"a": null, "ab": 1}': any_order,
        '{"a": 1}': False,
    }
    for text, valid in cases.items():
        end = start.walk(text.encode())
        assert (end is not None and end.accepting) == valid, text
        for length in range(len(text)):
            place = start.walk(text[:length].encode())
            if place is None:
                break
            whole = text[:length].encode()
            while (way := place.nearest)[1] is not place:
                whole, place = whole + way[0], way[1]
            Draft202012Validator(schema).validate(json.loads(whole))


def test_ten_thousand_words_and_three_hundred_tools() -> None:
    words = {"type": "object", "properties": {"w": {"enum": [f"w{i}" for i in range(10_000)]}}, "required": ["w"]}
    tools = {f"tool_{i}": words if i == 7 else SCHEMAS[i % len(SCHEMAS)] for i in range(300)}
    place = table_of(tools).start.place
    for word, valid in (("w9999", True), ("w10000", False)):
        text = f'<tool_calls>\n{{"name": "tool_7", "arguments": {{"w": "{word}"}}}}\n</tool_calls>'
        end = place.walk(text.encode())
        assert (end is not None and end.accepting) == valid


def test_the_shortest_call_may_be_that_of_any_tool() -> None:
    long = {"type": "object", "properties": {"a_rather_long_name": {"const": "and a long value"}}}
    long["required"] = ["a_rather_long_name"]
    short = {"type": "object", "properties": {"s": {"type": "string", "pattern": "^[ab]$"}}}

    def least(**schemas: Any) -> int:
        tools = [ToolGrammar(name, schema) for name, schema in schemas.items()]
        return Grammar.tool_calls(tools, mode="required", skip=("", "")).start(NANO, max_new_tokens=999).min_tokens

    alone = least(short=short)
    assert alone < least(long=long) and least(long=long, short=short) == alone
    many = {f"tool_number_{i}_of_many": long for i in range(100)}
    assert least(**many, short=short) == alone


def test_a_required_value_that_cannot_be_is_not_plain() -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer", "enum": ["1"]}, "m": {"type": "null"}}}
    assert plain.read(schema, separators=SEPARATORS, tool=True) is not None
    assert plain.read(schema | {"required": ["n"]}, separators=SEPARATORS, tool=True) is None


WORDS = ["type", "enum", "const", "anyOf", "oneOf", "$ref", "$defs", "properties", "required", "items", "minItems"]
WORDS += ["additionalProperties", "minimum", "format", "object", "array", "string", "integer", "#/$defs/a", "a"]
GARBAGE = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.sampled_from(WORDS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=4),
    max_leaves=12,
)


@given(GARBAGE)
@settings(max_examples=300, deadline=None)
def test_what_is_no_schema_is_not_plain_and_no_exception(schema: object) -> None:
    for tool in (True, False):
        node = plain.read(schema, separators=SEPARATORS, tool=tool)
        if node is not None:
            places = Places(SEPARATORS)
            assert places.value(node, places.end).walk(b"") is not None


def test_an_enumeration_of_objects_is_not_plain() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "object", "enum": [{"x": 1}, {}]}}}
    assert plain.read(schema, separators=SEPARATORS, tool=True) is None
    assert Grammar.tool_calls([ToolGrammar("f", schema)]).reports[0].enforced

from __future__ import annotations

import copy
import inspect
import json
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import AfterValidator, BaseModel, Field

from m1agent.errors import InvalidArguments, ToolDefinitionError, ToolError, ToolsetNotFound
from m1agent.render import render_result
from m1agent.tools import Tool, tool
from m1agent.toolset import Toolset, gather_tools, installed_toolsets, load_toolset

SCHEMAS = Path(__file__).parents[3] / "shared/schemas"
M1_TOKENIZER = Path(__file__).parents[3] / "shared/m1/tokenizer.json"


class Level(Enum):
    LOW = 1
    HIGH = 2


class Point(BaseModel):
    x: int
    y: int = 0


def even(value: int) -> int:
    if value % 2:
        raise ValueError("must be even")
    return value


@tool
def calculate(
    expression: str,
    operation: Literal["add", "subtract", "multiply", "divide", "derivative", "integral", "simplify", "factor"],
    digits: Annotated[int, Field(ge=1, le=15)] = 6,
    points: list[Point] | None = None,
    exact: bool = False,
    scale: float = 1.0,
    day: date | None = None,
    pairs: Annotated[int, AfterValidator(even)] = 2,
) -> str:
    """Calculate.

    Args:
        expression: What to calculate.
    """
    return f"{operation}({expression}) {digits} {points} {exact} {scale}"


def call(made: Tool, arguments: dict[str, Any]) -> str:
    return anyio.run(made.call, arguments)


def problems(made: Tool, arguments: dict[str, Any]) -> list[str]:
    with pytest.raises(InvalidArguments) as caught:
        made.validate(arguments)
    assert str(caught.value) == "\n".join([f"Invalid arguments for {made.name}:", *caught.value.problems])
    return list(caught.value.problems)


GOOD: dict[str, Any] = {"expression": "x", "operation": "add"}

MESSAGES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "missing": (
        {},
        [
            "expression: missing, expected string.",
            'operation: missing, expected one of "add", "subtract", "multiply", "divide", ... (4 more).',
        ],
    ),
    "misspelled name": (
        {"operation": "add", "expresion": "x"},
        [
            "expression: missing, expected string.",
            'expresion: unknown argument. Did you mean "expression"? '
            "Allowed: expression, operation, digits, points, exact, ... (3 more).",
        ],
    ),
    "unknown name": (
        GOOD | {"zzz": 1},
        ["zzz: unknown argument. Allowed: expression, operation, digits, points, exact, ... (3 more)."],
    ),
    "misspelled choice": (
        GOOD | {"operation": "Derivativ"},
        [
            'operation: expected one of "add", "subtract", "multiply", "divide", ... (4 more), '
            'got "Derivativ". Did you mean "derivative"?'
        ],
    ),
    "words for a number": (GOOD | {"digits": "seven"}, ['digits: expected integer, got the string "seven".']),
    "fraction for an integer": (GOOD | {"digits": 7.5}, ["digits: expected integer, got 7.5."]),
    "number for a string": (GOOD | {"expression": 3}, ["expression: expected string, got 3. Put it in quotes."]),
    "null": (GOOD | {"exact": None}, ["exact: expected boolean, got null. Leave it out or give a value."]),
    "too small": (GOOD | {"digits": 0}, ["digits: expected at least 1, got 0."]),
    "too large": (GOOD | {"digits": 99}, ["digits: expected at most 15, got 99."]),
    "object for a list": (GOOD | {"points": {"x": 1}}, ['points: expected array or null, got {"x": 1}.']),
    "inside a list": (
        GOOD | {"points": [{"x": 1}, {"x": "a"}, {"y": 1}]},
        ['points[1].x: expected integer, got the string "a".', "points[2].x: missing, expected integer."],
    ),
    "what only the type knows": (
        GOOD | {"day": "yesterday", "pairs": 3},
        [
            'day: expected a valid date or datetime, input is too short, got "yesterday".',
            "pairs: must be even, got 3.",
        ],
    ),
    "long value": (
        GOOD | {"digits": "x" * 5000},
        ['digits: expected integer, got the string "' + "x" * 20 + "...."],
    ),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_messages(name: str) -> None:
    arguments, expected = MESSAGES[name]
    assert problems(calculate, arguments) == expected


def test_every_problem_of_a_call_is_told_up_to_a_cap() -> None:
    told = problems(calculate, {"digits": 0, "exact": "maybe", "zzz": 1})
    assert [line.partition(":")[0] for line in told] == ["digits", "exact", "expression", "operation", "zzz"]
    many = problems(calculate, GOOD | {"points": [{} for _ in range(50)]})
    assert many[:8] == [f"points[{index}].x: missing, expected integer." for index in range(8)]
    assert many[8:] == ["... and 42 more."]


def test_no_message_has_more_than_forty_tokens() -> None:
    if not M1_TOKENIZER.exists():
        pytest.skip("MiniMax-M1's tokenizer.json is not beside this checkout")
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(M1_TOKENIZER))
    hostile = {
        "digits": "é☃" * 500,
        "operation": "zqxj" * 99,
        "points": [{"x": "\\" * 99}],
        "a_long_name" * 60: {"a": [[1]]},
    }
    for arguments in [*(arguments for arguments, _ in MESSAGES.values()), hostile]:
        for line in problems(calculate, arguments):
            assert len(tokenizer.encode(line).ids) <= 40, line


def test_messages_carry_no_address_and_no_schema() -> None:
    for arguments, _ in MESSAGES.values():
        text = "\n".join(problems(calculate, arguments))
        assert "http" not in text and "$defs" not in text and "properties" not in text


COERCED: dict[str, tuple[dict[str, Any], dict[str, Any], list[str]]] = {
    "integer": ({"digits": "7"}, {"digits": 7}, ['digits: "7" read as 7']),
    "integer with blanks": ({"digits": " 7 "}, {"digits": 7}, ['digits: " 7 " read as 7']),
    "whole float": ({"digits": 7.0}, {"digits": 7}, ["digits: 7.0 read as 7"]),
    "whole float in a string": ({"digits": "7.0"}, {"digits": 7}, ['digits: "7.0" read as 7']),
    "number": ({"scale": "-1.5e3"}, {"scale": -1500.0}, ['scale: "-1.5e3" read as -1500.0']),
    "boolean": ({"exact": "True"}, {"exact": True}, ['exact: "True" read as true']),
    "list in a string": (
        {"points": '[{"x": "1"}]'},
        {"points": [{"x": 1}]},
        ['points: "[{\\"x\\": \\"1\\"}]" read as [{"x": "1"}]', 'points[0].x: "1" read as 1'],
    ),
    "object in a string": (
        {"points": ['{"x": 1}']},
        {"points": [{"x": 1}]},
        ['points[0]: "{\\"x\\": 1}" read as {"x": 1}'],
    ),
}


@pytest.mark.parametrize("name", COERCED)
def test_safe_coercions_are_made_and_reported(name: str) -> None:
    arguments, expected, told = COERCED[name]
    validated = calculate.validate(GOOD | arguments)
    assert validated.arguments == GOOD | expected
    assert [type(value) for value in validated.arguments.values()] == [type(v) for v in (GOOD | expected).values()]
    assert list(validated.coercions) == told


@pytest.mark.parametrize("text", ["", "1e999", "0x10", "１", "1_000", "9" * 10_000, "nan", "--1", "1.", "yes", "[1"])
def test_what_is_uncertain_is_not_coerced(text: str) -> None:
    problems(calculate, GOOD | {"digits": text})
    problems(calculate, GOOD | {"scale": text})
    problems(calculate, GOOD | {"exact": text})
    problems(calculate, GOOD | {"points": text})


def test_deep_nesting_is_a_problem_like_any_other() -> None:
    value: Any = 1
    for _ in range(5000):
        value = [value]
    assert problems(calculate, GOOD | {"points": value}) == ["arguments: nested too deeply."]


def test_a_string_stays_a_string() -> None:
    validated = calculate.validate(GOOD | {"expression": "7"})
    assert validated.kwargs["expression"] == "7" and validated.coercions == ()


def test_the_callers_arguments_are_not_changed() -> None:
    given = GOOD | {"points": [{"x": "1"}], "digits": "3"}
    before = copy.deepcopy(given)
    calculate.validate(given)
    assert given == before


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=50),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from([*calculate.spec.parameters["properties"], "a\n\nb", "é" * 99]), JSON))
def test_any_arguments_fit_or_are_told_in_short_lines(arguments: dict[str, Any]) -> None:
    try:
        validated = calculate.validate(GOOD | arguments)
    except InvalidArguments as error:
        assert 0 < len(error.problems) <= 9
        assert all(0 < len(line) <= 260 and "\n" not in line for line in error.problems)
    else:
        assert calculate.validate(validated.arguments).coercions == ()


def test_a_decorated_function_stays_a_function() -> None:
    assert calculate("x", "add", digits=3) == "add(x) 3 None False 1.0"
    assert calculate.__name__ == "calculate"
    assert calculate.__doc__ is not None and calculate.__doc__.startswith("Calculate.")
    assert list(inspect.signature(calculate).parameters)[:2] == ["expression", "operation"]


def test_options_of_the_decorator() -> None:
    @tool(name="plus", description="Adds.")
    def add(a: int, b: int = 1) -> int:
        """Not shown."""
        return a + b

    assert (add.spec.name, add.spec.description) == ("plus", "Adds.")
    assert add(1, 2) == 3
    assert call(add, {"a": 4}) == "5"


def test_handlers_get_python_values() -> None:
    @tool
    def show(level: Level, at: Point, day: date) -> str:
        return f"{level!r} {at!r} {day!r}"

    arguments = {"level": 2, "at": {"x": "3"}, "day": "2026-01-02"}
    assert call(show, arguments) == "<Level.HIGH: 2> Point(x=3, y=0) datetime.date(2026, 1, 2)"


def test_sync_functions_run_in_threads_and_async_ones_in_the_loop() -> None:
    @tool
    def sync() -> bool:
        return threading.current_thread() is threading.main_thread()

    @tool
    async def native() -> bool:
        return threading.current_thread() is threading.main_thread()

    class Handler:
        async def __call__(self) -> bool:
            return threading.current_thread() is threading.main_thread()

    made = Tool.from_schema("h", "", {"type": "object"}, Handler())
    assert (call(sync, {}), call(native, {}), call(made, {})) == ("false", "true", "true")


def test_cancelling_does_not_wait_for_a_thread() -> None:
    release = threading.Event()

    @tool
    def slow() -> None:
        release.wait(30)

    async def main() -> float:
        start = time.perf_counter()
        with anyio.move_on_after(0.05):
            await slow.call({})
        return time.perf_counter() - start

    try:
        assert anyio.run(main) < 5
    finally:
        release.set()


def test_threads_that_hang_leave_room_for_others() -> None:
    release = threading.Event()

    @tool
    def slow() -> None:
        release.wait(30)

    @tool
    def quick() -> str:
        return "here"

    async def main() -> str:
        async with anyio.create_task_group() as group:
            for _ in range(50):
                group.start_soon(slow.call, {})
            await anyio.sleep(0.05)
            group.cancel_scope.cancel()
        with anyio.fail_after(10):
            return await quick.call({})

    try:
        assert anyio.run(main) == "here"
    finally:
        release.set()


def test_what_a_tool_raises_passes_through() -> None:
    @tool
    def fails() -> None:
        raise ToolError("The shop is closed.")

    with pytest.raises(ToolError, match=r"^The shop is closed\.$"):
        call(fails, {})


def test_nothing_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    call(calculate, GOOD | {"expression": "sk-secret"})
    problems(calculate, GOOD | {"digits": "sk-secret"})
    assert "sk-secret" not in caplog.text


@dataclass
class Pair:
    a: int
    b: list[Level]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("as it is\n", "as it is\n"),
        ("", ""),
        (None, "Done. Nothing was returned."),
        (3, "3"),
        (True, "true"),
        (2.5, "2.5"),
        ({"a": [1, None], "ü": "é"}, '{"a": [1, null], "ü": "é"}'),
        (Point(x=1), '{"x": 1, "y": 0}'),
        ([Pair(1, [Level.LOW])], '[{"a": 1, "b": [1]}]'),
        ((1, date(2026, 1, 2)), '[1, "2026-01-02"]'),
        (float("nan"), '"NaN"'),
    ],
)
def test_results_as_text(value: Any, text: str) -> None:
    assert render_result(value).content == text


def test_a_result_without_a_json_form_is_an_error() -> None:
    with pytest.raises(TypeError, match="a tool returned a object, which has no JSON form"):
        render_result(object())


def echo(**arguments: Any) -> dict[str, Any]:
    return arguments


RELATIONS = {
    "$schema": "http://json-schema.org/draft-07/schema#",
    "type": "object",
    "title": "Relations",
    "properties": {"relations": {"type": "array", "items": {"$ref": "#/definitions/relation"}}},
    "required": ["relations"],
    "definitions": {
        "relation": {
            "type": "object",
            "properties": {
                "from": {"type": "string", "minLength": 1},
                "weight": {"type": ["integer", "null"]},
                "parts": {"type": "array", "items": {"$ref": "#/definitions/relation"}},
            },
            "required": ["from"],
            "additionalProperties": False,
        }
    },
}


def test_a_tool_of_a_schema() -> None:
    schema = copy.deepcopy(RELATIONS)
    made = Tool.from_schema("relate", "Relates.", schema, echo)
    given = {"relations": [{"from": "a", "weight": "3", "parts": [{"from": "b"}]}], "extra": 1}
    assert json.loads(call(made, given)) == {
        "relations": [{"from": "a", "weight": 3, "parts": [{"from": "b"}]}],
        "extra": 1,
    }
    assert made.spec.parameters is schema and schema == RELATIONS
    assert problems(made, {"relations": [{"form": "a"}, {"from": "", "parts": [{}]}]}) == [
        "relations[0].from: missing, expected string.",
        'relations[0].form: unknown argument. Did you mean "from"? Allowed: from, weight, parts.',
        'relations[1].from: expected at least 1 characters, got "".',
        "relations[1].parts[0].from: missing, expected string.",
    ]


@pytest.mark.parametrize(
    "schema", [{}, {"type": "object"}, {"properties": {}}, {"type": ["object", "null"], "required": []}]
)
def test_schemas_that_say_little(schema: dict[str, Any]) -> None:
    made = Tool.from_schema("t", "", schema, echo)
    assert call(made, {}) == "{}"
    assert call(made, {"a": 1}) == '{"a": 1}'


ALTERNATIVES: dict[str, Any] = {
    "type": "object",
    "properties": {
        "one": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
        "two": {"oneOf": [{"type": "object", "required": ["id"]}, {"type": "array", "items": {"type": "integer"}}]},
        "three": {"oneOf": [{"type": "integer"}, {"minimum": 3}]},
        "four": {"not": {"type": "string"}},
        "five": False,
        "six": {"type": ["boolean", "string"]},
    },
    "patternProperties": {"^x_": {"type": "integer"}},
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"one": "a"}, ['one: expected integer or null, got the string "a".']),
        ({"two": {}}, ["two.id: missing, expected a value."]),
        ({"two": ["a"]}, ['two[0]: expected integer, got the string "a".']),
        ({"two": 3}, ["two: expected object or array, got 3."]),
        ({"three": 5}, ["three: expected exactly one of the allowed forms, got 5."]),
        ({"four": "a"}, ["four: expected a value that satisfies 'not', got \"a\"."]),
        ({"five": 1}, ["arguments: expected no value at this place, got 1."]),
        ({"x_a": "b"}, ['x_a: expected integer, got the string "b".']),
        ({"y": 1}, ["y: unknown argument. Allowed: one, two, three, four, five, six."]),
    ],
)
def test_messages_of_alternatives(arguments: dict[str, Any], expected: list[str]) -> None:
    assert problems(Tool.from_schema("t", "", ALTERNATIVES, echo), arguments) == expected


def test_coercion_among_alternatives() -> None:
    made = Tool.from_schema("t", "", ALTERNATIVES, echo)
    assert made.validate({"one": "3", "two": "[1]", "six": "true"}).arguments == {"one": 3, "two": [1], "six": "true"}
    assert made.validate({"one": "null"}).arguments == {"one": None}


REMOTE = "https://example.invalid/schema.json"


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"type": "string"}, 't: the arguments of a tool are an object, not "string"'),
        ({"type": "object", "properties": {"a": {"type": "text"}}}, "t: not a JSON Schema: at properties.a.type: "),
        ({"type": "object", "properties": {"a": {"pattern": "("}}}, "t: not a JSON Schema: at properties.a.pattern: "),
        ({"type": "object", "properties": {"a": {"$ref": REMOTE}}}, f't: reference "{REMOTE}" leads outside'),
        ({"type": "object", "properties": {"a": {"$ref": "#/nowhere"}}}, 't: reference "#/nowhere" leads outside'),
        ({"type": "object", "properties": []}, "t: not a JSON Schema: at properties: "),
    ],
)
def test_schemas_that_cannot_be_used(schema: dict[str, Any], text: str) -> None:
    with pytest.raises(ToolDefinitionError) as caught:
        Tool.from_schema("t", "", schema, echo)
    assert str(caught.value).startswith(text)


@pytest.mark.parametrize("path", sorted((SCHEMAS / "mcp").glob("*.json")), ids=lambda path: path.stem)
def test_tools_of_real_mcp_servers(path: Path) -> None:
    listed: Any = json.loads(path.read_text())
    for item in listed["tools"] if isinstance(listed, dict) else listed:
        schema = item.get("inputSchema") or item.get("input_schema")
        before = copy.deepcopy(schema)
        made = Tool.from_schema(item["name"], item.get("description") or "", schema, echo)
        needed = schema.get("required", [])
        if needed:
            assert len(problems(made, {})) == min(len(needed), 9)
        else:
            assert call(made, {}) == "{}"
        assert schema == before


def named(name: str) -> Tool:
    return Tool.from_schema(name, "", {"type": "object"}, echo)


def test_toolsets() -> None:
    tools = Toolset("shop", [named("buy"), named("sell")])
    assert [item.name for item in tools] == ["buy", "sell"]
    assert len(tools) == 2 and "buy" in tools and "steal" not in tools
    assert tools["sell"].name == "sell" and tools.get("steal") is None
    assert [spec.name for spec in tools.specs] == ["buy", "sell"]
    assert [item.name for item in tools.prefixed("shop__")] == ["shop__buy", "shop__sell"]
    assert [item.name for item in tools.filtered(lambda item: item.name != "buy")] == ["sell"]
    assert tools.unknown("bu") == 'There is no tool "bu". Did you mean "buy"? Tools: buy, sell.'
    assert tools.unknown("xyz") == 'There is no tool "xyz". Tools: buy, sell.'
    assert call(tools.prefixed("shop__")["shop__buy"], {"a": 1}) == '{"a": 1}'


def test_two_tools_of_one_name_are_refused() -> None:
    with pytest.raises(ToolDefinitionError, match="two tools are called 'buy'"):
        Toolset("shop", [named("buy"), named("buy")])


def test_tools_toolsets_and_functions_are_gathered_in_order() -> None:
    def plain(x: int) -> int:
        return x

    gathered = gather_tools([named("a"), Toolset("s", [named("b")]), plain, calculate])
    assert [item.name for item in gathered] == ["a", "b", "plain", "calculate"]
    not_a_tool: Any = 3
    with pytest.raises(ToolDefinitionError, match="3 is no tool"):
        gather_tools([not_a_tool])


def test_the_maths_toolset_is_installed() -> None:
    assert "maths" in installed_toolsets()
    assert "calculate_math" in load_toolset("maths")


def test_an_unknown_toolset_names_those_there_are() -> None:
    with pytest.raises(ToolsetNotFound, match=r"no toolset 'mathz' is installed; there are: .*maths"):
        load_toolset("mathz")


def test_a_tool_is_checked_in_well_under_a_millisecond() -> None:
    def seconds(run: Callable[[], object]) -> float:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    assert min(seconds(lambda: calculate.validate(GOOD)) for _ in range(50)) < 0.001

"""The situations in which agent SDKs were seen to fail, each as a test of what happens here.

The first ten are of the loop; the others are of MCP, with real server processes.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import threading
from collections.abc import Sequence
from importlib.metadata import requires, version
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from m1agent.agent import Agent
from m1agent.budget import ResultBudget
from m1agent.cancel import Cancel
from m1agent.conversation import Conversation
from m1agent.limits import Limits
from m1agent.mcp.config import StdioServer
from m1agent.messages import AssistantMessage, Message, ToolCall, ToolMessage, ToolResult
from m1agent.models.scripted import Reply, ScriptedModel
from m1agent.result import RunResult
from m1agent.tools import Tool, tool

HERE = Path(__file__).parent


def calls(*wanted: tuple[str, dict[str, Any]]) -> AssistantMessage:
    return AssistantMessage(calls=tuple(ToolCall(f"call_{n}", name, given) for n, (name, given) in enumerate(wanted)))


def run(replies: Sequence[Reply], tools: Sequence[Tool] = (), **options: Any) -> RunResult[Any]:
    """A run through all of the script: a situation that ends it early fails here."""
    model = ScriptedModel(replies)
    result = Agent(model, tools, **options).run_sync("Go.")
    model.assert_complete()
    return result


def told(result: RunResult[Any]) -> list[str]:
    """What the model was told of each call, in order; checks that it is what the conversation holds."""
    in_history = [one for message in result.messages if isinstance(message, ToolMessage) for one in message.results]
    assert in_history == [record.result for record in result.calls]
    return [one.content for one in in_history]


class Place(BaseModel):
    x: int


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@tool
def fail() -> str:
    """Fails."""
    raise ValueError("no row 7")


# The loop


def test_a_tool_raises_value_error() -> None:
    result = run([calls(("fail", {})), "Then not."], [fail])
    assert (result.stop, result.output, told(result)) == ("done", "Then not.", ["ValueError: no row 7"])
    assert result.calls[0].result.is_error


def test_the_arguments_are_broken_json() -> None:
    broken = '<tool_calls>\n{"name": "add", "arguments": {"a": 1, "b": }}\n</tool_calls>'
    result = run([broken, calls(("add", {"a": 1, "b": 2})), "3"], [add])
    first, second = told(result)
    assert result.stop == "done" and second == "3"
    assert first.startswith("The call of add could not be read: ") and len(first) < 200


def test_an_argument_is_of_the_wrong_type() -> None:
    result = run([calls(("add", {"a": "one", "b": [2]})), "Sorry."], [add])
    assert told(result)[0].splitlines() == [
        "Invalid arguments for add:",
        'a: expected integer, got the string "one".',
        "b: expected integer, got [2].",
    ]


def test_the_tool_is_unknown() -> None:
    result = run([calls(("ad", {})), "Sorry."], [add, fail])
    assert told(result) == ['There is no tool "ad". Did you mean "add"? Tools: add, fail.']
    assert result.stop == "done"


def test_one_of_three_parallel_tools_fails() -> None:
    failed = threading.Event()

    @tool
    def fail_first() -> str:
        """Fails while the others run."""
        failed.set()
        raise ValueError("broken")

    @tool
    def wait(name: str) -> str:
        """Ends after the failure."""
        failed.wait()
        return name

    three = calls(("wait", {"name": "left"}), ("fail_first", {}), ("wait", {"name": "right"}))
    assert told(run([three, "Two of three."], [wait, fail_first])) == ["left", "ValueError: broken", "right"]


def test_two_sync_tools_run_at_the_same_time() -> None:
    both = threading.Barrier(2, timeout=60)

    @tool
    def meet() -> str:
        """Ends when both are here."""
        both.wait()
        return "met"

    assert told(run([calls(("meet", {}), ("meet", {})), "Done."], [meet])) == ["met", "met"]


def test_the_step_limit_is_hit() -> None:
    script = [calls(("add", {"a": n, "b": 1})) for n in range(3)]
    result = run(script, [add], limits=Limits(steps=3))
    assert (result.stop, result.output, result.steps) == ("steps", None, 3)
    assert told(result) == ["1", "2", "3"]
    again = Agent(ScriptedModel(["Three sums."]), [add]).run_sync("And?", conversation=result.conversation)
    assert (again.stop, again.output) == ("done", "Three sums.") and again.messages[:7] == result.messages


def test_sixty_identical_calls() -> None:
    model = ScriptedModel([calls(("add", {"a": 1, "b": 1}))] * 60)
    result = Agent(model, [add], limits=Limits(steps=None)).run_sync("Go.")
    assert (result.stop, result.steps) == ("loop", 4)
    first, second, third, fourth = told(result)
    assert first == second == "2"
    assert "3 times with the same result" in third and "4 times with the same result" in fourth


def test_a_nested_object_arrives_as_a_json_string() -> None:
    @tool
    def go(p: Place) -> str:
        """Go there."""
        return f"at {p.x}"

    assert told(run([calls(("go", {"p": '{"x":7}'})), "There."], [go])) == [
        'at 7\nNote: p: "{\\"x\\":7}" read as {"x": 7}.'
    ]


def test_cancelled_inside_a_tool_then_resumed() -> None:
    async def go() -> tuple[RunResult[Any], RunResult[Any]]:
        cancel, running = Cancel(), asyncio.Event()

        @tool
        async def wait() -> str:
            """Never ends by itself."""
            running.set()
            await asyncio.Event().wait()
            return ""

        def history_is_whole(messages: tuple[Message, ...]) -> str:
            asked = [call.id for m in messages if isinstance(m, AssistantMessage) for call in m.calls]
            answered = [one.call_id for m in messages if isinstance(m, ToolMessage) for one in m.results]
            return f"whole: {asked == answered}, {len(asked)} calls"

        model = ScriptedModel([calls(("add", {"a": 1, "b": 2}), ("wait", {})), history_is_whole])
        agent, conversation = Agent(model, [add, wait]), Conversation()
        first = asyncio.create_task(agent.run("Go.", conversation=conversation, cancel=cancel))
        await running.wait()
        cancel.cancel()
        return await first, await agent.run("Go on.", conversation=conversation)

    first, second = asyncio.run(go())
    assert (first.stop, second.stop, second.output) == ("cancelled", "done", "whole: True, 2 calls")
    assert told(first)[1] == "This call was stopped before it finished."
    assert second.messages[: len(first.messages)] == first.messages


# MCP


def hand(log: Path, name: str = "hand", **options: Any) -> StdioServer:
    return StdioServer(name, sys.executable, (str(HERE / "hand_server.py"), str(log)), **options)


OFFICIAL = StdioServer("official", sys.executable, (str(HERE / "official_server.py"),))


def with_servers(
    servers: Sequence[StdioServer], *wanted: tuple[str, dict[str, Any]], **options: Any
) -> tuple[Agent, list[ToolResult]]:
    """The agent and the results of the calls, made one after the other in one run that ends with an answer."""
    model = ScriptedModel([*(calls(one) for one in wanted), "Done."])
    agent = Agent(model, mcp=servers, **options)
    result = agent.run_sync("Go.")
    assert result.stop == "done"
    told(result)
    return agent, [record.result for record in result.calls]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    (tmp_path / "log").touch()
    return tmp_path / "log"


def seen_by_the_server(log: Path) -> list[Any]:
    return [json.loads(line) for line in log.read_text().splitlines()]


def test_one_tool_has_an_empty_input_schema(log: Path) -> None:
    agent, results = with_servers([hand(log)], ("hand__empty", {"any": 1}), ("hand__strict", {"n": 1, "who": "me"}))
    assert [one.is_error for one in results] == [False, False]
    assert agent.servers[0].left_out == ()


def test_a_server_ignores_unknown_methods(log: Path) -> None:
    """The mcp client alone waits ten seconds for an answer to its first question."""
    agent, _ = with_servers([hand(log, connect_seconds=8.0)], ("hand__empty", {}))
    assert (agent.servers[0].state, agent.servers[0].protocol) == ("ready", "2024-11-05")
    assert seen_by_the_server(log) == [["empty", {}]]


def test_a_tool_is_called_bad_name_with_signs(log: Path) -> None:
    agent, results = with_servers([hand(log)], ("hand__bad-x20-name-x21--x20--xe9-", {"from": "here"}))
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name) for name in agent.servers[0].tools)
    assert not results[0].is_error and seen_by_the_server(log) == [["bad name! é", {"from": "here"}]]


def test_recursive_references_type_lists_and_boolean_schemas(log: Path) -> None:
    good = {"tree": {"value": 1, "next": {"next": {}}}, "many": None, "any": [1]}
    wrong = {"tree": {"next": {"next": 5}}, "many": "x"}
    _, results = with_servers([hand(log)], ("hand__odd", good), ("hand__odd", wrong))
    assert [one.is_error for one in results] == [False, True]
    assert results[1].content.splitlines()[1:] == [
        "tree.next.next: expected object, got 5.",
        'many: expected integer or null, got the string "x".',
    ]
    assert seen_by_the_server(log) == [["odd", good]]


def test_the_model_sends_a_wrong_type_or_misses_an_argument(log: Path) -> None:
    _, results = with_servers([hand(log)], ("hand__strict", {"n": [1]}), ("hand__strict", {"n": "7", "who": "me"}))
    assert results[0].content.splitlines() == [
        "Invalid arguments for hand__strict:",
        "n: expected integer, got [1].",
        "who: missing, expected string.",
    ]
    assert not results[1].is_error and seen_by_the_server(log) == [["strict", {"n": 7, "who": "me"}]]


def test_the_server_dies_in_call_two_of_three(log: Path) -> None:
    _, results = with_servers([hand(log)], ("hand__empty", {}), ("hand__die", {}), ("hand__empty", {"again": True}))
    assert [one.is_error for one in results] == [False, True, False]
    assert "Whether the call took effect is not known" in results[1].content
    assert [name for name, _ in seen_by_the_server(log)] == ["empty", "die", "empty"]


def test_a_result_of_five_megabytes(log: Path, tmp_path: Path) -> None:
    budget = ResultBudget(folder=tmp_path / "long", reader=True)
    _, results = with_servers([hand(log)], ("hand__big", {}), results=budget)
    content = results[0].content
    assert content.startswith("begin ") and content.endswith(" end") and len(content) < budget.characters + 300
    found = re.search(r"the whole text is in (\S+) ", content)
    assert found is not None and len(Path(found[1]).read_text()) == 5_000_010


def test_two_servers_have_a_tool_of_the_same_name(log: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    _, results = with_servers(
        [hand(log, "one"), hand(other, "two")], ("one__empty", {"for": 1}), ("two__empty", {"for": 2})
    )
    assert not any(one.is_error for one in results)
    assert seen_by_the_server(log) == [["empty", {"for": 1}]]
    assert seen_by_the_server(other) == [["empty", {"for": 2}]]


def test_one_of_two_servers_is_dead_at_the_start(log: Path) -> None:
    dead = StdioServer("dead", sys.executable, ("-c", "import sys; sys.exit('no such database')"))
    agent, results = with_servers([dead, hand(log)], ("hand__empty", {}))
    assert [status.state for status in agent.servers] == ["failed", "ready"] and not results[0].is_error
    assert "no such database" in agent.servers[0].reason


def test_a_fresh_install_works_with_mcp_two() -> None:
    assert "mcp<3,>=2.3" in (requires("m1agent") or []) and version("mcp").startswith("2.")
    agent, results = with_servers([OFFICIAL], ("official__half", {"n": 42}))
    assert agent.servers[0].protocol == "2026-07-28" and json.loads(results[0].content) == {"result": "21"}


def test_an_error_of_a_server_carries_the_address_of_a_documentation() -> None:
    _, results = with_servers([OFFICIAL], ("official__half", {"n": 3}))
    assert results[0].is_error and "must be even" in results[0].content
    assert "http" not in results[0].content


def test_a_result_in_blocks_is_one_text_the_same_each_time(log: Path) -> None:
    servers = [hand(log), OFFICIAL]
    wanted = [("hand__empty", {"b": 1, "a": 2}), ("official__several", {})]
    first, second = (with_servers(servers, *wanted)[1] for _ in range(2))
    assert [one.content for one in first] == [one.content for one in second]
    assert [one.content for one in first] == ['empty got\n{"b": 1, "a": 2}', '{"result": ["one", "two"]}']

"""Toolsets put together: renamed, filtered, guarded, offered for a while; and what tools may return."""

from __future__ import annotations

import asyncio
import sys
import threading
from pathlib import Path
from typing import Any, Literal

import pytest

from m1agent.agent import Agent
from m1agent.conversation import Conversation
from m1agent.errors import ToolDefinitionError, ToolError
from m1agent.limits import Limits
from m1agent.mcp.config import StdioServer
from m1agent.mcp.hub import McpHub
from m1agent.messages import AssistantMessage, FilePart, ImagePart, ToolCall, ToolOutput
from m1agent.models.base import Settings
from m1agent.models.local import LocalModel
from m1agent.models.scripted import ScriptedModel
from m1agent.prompt.envelope import Named
from m1agent.result import RunResult
from m1agent.tools import Hints, Tool, tool
from m1agent.toolset import Toolset

PNG = b"\x89PNG\r\n\x1a\n"


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@tool(hints=Hints(destructive=True))
def wipe() -> str:
    """Wipe."""
    return "wiped"


BOTH = Toolset("both", [add, wipe])


def call(*names: str, **arguments: Any) -> AssistantMessage:
    return AssistantMessage(calls=tuple(ToolCall(f"call_{i}", name, arguments) for i, name in enumerate(names, 1)))


def run(tools: Any, *script: Any, **options: Any) -> RunResult[str]:
    return Agent(ScriptedModel(script), tools=tools, **options).run_sync("Go.")


def told(result: RunResult[Any]) -> list[str]:
    return [record.result.content for record in result.calls]


def names(tools: Toolset) -> list[str]:
    return [made.name for made in tools]


# Composition


def test_toolsets_are_put_together_without_changing_what_they_are_made_of() -> None:
    assert names(BOTH.prefixed("my_")) == ["my_add", "my_wipe"]
    assert names(BOTH.renamed({"add": "plus"})) == ["plus", "wipe"]
    assert names(BOTH.filtered(lambda made: not made.hints.destructive)) == ["add"]
    assert [made.timeout for made in BOTH.mapped(lambda made: made.changed(timeout=2.0))] == [2.0, 2.0]
    assert [made.needs_approval({}) for made in BOTH.approval_required()] == [True, True]
    assert [made.needs_approval({}) for made in BOTH.approval_required(False)] == [False, False]
    assert [made.needs_approval({"a": 1}) for made in BOTH.approval_required(lambda given: "a" in given)] == [True] * 2
    assert names(BOTH) == ["add", "wipe"] and [made.timeout for made in BOTH] == [None, None]
    assert told(run([BOTH.prefixed("my_")], call("my_add", a=1, b=2), "ok")) == ["3"]


def test_a_changed_function_tool_is_still_its_function() -> None:
    plus = add.renamed("plus")
    assert plus(1, 2) == 3 and plus.name == "plus" and plus.spec.description == "Add two numbers."


def test_names_that_meet_or_are_none_are_refused() -> None:
    with pytest.raises(ToolDefinitionError, match="two tools are called 'add'"):
        Toolset("x", [add, add])
    with pytest.raises(ToolDefinitionError, match="two tools are called 'wipe'"):
        BOTH.renamed({"add": "wipe"})
    with pytest.raises(ToolDefinitionError, match=r'There is no tool "ad". Did you mean "add"\?'):
        BOTH.renamed({"ad": "plus"})
    assert names(BOTH.renamed({"add": "wipe", "wipe": "add"})) == ["wipe", "add"]


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"timout": 1}, TypeError, "a tool has no field 'timout'. Did you mean \"timeout\"?"),
        ({"timeout": 0}, ToolDefinitionError, "add: timeout must be above 0 seconds, not 0"),
        ({"retries": 0}, ToolDefinitionError, "add: retries must be at least 1, and a whole number, not 0"),
    ],
)
def test_changes_that_make_no_sense_are_refused(changes: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error) as raised:
        add.changed(**changes)
    assert str(raised.value).startswith(says)
    with pytest.raises(ToolDefinitionError, match="x: timeout must be above 0"):
        Tool.from_schema("x", "", {"type": "object"}, add.handler, timeout=-1)


# Offered for a while


def test_what_may_be_called_changes_and_the_prompt_does_not() -> None:
    open_ = True

    @tool
    def shut() -> str:
        """Shut the door."""
        nonlocal open_
        open_ = False
        return "shut"

    tools = [shut.changed(available=lambda: open_), *Toolset("x", [add]).available_when(lambda: not open_)]
    talk, model = Conversation(), ScriptedModel([call("shut"), call("add", a=1, b=1), call("shut"), "ok"])

    async def go() -> RunResult[str]:
        seen: tuple[int, ...] = ()
        result = None
        async for event in Agent(model, tools=tools).stream("Go.", conversation=talk):
            ids = talk.ids or ()
            assert ids[: len(seen)] == seen
            seen, result = ids, getattr(event, "result", result)
        assert isinstance(result, RunResult)
        return result

    result = asyncio.run(go())
    assert [[spec.name for spec in request.envelope.tools] for request in model.requests] == [
        ["shut"],
        *[["add"]] * 3,
    ]
    assert model.requests[1].envelope is model.requests[2].envelope  # One grammar for equal replies.
    assert told(result) == ["shut", "2", "shut is not available now."] and talk.rebuilds == 0


def test_a_real_model_calls_only_what_is_available(folder: Path) -> None:
    @tool
    def paint(colour: Literal["red", "green"]) -> str:
        """Paint."""
        return colour

    @tool
    def rest(hours: Literal[1, 2]) -> str:
        """Rest."""
        return str(hours)

    async def go() -> None:
        model, tired, talk = LocalModel(folder, max_tokens=96), False, Conversation()
        tools = [paint.changed(available=lambda: not tired), rest.changed(available=lambda: tired)]
        agent = Agent(model, tools=tools, settings=Settings(seed=3), limits=Limits(steps=1))
        seen: tuple[int, ...] = ()
        for turn in range(4):
            tired = turn % 2 == 1
            result = await agent.run("Go.", conversation=talk, tool_choice="required")
            assert {record.call.name for record in result.calls} == {"rest" if tired else "paint"}
            assert not any(record.result.is_error for record in result.calls)
            assert talk.ids is not None and talk.ids[: len(seen)] == seen
            seen = talk.ids
        assert talk.rebuilds == 0
        await talk.aclose()
        await model.aclose()

    asyncio.run(go())


@pytest.mark.parametrize("choice", ["required", Named("add")])
def test_a_forced_choice_of_nothing_available_is_no_call(choice: Any) -> None:
    model = ScriptedModel(["Nothing to call."])
    agent = Agent(model, tools=[add.changed(available=lambda: False)])
    assert agent.run_sync("Go.", tool_choice=choice).output == "Nothing to call."
    assert model.requests[0].envelope.choice == "none"


def test_a_test_of_availability_that_fails_is_told_and_disturbs_nobody() -> None:
    frail = wipe.renamed("frail").changed(available=lambda: bool(1 / 0), approval=False)
    result = run([frail, add], call("frail"), call("add", a=1, b=1), "ok")
    assert told(result) == ["Whether frail may run could not be found out: ZeroDivisionError: division by zero", "2"]


# Failures in a row


def test_a_tool_that_fails_too_often_in_a_row_is_offered_no_more() -> None:
    @tool(retries=2)
    def frail(works: bool) -> str:
        """Work or not."""
        if not works:
            raise ToolError("broken")
        return "worked"

    def once(works: Any) -> AssistantMessage:
        return AssistantMessage(calls=(ToolCall("c", "frail", {"works": works}),))

    script = [once(False), once(True), once(False), once("nonsense"), once(True), call("add", a=1, b=1), "ok"]
    model = ScriptedModel(script)
    result = Agent(model, tools=[frail, add]).run_sync("Go.")
    texts = told(result)
    assert texts[:3] == ["broken", "worked", "broken"] and "works: expected boolean" in texts[3]
    assert texts[4] == ("This call was not run: frail failed 2 times in a row and is not offered any more in this run.")
    assert texts[5] == "2"
    assert [len(request.envelope.tools) for request in model.requests] == [2, 2, 2, 2, 1, 1, 1]
    again = Agent(ScriptedModel([once(True), "ok"]), tools=[frail, add]).run_sync("Go.")
    assert told(again) == ["worked"]


def test_when_the_last_tool_is_worn_out_the_model_must_answer() -> None:
    @tool(retries=1)
    def frail() -> str:
        """Fail."""
        raise ToolError("broken")

    model = ScriptedModel([call("frail"), "I could not."])
    assert Agent(model, tools=[frail]).run_sync("Go.").output == "I could not."
    assert [request.envelope.choice for request in model.requests] == ["auto", "none"]


# Time


def test_a_tool_that_takes_too_long_is_told_and_its_siblings_are_kept() -> None:
    never, cancelled = threading.Event(), list[str]()

    @tool(timeout=0.05)
    def sync() -> str:
        """Hang in a thread."""
        never.wait(60)
        return "late"

    @tool(timeout=0.05)
    async def hanging() -> str:
        """Hang in the loop."""
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.append("hanging")
        return "late"

    @tool
    async def quick() -> str:
        """Return at once."""
        return "quick"

    result = run([sync, hanging, quick], call("sync", "hanging", "quick"), "ok")
    never.set()
    late = "{} did not finish within 0.05 seconds."
    assert told(result) == [late.format("sync"), late.format("hanging"), "quick"] and cancelled == ["hanging"]


def test_a_timeout_of_the_tools_own_is_its_own_error() -> None:
    @tool(timeout=60)
    async def asks() -> str:
        """Ask someone who does not answer."""
        raise TimeoutError("the printer")

    assert told(run([asks], call("asks"), "ok")) == ["TimeoutError: the printer"]


SERVER = """
import asyncio
from mcp.server import MCPServer
mcp = MCPServer("slow", log_level="ERROR")

@mcp.tool()
async def hang() -> str:
    await asyncio.Event().wait()
    return "never"

@mcp.tool()
def echo(text: str) -> str:
    return text

mcp.run()
"""


def test_an_mcp_tool_that_takes_too_long_is_told_and_the_server_goes_on(tmp_path: Path) -> None:
    (tmp_path / "server.py").write_text(SERVER)

    async def go() -> RunResult[str]:
        hub = McpHub([StdioServer("slow", sys.executable, args=(str(tmp_path / "server.py"),))])
        await hub.connect()
        try:
            tools = Toolset("slow", hub.tools).mapped(
                lambda made: made.changed(timeout=0.2) if made.name.endswith("hang") else made
            )
            first = AssistantMessage(
                calls=(ToolCall("1", "slow__hang", {}), ToolCall("2", "slow__echo", {"text": "kept"}))
            )
            script = [first, call("slow__echo", text="after"), "ok"]
            return await Agent(ScriptedModel(script), tools=[tools]).run("Go.")
        finally:
            for server in hub.servers:
                await server.aclose()

    assert told(asyncio.run(go())) == [
        "slow__hang did not finish within 0.2 seconds.",
        '{"result": "kept"}',
        '{"result": "after"}',
    ]


# What comes back


@pytest.mark.parametrize(
    ("value", "text", "parts"),
    [
        (ImagePart(PNG, "image/png"), "[image image/png, 8 bytes]", 1),
        (FilePart(b"abc", "text/csv", "a.csv"), "[a.csv text/csv, 3 bytes]", 1),
        (b"abc", "[file application/octet-stream, 3 bytes]", 1),
        (["See:", ImagePart(PNG, "image/png"), {"a": 1}], 'See:\n[image image/png, 8 bytes]\n{"a": 1}', 1),
        ((b"a", b"\xff"), "[file application/octet-stream, 1 bytes]\n[file application/octet-stream, 1 bytes]", 2),
        ([1, 2], "[1, 2]", 0),
        ([], "[]", 0),
        (ToolOutput("said", (ImagePart(PNG, "image/png"),)), "said", 1),
        (None, "Done. Nothing was returned.", 0),
        (Path("a/b"), "a/b", 0),
    ],
)
def test_images_bytes_files_and_lists(value: Any, text: str, parts: int) -> None:
    @tool
    async def give() -> Any:
        """Give something."""
        return value

    result = run([give], call("give"), "ok")
    (record,) = result.calls
    assert record.result.content.strip('"') == text and len(record.result.parts) == parts
    assert Conversation.from_json(result.conversation.to_json()).messages == result.messages


def test_what_has_no_text_is_an_error_of_the_call() -> None:
    @tool
    async def give() -> Any:
        """Give an object."""
        return object()

    result = run([give, add], AssistantMessage(calls=(*call("give").calls, *call("add", a=1, b=1).calls)), "ok")
    assert "a tool returned a object, which has no JSON form" in told(result)[0] and told(result)[1] == "2"

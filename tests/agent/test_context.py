"""What a tool may know of its run: deps, the call, the conversation; and what it may tell: progress and tokens."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass
from typing import Any

import pytest

from m1agent.agent import Agent
from m1agent.context import Context
from m1agent.errors import ToolDefinitionError
from m1agent.events import Event, RunFinished, ToolFinished, ToolProgress, ToolStarted
from m1agent.limits import Limits
from m1agent.messages import AssistantMessage, Message, ToolCall, Usage, UserMessage
from m1agent.models.scripted import ScriptedModel
from m1agent.result import RunResult
from m1agent.tools import Tool, tool


@dataclass
class Shop:
    """What the tools of these tests work on."""

    stock: dict[str, int]


def call(name: str, **arguments: Any) -> AssistantMessage:
    return AssistantMessage(calls=(ToolCall("c", name, arguments),))


def events_of(agent: Agent[Any, Any], **options: Any) -> list[Event]:
    async def collect() -> list[Event]:
        return [event async for event in agent.stream("Go.", **options)]

    return asyncio.run(collect())


@tool
def count(context: Context[Shop], item: str) -> int:
    """Count what is there.

    Args:
        context: The run.
        item: Of what.
    """
    return context.deps.stock[item]


@tool
async def take(context: Context[Shop], item: str, number: int = 1) -> str:
    """Take something out."""
    context.deps.stock[item] -= number
    return f"{context.call.name}: {context.deps.stock[item]} left"


@tool
def said(context: Context) -> int:
    """How many messages there are."""
    assert isinstance(context.messages[0], UserMessage) and context.model is not None
    return len(context.messages)


class Desk:
    """Methods as tools."""

    def note(self, context: Context[Shop], text: str) -> str:
        """Note something."""
        return f"{text} ({len(context.deps.stock)})"


def test_no_schema_shows_the_context() -> None:
    for made in (count, take, said, tool(Desk().note)):
        assert "context" not in str(made.spec.parameters) and made.takes_context
    assert list(take.spec.parameters["properties"]) == ["item", "number"]
    assert count.spec.parameters["properties"]["item"]["description"] == "Of what."


def test_tools_find_the_deps_of_their_run() -> None:
    shop = Shop({"tea": 3})
    model = ScriptedModel(
        [call("count", item="tea"), call("take", item="tea"), call("said"), call("note", text="hm"), "ok"]
    )
    agent = Agent(model, tools=[count, take, said, Desk().note], deps_type=Shop)
    result = agent.run_sync("Go.", deps=shop)
    assert [record.result.content for record in result.calls] == ["3", "take: 2 left", "6", "hm (1)"]
    assert shop.stock == {"tea": 2}


def test_a_function_with_a_context_stays_callable() -> None:
    assert count(Context(Shop({"tea": 1}), ToolCall("1", "count", {})), "tea") == 1


def test_a_context_elsewhere_is_refused_with_the_remedy() -> None:
    def late(item: str, context: Context[Shop]) -> str:
        """Too late."""
        return item

    def perhaps(context: Context | None, item: str) -> str:
        """Only perhaps."""
        return item

    def many(contexts: list[Context[Shop]]) -> str:
        """Too many."""
        return "none"

    for function, name in ((late, "context"), (perhaps, "context"), (many, "contexts")):
        with pytest.raises(ToolDefinitionError, match=f"'{name}' is a Context, which must be the first parameter"):
            tool(function)


def test_a_tool_from_a_schema_may_take_a_context() -> None:
    async def handler(context: Context[Shop], **given: Any) -> str:
        return f"{given} {context.deps.stock}"

    made = Tool.from_schema("look", "Look.", {"type": "object"}, handler, takes_context=True)
    result = Agent(ScriptedModel([call("look", at="tea"), "ok"]), tools=[made]).run_sync("Go.", deps=Shop({}))
    assert result.calls[0].result.content == "{'at': 'tea'} {}"


@pytest.mark.parametrize(("deps", "told"), [(None, "NoneType"), ("secret", "str")])
def test_deps_of_another_type_are_refused_and_not_shown(deps: Any, told: str) -> None:
    model = ScriptedModel([])
    with pytest.raises(TypeError, match=f"deps must be a Shop, not a {told}") as raised:
        Agent(model, tools=[count], deps_type=Shop).run_sync("Go.", deps=deps)
    assert "secret" not in str(raised.value) and not model.requests


@pytest.mark.parametrize(("kind", "good", "bad"), [(dict[str, int], {}, []), (int | str, 3, 3.0)])
def test_deps_of_generic_and_union_types_are_checked_too(kind: Any, good: Any, bad: Any) -> None:
    agent = Agent(ScriptedModel(["ok"]), deps_type=kind)
    with pytest.raises(TypeError, match="deps must be"):
        agent.run_sync("Go.", deps=bad)
    assert agent.run_sync("Go.", deps=good).output == "ok"


def test_progress_of_an_async_tool_comes_in_order_before_its_result() -> None:
    @tool
    async def build(context: Context) -> str:
        """Build."""
        for n in range(3):
            context.progress(f"part {n}", n / 3)
            await asyncio.sleep(0)
        return "built"

    events = events_of(Agent(ScriptedModel([call("build"), "ok"]), tools=[build]))
    told = [event for event in events if isinstance(event, ToolStarted | ToolProgress | ToolFinished)]
    assert [type(event) for event in told] == [ToolStarted, ToolProgress, ToolProgress, ToolProgress, ToolFinished]
    assert [(e.message, e.fraction) for e in told if isinstance(e, ToolProgress)] == [
        ("part 0", 0.0),
        ("part 1", 1 / 3),
        ("part 2", 2 / 3),
    ]


def test_progress_from_threads_is_heard_while_the_tool_runs() -> None:
    heard = threading.Event()

    @tool
    def build(context: Context) -> str:
        """Build."""
        own = threading.Thread(target=lambda: [context.progress(str(n)) for n in range(20)])
        own.start()
        own.join()
        return "heard" if heard.wait(30) else "not heard"

    async def collect() -> list[Event]:
        events: list[Event] = []
        async for event in Agent(ScriptedModel([call("build"), "ok"]), tools=[build]).stream("Go."):
            events.append(event)
            if isinstance(event, ToolProgress) and event.message == "19":
                heard.set()
        return events

    told = [event for event in asyncio.run(collect()) if isinstance(event, ToolProgress | ToolFinished)]
    assert [event.message for event in told if isinstance(event, ToolProgress)] == [str(n) for n in range(20)]
    assert isinstance(told[-1], ToolFinished) and told[-1].result.content == "heard"


def test_progress_after_the_end_is_not_told() -> None:
    go, gone = threading.Event(), threading.Event()

    @tool(timeout=0.01)
    def slow(context: Context) -> str:
        """Go on after the timeout."""
        go.wait(30)
        context.progress("too late")
        gone.set()
        return "late"

    @tool
    def wait() -> str:
        """Wait for the other."""
        return "waited" if gone.wait(30) else "gave up"

    async def collect() -> list[Event]:
        events: list[Event] = []
        both = AssistantMessage(calls=(ToolCall("1", "slow", {}), ToolCall("2", "wait", {})))
        async for event in Agent(ScriptedModel([both, "ok"]), tools=[slow, wait]).stream("Go."):
            events.append(event)
            if isinstance(event, ToolFinished):
                go.set()
        return events

    events = asyncio.run(collect())
    assert not [event for event in events if isinstance(event, ToolProgress)]
    assert [event.result.content for event in events if isinstance(event, ToolFinished)] == [
        "slow did not finish within 0.01 seconds.",
        "waited",
    ]


@pytest.mark.parametrize("threads", [0, 8])
def test_charged_tokens_count_in_the_usage(threads: int) -> None:
    @tool
    async def ask(context: Context) -> str:
        """Ask another model."""
        context.charge(Usage(100, 10))
        return "asked"

    @tool
    def ask_in_threads(context: Context) -> str:
        """Ask another model from many threads."""
        own = [
            threading.Thread(target=lambda: [context.charge(Usage(1, 1)) for _ in range(50)]) for _ in range(threads)
        ]
        for thread in own:
            thread.start()
        for thread in own:
            thread.join()
        return "asked"

    def usage(*tools: Tool) -> Usage:
        names = [made.name for made in tools] or ["none"]
        model = ScriptedModel([*(call(name) for name in names), "ok"])
        return Agent(model, tools=[ask, ask_in_threads]).run_sync("Go.").usage

    name, charged = (ask_in_threads, Usage(400, 400)) if threads else (ask, Usage(100, 10))
    bare = Agent(ScriptedModel([call(name.name), "ok"]), tools=[_silent(ask), _silent(ask_in_threads)]).run_sync("Go.")
    assert usage(name) - bare.usage == charged


def _silent(made: Tool) -> Tool:
    async def handler(**given: Any) -> str:
        return "asked"

    return Tool.from_schema(made.name, made.spec.description, made.spec.parameters, handler)


def test_charged_tokens_count_against_the_limits() -> None:
    @tool
    async def ask(context: Context) -> str:
        """Ask another model."""
        context.charge(Usage(0, 10_000))
        return "asked"

    result = Agent(ScriptedModel([call("ask"), "ok"]), tools=[ask], limits=Limits(output_tokens=5000)).run_sync("Go.")
    assert result.stop == "tokens" and result.steps == 1 and result.usage.output_tokens > 10_000


def test_the_conversation_a_tool_sees_ends_with_its_call() -> None:
    seen: list[tuple[Message, ...]] = []

    @tool
    async def look(context: Context) -> str:
        """Look."""
        seen.append(context.messages)
        return "seen"

    reply = call("look")
    agent = Agent(ScriptedModel([reply, "ok"]), tools=[look])
    result: RunResult[str] = agent.run_sync("Go.")
    assert [type(message) for message in seen[0]] == [UserMessage, AssistantMessage]
    assert isinstance(events_of(Agent(ScriptedModel(["ok"])))[-1], RunFinished) and result.output == "ok"


def test_what_cannot_be_charged_or_told_is_refused_at_the_call() -> None:
    context = Context(None, ToolCall("c", "count", {}))
    bad: Any = 5
    with pytest.raises(TypeError, match=r"charge takes a Usage, such as Usage\(output_tokens=5\), not 5"):
        context.charge(bad)
    with pytest.raises(TypeError, match="message must be text, not 5"):
        context.progress(bad)
    with pytest.raises(TypeError, match="fraction must be a number from 0 to 1, or None, not 'half'"):
        context.progress("", "half")  # type: ignore[arg-type]
    for fraction in (7.5, -0.1, float("nan")):
        with pytest.raises(ValueError, match="fraction must be between 0 and 1"):
            context.progress("", fraction)
    context.progress("well", 1)

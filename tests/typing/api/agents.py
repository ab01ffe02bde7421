"""What a type checker infers of agents, tools, results and events. Checked by pyright in strict mode, never run."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, assert_never, assert_type

from pydantic import BaseModel

from m1agent import Agent, Approval, Compaction, Context, Conversation, Denied, Hooks, Limits, Rule, Tool, Toolset, tool
from m1agent.events import (
    ApprovalNeeded,
    ArgumentsDelta,
    CallReady,
    CallStarted,
    Compacted,
    Event,
    HandedOff,
    ReplyFinished,
    RunFinished,
    StepFinished,
    StepStarted,
    TextDelta,
    ThinkingDelta,
    TokensScored,
    ToolFinished,
    ToolProgress,
    ToolStarted,
)
from m1agent.guards import Block, Retry
from m1agent.messages import ToolCall, ToolResult
from m1agent.result import RunResult, StopReason


class Answer(BaseModel):
    """A number."""

    value: int


@dataclass
class Shop:
    """What tools work on."""

    stock: dict[str, int]


@tool
def add(a: int, b: int = 0) -> int:
    """Add."""
    return a + b


@tool(name="plus", timeout=1.0)
async def plus(a: int) -> str:
    """Add later."""
    return str(a)


@tool
def count(context: Context[Shop], item: str) -> int:
    """Count."""
    assert_type(context.deps, Shop)
    assert_type(context.call, ToolCall)
    return context.deps.stock[item]


async def tools_keep_their_signatures(shop: Context[Shop]) -> None:
    assert_type(add(1, b=2), int)
    assert_type(await plus(1), str)
    assert_type(count(shop, "tea"), int)
    assert_type(add.renamed("sum")(1), int)
    add("1")  # pyright: ignore[reportArgumentType]
    count("tea")  # pyright: ignore[reportCallIssue, reportArgumentType]
    made: Tool = add
    toolset = Toolset("numbers", [made, plus]).prefixed("n_").filtered(lambda one: one.timeout is None)
    assert_type(toolset, Toolset)


async def an_agent_without_output_answers_in_text() -> None:
    agent = Agent("m1-nano", tools=[add, plus], name="adder", limits=Limits(steps=3))
    assert_type(agent, Agent[None, str])
    result = await agent.run("1 + 2?", conversation=Conversation())
    assert_type(result, RunResult[str])
    assert_type(result.output, str | None)
    assert_type(result.unwrap(), str)
    assert_type(result.stop, StopReason)
    assert_type(agent.run_sync("1 + 2?"), RunResult[str])


async def an_output_type_is_the_type_of_the_answer() -> None:
    agent = Agent("m1-nano", output=Answer)
    result = await agent.run("1 + 2?")
    assert_type(result, RunResult[Answer])
    assert_type(result.unwrap().value, int)
    assert_type(Agent("m1-nano", output=list[int]).run_sync("Primes?").unwrap(), list[int])
    widened: RunResult[BaseModel] = result
    del widened


async def deps_are_checked() -> None:
    agent = Agent("m1-nano", tools=[count], deps_type=Shop, output=Answer)
    assert_type(agent, Agent[Shop, Answer])
    await agent.run("How many?", deps=Shop({}))
    await agent.run("How many?", deps="shop")  # pyright: ignore[reportArgumentType]
    await agent.run("How many?", dep=Shop({}))  # pyright: ignore[reportCallIssue]
    assert_type(Agent("m1-nano", deps_type=Shop), Agent[Shop, str])


def options_are_checked() -> None:
    Agent("m1-nano", nothing=1)  # pyright: ignore[reportCallIssue]
    Agent("m1-nano", limits=3)  # pyright: ignore[reportArgumentType]
    Agent("m1-nano", approval=Approval([Rule("*", "ask")], ask=lambda request: Denied("no")))
    Agent("m1-nano", approval=lambda request: request.call.name == "add")
    Agent("m1-nano", compaction=Compaction(above=1000, summarise=lambda messages: str(len(messages))))
    Agent("m1-nano", input_guards=[lambda messages: Block("no") if len(messages) > 9 else None])


def hooks_are_typed() -> None:
    def before(context: Context[Any], call: ToolCall) -> ToolCall | None:
        return None if context.call is call else call

    async def after(context: Context[Any], call: ToolCall, result: ToolResult) -> ToolResult | None:
        return None

    def short(text: str) -> Retry | None:
        return Retry("Shorter.") if len(text) > 9 else None

    Agent("m1-nano", hooks=Hooks(before, after), output_guards=[short])


async def events_match_exhaustively(agent: Agent[None, str]) -> None:
    events: AsyncIterator[Event] = agent.stream("Go.")
    async for event in events:
        match event:
            case ThinkingDelta(text) | TextDelta(text) | ArgumentsDelta(_, text):
                assert_type(text, str)
            case CallStarted(index, _, name):
                assert_type((index, name), tuple[int, str])
            case CallReady(_, call) | ToolStarted(call) | ToolProgress(call):
                assert_type(call, ToolCall)
            case ToolFinished(call, result, seconds):
                assert_type((call, result, seconds), tuple[ToolCall, ToolResult, float])
            case ApprovalNeeded(calls):
                assert_type(calls, tuple[ToolCall, ...])
            case StepStarted() | StepFinished() | ReplyFinished() | TokensScored() | Compacted() | HandedOff():
                pass
            case RunFinished(result):
                assert_type(result, RunResult[Any])
            case _:
                assert_never(event)

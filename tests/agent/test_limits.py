"""How far a run may go: tokens read, tokens written, thinking; on a real model that would think for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from m1agent.agent import Agent
from m1agent.conversation import Conversation
from m1agent.events import ReplyFinished, TextDelta, ThinkingDelta
from m1agent.limits import Limits
from m1agent.messages import AssistantMessage, ToolCall, Usage
from m1agent.meter import Meter
from m1agent.models.base import Settings
from m1agent.models.local import LocalModel
from m1agent.models.scripted import ScriptedModel
from m1agent.result import RunResult
from m1agent.tools import tool


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def steps(number: int) -> list[AssistantMessage]:
    return [AssistantMessage(calls=(ToolCall("c", "add", {"a": n, "b": 2}),)) for n in range(number)]


def run(limits: Limits, **options: Any) -> RunResult[str]:
    return Agent(ScriptedModel([*steps(9), "ok"]), tools=[add], limits=limits, **options).run_sync("Go.")


def test_input_tokens_count_what_was_read_and_not_what_was_held() -> None:
    free = run(Limits())
    assert free.stop == "done" and free.usage.reused_tokens > 0
    read = free.usage.input_tokens - free.usage.reused_tokens
    stopped = run(Limits(input_tokens=read // 2))
    assert stopped.stop == "tokens" and 0 < stopped.steps < free.steps
    assert stopped.usage.input_tokens - stopped.usage.reused_tokens >= read // 2
    assert run(Limits(input_tokens=read + 1)).stop == "done"


def test_output_tokens_count_what_was_written() -> None:
    free = run(Limits())
    stopped = run(Limits(output_tokens=free.usage.output_tokens // 2))
    assert stopped.stop == "tokens" and stopped.usage.output_tokens >= free.usage.output_tokens // 2
    assert len(stopped.calls) == stopped.steps > 0


def test_a_reply_is_asked_for_no_more_than_the_tightest_bound_leaves() -> None:
    meter = Meter(Limits(tokens=1000, output_tokens=300, reply_tokens=250, thinking=100))
    assert meter.settings(Settings()) == Settings(max_tokens=250, thinking=100)
    meter.charge(Usage(input_tokens=500, output_tokens=200, reused_tokens=100, thinking_tokens=90))
    assert meter.settings(Settings(max_tokens=600)) == Settings(max_tokens=100, thinking=10)
    assert meter.settings(Settings(thinking=3)).thinking == 3
    meter.charge(Usage(output_tokens=100, thinking_tokens=90))
    assert meter.reached == "tokens" and meter.settings(Settings()).thinking == 0
    assert Meter(Limits()).settings(Settings(max_tokens=9)) == Settings(max_tokens=9)


def test_both_limits_together_are_the_tighter_bound_by_bound() -> None:
    both = Limits(steps=5, tokens=100, thinking=0) & Limits(steps=None, tokens=200, seconds=1.5)
    assert both == Limits(steps=5, tokens=100, seconds=1.5, thinking=0)
    assert Limits(steps=None) & Limits(steps=None) == Limits(steps=None)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("steps", 0, "Limits.steps must be above 0, not 0; None means no limit"),
        ("input_tokens", -1, "Limits.input_tokens must be above 0, not -1"),
        ("output_tokens", 1.5, "Limits.output_tokens must be a number or None, not 1.5"),
        ("tool_calls", True, "Limits.tool_calls must be a number or None, not True"),
        ("thinking", -1, "Limits.thinking must be above 0, not -1"),
        ("seconds", float("nan"), "Limits.seconds must be above 0, not nan"),
        ("tokens", "9", "Limits.tokens must be a number or None, not '9'"),
    ],
)
def test_a_bound_that_is_none_is_refused_by_name(name: str, value: Any, says: str) -> None:
    with pytest.raises(ValueError) as raised:
        Limits(**{name: value})
    assert str(raised.value).startswith(says)


# Thinking, on a model that never stops to by itself


@pytest.fixture
def model(thinker: Path) -> Iterator[LocalModel]:
    model = LocalModel(thinker, max_tokens=64)
    yield model
    asyncio.run(model.aclose())


GREEDY = Settings(temperature=0)


@tool
def paint(colour: Literal["red", "green"]) -> str:
    """Paint the wall."""
    return f"It is {colour}."


def test_without_a_bound_it_thinks_until_its_tokens_are_gone(model: LocalModel) -> None:
    result = Agent(model, settings=GREEDY).run_sync("Go.")
    assert (result.stop, result.output) == ("tokens", "") and result.usage.output_tokens == 64
    last = result.messages[-1]
    assert isinstance(last, AssistantMessage) and len(last.thinking) == 63
    assert result.usage.thinking_tokens == 64


@pytest.mark.parametrize("bound", [0, 1, 2, 20])
def test_thinking_past_its_bound_is_closed_and_the_answer_follows(model: LocalModel, bound: int) -> None:
    async def go() -> None:
        talk = Conversation()
        agent = Agent(model, settings=GREEDY, limits=Limits(thinking=bound))
        events = [event async for event in agent.stream("Go.", conversation=talk)]
        thinking = "".join(event.text for event in events if isinstance(event, ThinkingDelta))
        reply = next(event for event in events if isinstance(event, ReplyFinished))
        said = max(bound, 1)  # The opening tag is a token of its own, and comes from the model.
        assert thinking == "a" * (said - 1) and reply.usage.thinking_tokens == said
        assert [event.text for event in events if isinstance(event, TextDelta)] == ["ok"]
        assert reply.stop == "done" and reply.message == AssistantMessage("ok", thinking)
        ids = talk.ids
        assert ids is not None
        assert model.tokenizer.decode(ids).endswith(
            f"ai name=assistant\n<think>\n{thinking}\n</think>\nok<end_of_sentence>"
        )
        # What was read, and each token that was written, the forced ones included; the end token is not counted.
        assert reply.usage.input_tokens + reply.usage.output_tokens == len(ids) - 1
        assert reply.usage.forced_tokens == 2
        await talk.aclose()

    asyncio.run(go())


def test_a_bound_of_the_settings_is_one_of_each_reply(model: LocalModel) -> None:
    async def go() -> None:
        talk = Conversation()
        agent = Agent(model, settings=Settings(temperature=0, thinking=5))
        seen: tuple[int, ...] = ()
        for turn in range(3):
            result = await agent.run(f"Go {turn}.", conversation=talk)
            assert (result.output, result.usage.thinking_tokens) == ("ok", 5)
            ids = talk.ids
            assert ids is not None and ids[: len(seen)] == seen
            seen = ids
        await talk.aclose()

    asyncio.run(go())


def test_the_limit_counts_the_thinking_of_all_replies(model: LocalModel) -> None:
    async def go() -> None:
        talk = Conversation()
        agent = Agent(model, tools=[paint], settings=GREEDY, limits=Limits(thinking=10))
        result = await agent.run("Paint.", conversation=talk, tool_choice="required")
        assert result.stop == "done" and result.output == "ok" and result.steps == 2
        (record,) = result.calls
        assert record.call.problem is None and record.result.content in ("It is red.", "It is green.")
        assert result.usage.thinking_tokens == 11  # All of the first, and the tag that opens the second.
        await talk.aclose()

    asyncio.run(go())


@pytest.mark.parametrize("bound", [0, 7])
def test_a_forced_call_is_valid_after_closed_thinking(model: LocalModel, bound: int) -> None:
    async def go() -> None:
        talk = Conversation()
        agent = Agent(model, tools=[paint, add], settings=GREEDY, limits=Limits(thinking=bound, steps=1))
        before: tuple[int, ...] = ()
        for choice in ("required", paint, "required"):
            result = await agent.run("Go.", conversation=talk, tool_choice=choice)
            assert result.stop == "steps" and result.calls
            assert all(record.call.problem is None and not record.result.is_error for record in result.calls)
            reply = result.messages[-2]
            assert isinstance(reply, AssistantMessage) and reply.thinking == "a" * max(bound - 1, 0)
            ids = talk.ids
            assert ids is not None and ids[: len(before)] == before
            before = ids
        assert talk.rebuilds == 0
        await talk.aclose()

    asyncio.run(go())


def test_a_reply_without_room_after_its_thinking_ends_by_length(model: LocalModel) -> None:
    result = Agent(model, settings=GREEDY, limits=Limits(thinking=20, reply_tokens=21)).run_sync("Go.")
    assert (result.stop, result.output) == ("tokens", "")
    last = result.messages[-1]
    assert isinstance(last, AssistantMessage) and last.thinking == "a" * 19

"""The public test double."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from m1agent.agent import Agent
from m1agent.errors import ModelError
from m1agent.events import CallReady, ModelEvent, ReplyFinished, TextDelta, ThinkingDelta
from m1agent.messages import AssistantMessage, Message, Setup, ToolCall, Usage, UserMessage
from m1agent.models.base import Settings
from m1agent.models.scripted import SPECIAL, Reply, ScriptedModel
from m1agent.prompt.envelope import Envelope
from m1agent.prompt.template import END

CALL = ToolCall("call_1", "f", {"x": 1})


def reply(script: Sequence[Reply], chunk: int = 4) -> list[ModelEvent]:
    async def go() -> list[ModelEvent]:
        thread = ScriptedModel(script, chunk=chunk).open(Setup())
        return [event async for event in thread.respond([UserMessage("hi")], Envelope(), Settings())]

    return asyncio.run(go())


@pytest.mark.parametrize("chunk", [1, 3, 1000])
def test_text_messages_events_and_functions_say_the_same(chunk: int) -> None:
    message = AssistantMessage("text", "thought", (CALL,))

    def function(messages: tuple[Message, ...]) -> AssistantMessage:
        assert messages == (UserMessage("hi"),)
        return message

    async def awaited(_: tuple[Message, ...]) -> AssistantMessage:
        return message

    text = '<think>\nthought\n</think>\ntext<tool_calls>\n{"name": "f", "arguments": {"x": 1}}\n</tool_calls>'
    events = [ThinkingDelta("thought"), TextDelta("text"), CallReady(0, CALL)]
    for script in (text, message, events, function, awaited):
        last = reply([script], chunk)[-1]
        assert isinstance(last, ReplyFinished) and last.message == message
        assert last.usage.output_tokens >= len(text)


def test_a_list_may_give_its_own_ending() -> None:
    ending = ReplyFinished(AssistantMessage("cut"), Usage(), "length")
    last = reply([[TextDelta("cut"), ending]])[-1]
    assert isinstance(last, ReplyFinished) and last.stop == "length" and last.usage.output_tokens > 0


def test_exceptions_are_raised_also_midway() -> None:
    with pytest.raises(KeyError):
        reply([KeyError("x")])
    with pytest.raises(KeyError):
        reply([[TextDelta("a"), KeyError("x")]])


def test_a_script_that_is_too_short_or_too_long_is_told() -> None:
    model = ScriptedModel(["one", "two"])
    agent = Agent(model)
    agent.run_sync("?")
    with pytest.raises(AssertionError, match="1 scripted replies were never asked for"):
        model.assert_complete()
    agent.run_sync("?")
    model.assert_complete()
    result = agent.run_sync("?")
    assert isinstance(result.error, ModelError) and "no reply left" in str(result.error)


def test_text_of_a_special_token_is_not_one() -> None:
    async def go() -> tuple[int, ...]:
        thread = ScriptedModel(["ok"]).open(Setup())
        async for _ in thread.respond([UserMessage(END)], Envelope(), Settings()):
            pass
        return thread.ids

    assert asyncio.run(go()).count(SPECIAL[END]) == 2

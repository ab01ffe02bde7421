"""Recorded conversations as models."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from m1agent.agent import Agent
from m1agent.conversation import Conversation
from m1agent.errors import ReplayMismatch, TranscriptError
from m1agent.events import ArgumentsDelta, CallReady, CallStarted, Event, RunFinished, TextDelta, ThinkingDelta
from m1agent.messages import AssistantMessage, Message, SystemMessage, ToolCall, ToolMessage, UserMessage
from m1agent.models.replay import ReplayModel
from m1agent.models.scripted import ScriptedModel
from m1agent.result import RunResult
from m1agent.tools import Tool, tool
from m1agent.transcript import to_json


def weather(report: Callable[[str], str] = lambda city: f"{city}: sunny\n20 degrees") -> Tool:
    @tool
    def forecast(city: str) -> str:
        """The weather of a city."""
        return report(city)

    return forecast


def recorded() -> RunResult[Any]:
    calls = tuple(ToolCall(f"call_{i}", "forecast", {"city": city}) for i, city in enumerate(("Oslo", "Lima"), 1))
    script = [AssistantMessage("Let me see.", "two cities", calls), "Sunny in both."]
    result = Agent(ScriptedModel(script), tools=[weather()]).run_sync("Oslo and Lima?")
    assert result.stop == "done"
    return result


def replay(model: ReplayModel, question: str = "Oslo and Lima?", forecast: Tool | None = None) -> RunResult[Any]:
    return Agent(model, tools=[forecast or weather()]).run_sync(question)


def test_what_was_said_is_said_again(tmp_path: Path) -> None:
    before = recorded()
    file = tmp_path / "cities.json"
    file.write_text(json.dumps(to_json(before.messages)))
    model = ReplayModel.load(file)
    after = replay(model)
    model.assert_complete()
    assert after.messages == before.messages and after.output == "Sunny in both." and model.name == "cities"


def test_a_recording_may_be_messages_json_or_a_conversation() -> None:
    before = recorded()
    for recording in (before.messages, to_json(before.messages), before.conversation.to_json()):
        model = ReplayModel(recording)
        assert replay(model).messages == before.messages
        model.assert_complete()


def test_the_events_are_those_of_a_model() -> None:
    async def go() -> list[Event]:
        agent = Agent(ReplayModel(recorded().messages), tools=[weather()])
        return [event async for event in agent.stream("Oslo and Lima?")]

    events = asyncio.run(go())
    assert [event.text for event in events if isinstance(event, ThinkingDelta)] == ["two cities"]
    assert [event.text for event in events if isinstance(event, TextDelta)] == ["Let me see.", "Sunny in both."]
    assert [event.name for event in events if isinstance(event, CallStarted)] == ["forecast"] * 2
    ready = [event.call.arguments for event in events if isinstance(event, CallReady)]
    assert [json.loads(event.text) for event in events if isinstance(event, ArgumentsDelta)] == ready
    assert isinstance(events[-1], RunFinished)


def test_another_result_of_a_tool_is_shown_line_by_line() -> None:
    model = ReplayModel(recorded().messages)
    result = replay(model, forecast=weather(lambda city: f"{city}: sunny\n{'20' if city == 'Oslo' else '25'} degrees"))
    assert result.stop == "error" and isinstance(result.error, ReplayMismatch)
    told = str(result.error).splitlines()
    assert told[0] == "what was asked differs from the recording at messages[2]"
    changed = [line for line in told if line[:1] in "+-" and line[:3] not in ("---", "+++")]
    assert changed == ['-    20 degrees"', '+    25 degrees"']
    with pytest.raises(AssertionError, match=r"differs from the recording at messages\[2\]"):
        model.assert_complete()


def test_another_question_is_told() -> None:
    model = ReplayModel(recorded().messages)
    result = replay(model, "Oslo?")
    told = str(result.error)
    assert "messages[0]" in told and '- "text": "Oslo and Lima?"' in told and '+ "text": "Oslo?"' in told


def test_replies_never_asked_for_are_told() -> None:
    model = ReplayModel([UserMessage("a"), AssistantMessage("b"), UserMessage("c"), AssistantMessage("d")])
    assert Agent(model).run_sync("a").output == "b"
    with pytest.raises(AssertionError, match=r"1 of 2 recorded replies were never asked for: messages\[3\]"):
        model.assert_complete()


def test_more_than_was_recorded_is_told() -> None:
    talk = Conversation()
    model = ReplayModel([UserMessage("a"), AssistantMessage("b")])
    agent = Agent(model)
    agent.run_sync("a", conversation=talk)
    model.assert_complete()
    result = agent.run_sync("c", conversation=talk)
    assert str(result.error).startswith("the recording ends before messages[2], where there is one more message")
    agent = Agent(ReplayModel([UserMessage("a"), UserMessage("b")]))
    told = str(agent.run_sync("a").error)
    assert told.startswith("a reply was asked for at messages[1], where none was recorded")
    told = str(Agent(ReplayModel([UserMessage("a")])).run_sync("a").error)
    assert told.startswith("the recording ends before messages[1], where a reply was asked for")


def test_a_conversation_may_go_on_be_forked_and_go_back() -> None:
    said: list[Message] = [SystemMessage("Be brief.")]
    for index in range(3):
        said += [UserMessage(f"q{index}"), AssistantMessage(f"a{index}")]

    async def go() -> None:
        model = ReplayModel(said)
        agent = Agent(model)
        talk = Conversation(said[:3])  # As reopened from a store: the history is read first.
        assert (await agent.run("q1", conversation=talk)).output == "a1"
        fork = talk.fork()
        assert (await agent.run("q2", conversation=talk)).output == "a2"
        assert (await agent.run("q2", conversation=fork)).output == "a2"
        model.assert_complete()
        await talk.rewind(5)
        assert (await agent.run("q2", conversation=talk)).output == "a2"
        assert list(talk.messages) == said

    asyncio.run(go())


def test_what_differs_each_time_can_be_overlooked() -> None:
    def same(recorded: Message, asked: Message) -> bool:
        if isinstance(recorded, ToolMessage) and isinstance(asked, ToolMessage):
            return [result.call_id for result in recorded.results] == [result.call_id for result in asked.results]
        return recorded == asked

    model = ReplayModel(recorded().messages, same=same)
    assert replay(model, forecast=weather(lambda city: "rain")).output == "Sunny in both."
    model.assert_complete()


def test_what_is_no_recording_is_told(tmp_path: Path) -> None:
    for nothing in ([], {"messages": []}, {}, 7):
        with pytest.raises(TranscriptError, match="this holds none"):
            ReplayModel(nothing)  # type: ignore[arg-type]
    with pytest.raises(TranscriptError, match=r"messages\[0\]\.role"):
        ReplayModel([{"role": "robot"}])
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    with pytest.raises(TranscriptError, match=r"broken\.json: Expecting"):
        ReplayModel.load(broken)
    with pytest.raises(TranscriptError, match=r"gone\.json: .*No such file"):
        ReplayModel.load(tmp_path / "gone.json")


def test_a_long_difference_is_cut() -> None:
    said = recorded().messages
    before = said[2]
    assert isinstance(before, ToolMessage)
    long = "\n".join(map(str, range(500)))
    changed = ToolMessage(tuple(replace(result, content=long) for result in before.results))
    result = replay(ReplayModel([*said[:2], changed, *said[3:]]))
    assert str(result.error).endswith("\n...") and len(str(result.error).splitlines()) == 42

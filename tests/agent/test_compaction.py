"""Long conversations are shortened: when, how, what it costs, and what happens when it cannot be done."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from m1agent.agent import Agent
from m1agent.cancel import Cancel
from m1agent.compaction import INTRODUCTION, Compaction, as_text, split
from m1agent.conversation import Conversation
from m1agent.errors import ModelError
from m1agent.events import Compacted, Event, RunFinished, StepStarted
from m1agent.limits import Limits
from m1agent.messages import (
    AssistantMessage,
    Message,
    SystemMessage,
    ToolCall,
    ToolMessage,
    ToolResult,
    UserMessage,
)
from m1agent.models.scripted import ScriptedModel
from m1agent.result import RunResult
from m1agent.tools import tool

LONG = "word " * 100


@tool
def look(place: int) -> str:
    """Look at a place."""
    return f"{place}: {LONG}"


def steps(number: int) -> list[AssistantMessage]:
    return [AssistantMessage(calls=(ToolCall("c", "look", {"place": n}),)) for n in range(number)]


async def brief(messages: Sequence[Message]) -> str:
    return f"{len(messages)} messages"


def run(compaction: Compaction, script: list[Any], **options: Any) -> tuple[RunResult[str], list[Event], ScriptedModel]:
    model = ScriptedModel(script)
    given = {key: options.pop(key) for key in ("conversation", "cancel") if key in options}
    agent = Agent(model, tools=[look], compaction=compaction, **options)

    async def collect() -> list[Event]:
        return [event async for event in agent.stream("Look around.", **given)]

    events = asyncio.run(collect())
    assert isinstance(events[-1], RunFinished)
    return events[-1].result, events, model


def after_three(keep: int = 2, **options: Any) -> Compaction:
    """A compaction that is due after the third step of `steps`, and not before."""
    free = Agent(ScriptedModel(steps(3)), tools=[look], limits=Limits(steps=3)).run_sync("Look around.")
    return Compaction(above=free.conversation.tokens - 1, keep=keep, **options)


def compactions(events: Sequence[Event]) -> list[Compacted]:
    return [event for event in events if isinstance(event, Compacted)]


def assert_valid(messages: Sequence[Message]) -> None:
    for before, after in zip(messages, [*messages[1:], None], strict=False):
        if isinstance(before, AssistantMessage) and before.calls:
            assert isinstance(after, ToolMessage)
            assert [one.call_id for one in after.results] == [one.id for one in before.calls]
        if isinstance(after, ToolMessage):
            assert isinstance(before, AssistantMessage) and before.calls


def test_a_long_conversation_is_shortened_between_steps() -> None:
    result, events, model = run(Compaction(above=3000, keep=4, summarise=brief), [*steps(8), "Done."])
    made = compactions(events)
    assert result.output == "Done." and made and result.conversation.rebuilds == len(made)
    for event in made:
        assert event.after < event.before and event.summary.endswith("messages")
        assert isinstance(events[events.index(event) + 1], StepStarted)
    assert_valid(result.messages)
    assert UserMessage(INTRODUCTION + made[-1].summary) in result.messages
    assert result.conversation.tokens < 5000 and len(result.calls) == 8
    assert [request.messages[0] for request in model.requests[:2]] == [UserMessage("Look around.")] * 2


def test_what_was_said_lately_stays_as_it_was() -> None:
    result, events, _ = run(Compaction(above=3000, keep=5, summarise=brief), [*steps(5), "Done."])
    (event,) = compactions(events)
    assert event.after == event.before - int(event.summary.split()[0]) + 1 and event.after >= 6
    assert isinstance(result.messages[1], AssistantMessage)  # Five would have begun with a result: its call stays too.


def test_system_messages_stay() -> None:
    talk = Conversation([SystemMessage("First."), UserMessage(LONG), SystemMessage("Second."), UserMessage(LONG)])
    result, events, _ = run(Compaction(above=2000, keep=2, summarise=brief), [*steps(3), "Done."], conversation=talk)
    assert compactions(events)
    assert result.messages[:2] == (SystemMessage("First."), SystemMessage("Second."))
    assert isinstance(result.messages[2], UserMessage) and result.messages[2].text.startswith(INTRODUCTION)


def test_a_chat_of_single_steps_is_shortened_too() -> None:
    talk, seen = Conversation(), list[Compacted]()
    for turn in range(8):
        _, events, _ = run(Compaction(above=2500, keep=2, summarise=brief), [f"{turn} {LONG}"], conversation=talk)
        seen += compactions(events)
    assert seen and len(talk) < 16


def test_the_model_writes_the_summary_and_its_tokens_count() -> None:
    script = [*steps(3), "They looked at places.", "Done."]
    result, events, model = run(after_three(), script)
    (event,) = compactions(events)
    assert event.summary == "They looked at places." and result.output == "Done."
    asked = model.requests[3]
    assert asked.envelope.tools == () and asked.envelope.choice == "none" and len(asked.messages) == 1
    assert isinstance(asked.messages[0], UserMessage)
    assert "assistant calls look with {'place': 0}" in asked.messages[0].text and "0: word" in asked.messages[0].text
    free, _, _ = run(after_three(summarise=lambda messages: event.summary), [*steps(3), "Done."])
    assert free.usage.output_tokens + len(event.summary) == result.usage.output_tokens
    assert model.open_threads == 1
    asyncio.run(result.conversation.aclose())
    assert model.open_threads == 0


@pytest.mark.parametrize("answer", ["", "  \n", None, 7, ConnectionError("no summariser today")])
def test_a_summary_that_fails_ends_the_run_and_loses_nothing(answer: Any) -> None:
    def summarise(messages: Sequence[Message]) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    talk = Conversation()
    result, events, _ = run(
        Compaction(above=2000, keep=2, summarise=summarise), [*steps(9), "Done."], conversation=talk
    )
    assert result.stop == "error" and isinstance(result.error, ModelError) and not compactions(events)
    assert "the conversation could not be summarised" in str(result.error)
    assert ("no summariser today" if isinstance(answer, Exception) else "the summary is") in str(result.error)
    assert_valid(talk.messages)
    before, held = talk.messages, talk.ids
    assert len(result.calls) * 2 + 1 == len(before) and held is not None
    again = Agent(ScriptedModel(["Done."]), tools=[look]).run_sync(None, conversation=talk)
    assert again.output == "Done." and again.messages[: len(before)] == before


def test_a_model_that_cannot_summarise_ends_the_run() -> None:
    result, _, _ = run(after_three(), [*steps(3), RuntimeError("out of memory")])
    assert result.stop == "error" and "could not be summarised: RuntimeError: out of memory" in str(result.error)


def test_a_slow_summary_is_bound_by_limits_and_cancellation() -> None:
    cancel = Cancel()

    async def for_ever(messages: Sequence[Message]) -> str:
        cancel.cancel()
        await asyncio.Event().wait()
        return "never"

    result, _, _ = run(Compaction(above=2000, keep=2, summarise=for_ever), steps(9), cancel=cancel)
    assert result.stop == "cancelled"
    assert_valid(result.messages)


def test_what_cannot_be_shortened_is_not_tried_at_every_step() -> None:
    tries: list[int] = []

    def useless(messages: Sequence[Message]) -> str:
        tries.append(len(messages))
        return LONG * 12  # Longer than the bound by itself.

    result, events, _ = run(Compaction(above=4000, keep=2, summarise=useless), [*steps(19), "Done."])
    assert result.output == "Done." and len(tries) == len(compactions(events)) <= 12


def test_what_is_all_to_be_kept_is_not_looked_at_at_every_step() -> None:
    _, events, _ = run(Compaction(above=1, keep=50, summarise=brief), [*steps(8), "Done."])
    assert not compactions(events)


def test_going_back_forgets_how_long_it_was() -> None:
    talk = Conversation()
    Agent(ScriptedModel([LONG, LONG])).run_sync("a", conversation=talk)
    assert talk.tokens > 500
    asyncio.run(talk.rewind(0))
    assert talk.tokens == 0


def test_compaction_under_a_token_limit() -> None:
    result, _, _ = run(Compaction(above=2000, keep=2, summarise=brief), steps(30), limits=Limits(tokens=9000))
    assert result.stop == "tokens"
    assert_valid(result.messages)


@pytest.mark.parametrize("bad", [{"above": 0}, {"above": 10, "keep": 0}])
def test_bounds_are_checked(bad: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"Compaction\.above and Compaction\.keep must be at least 1"):
        Compaction(**bad)


def test_no_call_is_parted_from_its_result() -> None:
    call = AssistantMessage(calls=(ToolCall("1", "look", {}), ToolCall("2", "look", {})))
    told = ToolMessage((ToolResult("1", "look", "a"), ToolResult("2", "look", "b")))
    messages = [UserMessage("x"), call, told, call, told]
    for keep in range(1, 6):
        system, older, kept = split(messages, keep)
        assert not system and [*older, *kept] == messages and len(kept) >= keep
        assert_valid(older)
        assert_valid(kept)


def test_messages_as_text_are_cut() -> None:
    text = as_text([UserMessage("x" * 5000), AssistantMessage("said", "thought"), SystemMessage("rule")])
    assert len(text) < 4200 and "assistant: said" in text and "thought" not in text and "system: rule" in text

"""Conversations go back, fork, change, and become JSON; a local model keeps what it can of its state."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from m1agent.agent import Agent
from m1agent.conversation import NOT_RUN, Conversation
from m1agent.errors import ConversationInUse, TranscriptError
from m1agent.events import CallReady, StepStarted, TextDelta
from m1agent.messages import AssistantMessage, ImagePart, ToolCall, ToolMessage, ToolOutput, ToolResult, UserMessage
from m1agent.models.base import Settings
from m1agent.models.local import LocalModel
from m1agent.models.scripted import ScriptedModel
from m1agent.tools import tool


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


CALL = AssistantMessage(calls=(ToolCall("call_1", "add", {"a": 1, "b": 2}),))


@pytest.fixture
def model(folder: Path) -> Iterator[LocalModel]:
    model = LocalModel(folder, max_tokens=24)
    yield model
    asyncio.run(model.aclose())


def scripted(*script: Any) -> Agent[None, str]:
    return Agent(ScriptedModel(script), tools=[add])


# Going back


def test_a_local_model_keeps_its_state_when_it_goes_back(model: LocalModel) -> None:
    async def go() -> None:
        talk, agent = Conversation(), Agent(model, tools=[add], settings=Settings(temperature=0))
        first = await agent.run("One.", conversation=talk, tool_choice="none")
        held = talk.ids
        second = await agent.run("Two.", conversation=talk, tool_choice="none")
        assert held is not None and talk.ids is not None and talk.ids[: len(held)] == held
        await talk.rewind(len(first.messages))
        assert talk.messages == first.messages and talk.rebuilds == 0
        assert talk.ids == held
        again = await agent.run("Two.", conversation=talk, tool_choice="none")
        assert again.messages == second.messages
        assert again.usage.reused_tokens >= second.usage.reused_tokens >= len(held) - 1  # The last was never computed.
        await talk.aclose()

    asyncio.run(go())


def test_where_no_mark_is_the_history_is_read_anew(model: LocalModel) -> None:
    async def go() -> None:
        talk, agent = Conversation(), Agent(model, tools=[add], settings=Settings(temperature=0))
        first = await agent.run("One.", conversation=talk, tool_choice="none")
        await talk.rewind(1)  # Between the question and its answer the model has no mark.
        assert talk.messages == (UserMessage("One."),) and talk.rebuilds == 1
        again = await agent.run(None, conversation=talk, tool_choice="none")
        # The history is read anew, and the runtime still has all of it.
        assert again.messages == first.messages and again.usage.reused_tokens == again.usage.input_tokens
        await talk.aclose()

    asyncio.run(go())


def test_going_back_after_a_reply_that_was_cut(model: LocalModel) -> None:
    async def go() -> None:
        talk, agent = Conversation(), Agent(model, settings=Settings(temperature=0))
        async with aclosing(agent.stream("One.", conversation=talk)) as stream:
            async for event in stream:
                if isinstance(event, TextDelta):
                    break
        cut = talk.messages
        second = await agent.run("Two.", conversation=talk)
        ids = talk.ids
        await talk.rewind(len(cut))
        again = await agent.run("Two.", conversation=talk)
        assert again.messages == second.messages and talk.ids == ids and talk.rebuilds == 0
        await talk.aclose()

    asyncio.run(go())


def test_a_scripted_model_goes_back_too() -> None:
    talk, agent = Conversation(), scripted("a", CALL, "b", "c")
    agent.run_sync("One.", conversation=talk)
    agent.run_sync("Two.", conversation=talk)
    asyncio.run(talk.rewind(2))
    result = agent.run_sync("Three.", conversation=talk)
    assert [getattr(message, "text", "") for message in result.messages] == ["One.", "a", "Three.", "c"]
    prompt = bytes(token for token in talk.ids or () if token < 256).decode()
    assert "Two." not in prompt and talk.rebuilds == 0


def test_a_rewind_never_parts_a_call_from_its_result() -> None:
    talk = Conversation()
    scripted(CALL, "3").run_sync("Add.", conversation=talk)
    with pytest.raises(ValueError, match="message 2 makes calls; rewind to 1 or 3 instead"):
        asyncio.run(talk.rewind(2))
    for length in (-1, 5):
        with pytest.raises(ValueError, match=f"cannot rewind to {length} messages: the conversation has 4"):
            asyncio.run(talk.rewind(length))
    asyncio.run(talk.rewind(3))
    assert scripted("It is 3.").run_sync(None, conversation=talk).output == "It is 3."
    asyncio.run(talk.rewind(0))
    assert len(talk) == 0 and talk.messages == ()


def test_calls_that_waited_are_gone_after_going_back() -> None:
    @tool(approval=True)
    def risky() -> str:
        """Do something risky."""
        return "done"

    talk = Conversation()
    asks = AssistantMessage(calls=(ToolCall("call_1", "risky", {}),))
    Agent(ScriptedModel([asks]), tools=[risky]).run_sync("Go.", conversation=talk)
    assert talk.waiting
    asyncio.run(talk.rewind(1))
    assert talk.waiting == () and talk.noted == ()


def test_a_conversation_in_use_neither_goes_back_nor_changes() -> None:
    async def go() -> None:
        talk = Conversation()
        async with aclosing(scripted("a").stream("One.", conversation=talk)) as stream:
            async for event in stream:
                if isinstance(event, StepStarted):
                    with pytest.raises(ConversationInUse):
                        await talk.rewind(0)
                    with pytest.raises(ConversationInUse):
                        await talk.replace([])
        assert len(talk) == 2

    asyncio.run(go())


# Forks and replacements


def test_a_fork_shares_the_state_and_nothing_else(model: LocalModel) -> None:
    async def go() -> None:
        talk, agent = Conversation(), Agent(model, settings=Settings(temperature=0))
        await agent.run("One.", conversation=talk)
        twin, held = talk.fork(), talk.ids
        other = await agent.run("Other.", conversation=twin)
        assert talk.ids == held and len(talk) == 2 and len(twin) == 4
        assert held is not None and other.usage.reused_tokens >= len(held) - 1
        await twin.rewind(2)
        assert twin.ids == held and twin.rebuilds == 0
        await twin.aclose()
        assert (await agent.run("Two.", conversation=talk)).usage.reused_tokens >= len(held) - 1
        await talk.aclose()

    asyncio.run(go())
    assert model.engine.stats().sessions == 0


def test_a_replaced_history_is_read_anew() -> None:
    talk, agent = Conversation(), scripted("a", "b")
    agent.run_sync("One.", conversation=talk)
    asyncio.run(talk.replace([UserMessage("Instead."), AssistantMessage("Yes?")]))
    result = agent.run_sync("Two.", conversation=talk)
    assert result.messages[0] == UserMessage("Instead.") and talk.rebuilds == 1 and result.usage.reused_tokens == 0


def test_call_ids_go_on_counting_after_the_history_is_read_anew() -> None:
    talk, agent = Conversation(), scripted(CALL, "3", CALL, "3")
    agent.run_sync("Add.", conversation=talk)
    again = Conversation.from_json(talk.to_json())
    result = agent.run_sync("Again.", conversation=again)
    assert [record.call.id for record in result.calls] == ["call_2"]


def test_call_ids_go_on_counting_after_a_cut() -> None:
    async def go() -> None:
        talk, agent = Conversation(), scripted(CALL, CALL, "3")
        async with aclosing(agent.stream("Add.", conversation=talk)) as stream:
            async for event in stream:
                if isinstance(event, CallReady):
                    break
        result = await agent.run("Again.", conversation=talk)
        assert [record.call.id for record in result.calls] == ["call_2"]

    asyncio.run(go())


def test_calls_left_open_in_a_given_history_are_told_as_not_run() -> None:
    talk = Conversation([UserMessage("Add."), CALL])
    result = scripted("Oh.").run_sync("Well?", conversation=talk)
    assert result.messages[2] == ToolMessage((ToolResult("call_1", "add", NOT_RUN, is_error=True),))
    assert result.output == "Oh."


# JSON


def test_a_conversation_survives_as_json() -> None:
    @tool
    async def picture() -> ToolOutput:
        """Draw."""
        return ToolOutput("a picture", (ImagePart(b"\x00\xff", "image/png"),))

    talk = Conversation()
    draws = AssistantMessage("Drawing.", "hm", (ToolCall("call_1", "picture", {}),))
    Agent(ScriptedModel([draws, "Done \ud83d\ude00"]), tools=[picture]).run_sync("Draw é.", conversation=talk)
    again = Conversation.from_json(json.loads(json.dumps(talk.to_json())))
    assert again.messages == talk.messages and again.waiting == () and again.noted == ()
    assert scripted("more").run_sync("Go on.", conversation=again).output == "more"


WAITING = {"format": 1, "messages": [{"role": "assistant", "calls": [{"id": "a", "name": "x", "arguments": {}}]}]}


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ([], "a conversation is an object as Conversation.to_json makes it, not []"),
        ({}, "format: expected 1, got null"),
        ({"format": 2, "messages": []}, "format: expected 1, got 2"),
        ({"format": 1}, "a transcript is a list of messages, not null"),
        ({"format": 1, "messages": [{"role": "nobody"}]}, "messages[0].role: expected one of"),
        ({"format": 1, "messages": [], "waiting": ["a"]}, 'waiting: "a" is no call of the last message'),
        ({**WAITING, "waiting": ["b"]}, 'waiting: "b" is no call of the last message'),
        ({**WAITING, "waiting": "a b"}, 'waiting: "a b" is no call of the last message'),
        ({**WAITING, "noted": [None, None]}, "noted: 2 results, but the last message makes 1 calls"),
    ],
)
def test_json_that_is_no_conversation_names_the_place(values: Any, says: str) -> None:
    with pytest.raises(TranscriptError) as raised:
        Conversation.from_json(values)
    assert str(raised.value).startswith(says)

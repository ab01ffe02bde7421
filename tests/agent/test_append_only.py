"""The promise of the loop, over all its features together: token ids only grow, and every history is valid.

Hypothesis writes the script: what the model says, what the tools and those around them do, and where runs are cut.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from m1agent.agent import Agent
from m1agent.approval import Approval
from m1agent.cancel import Cancel
from m1agent.compaction import Compaction
from m1agent.context import Context
from m1agent.conversation import Conversation
from m1agent.delegation import handoff
from m1agent.errors import ToolError
from m1agent.events import (
    Compacted,
    Event,
    HandedOff,
    ReplyFinished,
    RunFinished,
    StepFinished,
    TextDelta,
    ToolFinished,
)
from m1agent.guards import Block, Retry
from m1agent.hooks import Hooks
from m1agent.limits import Limits
from m1agent.messages import AssistantMessage, Message, ToolCall, ToolMessage, ToolOutput
from m1agent.models.scripted import Reply, ScriptedModel
from m1agent.result import RunResult
from m1agent.tools import Tool, tool

NAMES = ("add", "add", "frail", "risky", "late", "loud", "moody", "nothing", "transfer_to_other")

calls = st.builds(
    lambda name, n: ToolCall("c", name, {"n": n}),
    st.sampled_from(NAMES),
    st.one_of(st.integers(0, 3), st.sampled_from(["x", None])),
)
replies = st.one_of(
    st.builds(
        lambda text, thinking, made: AssistantMessage(text, thinking, tuple(made)),
        st.sampled_from(["", "Well: ", "é😀"]),
        st.sampled_from(["", "hm"]),
        st.lists(calls, min_size=1, max_size=4),
    ),
    st.sampled_from(["fine", "refused", "blocked", "<think>\nwell\n</think>\nfine", "<tool_calls>\n{]\n</tool_calls>"]),
    st.just("half").map(lambda text: [TextDelta(text), RuntimeError("gone")]),
    st.builds(RuntimeError),
)
turns = st.fixed_dictionaries(
    {
        "script": st.lists(replies, min_size=1, max_size=5),
        "prompt": st.sampled_from(["Go.", "Go on, é.", "bad", None]),
        "steps": st.integers(1, 4),
        "tool_calls": st.sampled_from([None, 1, 3]),
        "tokens": st.sampled_from([None, None, 3000]),
        "ask": st.booleans(),
        "approve": st.booleans(),
        "leave": st.sampled_from([None, None, None, 3, 9]),
        "cancel": st.sampled_from([None, None, None, 1, 2]),
        "choice": st.sampled_from(["auto", "required", "none"]),
        "hooks": st.booleans(),
        "compact": st.sampled_from([None, None, 1500]),
    }
)


class World:
    """The tools of a run, and what they are up to."""

    def __init__(self, turn: dict[str, Any], cancel: Cancel) -> None:
        self.turn = turn
        self.cancel = cancel
        self.ran = 0

    def tools(self) -> list[Tool]:
        @tool
        async def add(n: int) -> str:
            """Add one."""
            self.ran += 1
            if self.ran == self.turn["cancel"]:
                self.cancel.cancel()
                await asyncio.Event().wait()
            return f"{n + self.ran}"

        @tool(retries=2)
        async def frail(n: int) -> str:
            """Fail now and then."""
            if n % 2:
                raise ToolError("Odd.")
            return "even"

        @tool(approval=True)
        async def risky(n: int) -> str:
            """Do something risky."""
            return f"risked {n}"

        @tool(timeout=0.001)
        async def late(n: int) -> str:
            """Be late, if at all."""
            if n == 3:
                await asyncio.Event().wait()
            return "in time"

        @tool
        async def loud(context: Context, n: int) -> str:
            """Tell and return much."""
            context.progress("begun")
            return "x" * 30_000 if n else "quiet"

        @tool(available=lambda: self.ran % 2 == 0)
        async def moody(n: int) -> str:
            """Be there now and then."""
            return "there"

        return [add, frail, risky, late, loud, moody]

    def agent(self, model: ScriptedModel) -> Agent[None, str]:
        def before(context: Context[Any], call: ToolCall) -> ToolCall | ToolOutput | None:
            if call.arguments.get("n") == 0:
                return ToolOutput("from a hook")
            return ToolCall("", call.name, {"n": 2}) if call.arguments.get("n") == 1 else None

        approval = Approval(ask=(lambda request: self.turn["approve"]) if self.turn["ask"] else None)
        verdicts = {"refused": Retry("Not so."), "blocked": Block("No.")}
        shared: dict[str, Any] = {
            "approval": approval,
            "hooks": Hooks(before_call=before) if self.turn["hooks"] else None,
            "input_guards": [lambda new: Block("bad") if new[0].text == "bad" else None],
            "output_guards": [verdicts.get],
            "limits": Limits(self.turn["steps"], self.turn["tokens"], tool_calls=self.turn["tool_calls"]),
        }
        if self.turn["compact"]:
            shared["compaction"] = Compaction(self.turn["compact"], keep=2, summarise=lambda messages: "In short.")
        other = Agent(model, tools=self.tools(), name="other", **shared)
        return Agent(model, tools=[*self.tools(), handoff(other)], **shared)


def assert_valid(messages: Sequence[Message], waiting: Sequence[ToolCall]) -> None:
    """Each call has one result, in order, right after it; only the last reply's may wait."""
    ids: list[str] = []
    for index, message in enumerate(messages):
        if isinstance(message, AssistantMessage) and message.calls:
            ids += [call.id for call in message.calls]
            if index == len(messages) - 1:
                assert waiting and all(call in message.calls for call in waiting)
                continue
            answer = messages[index + 1]
            assert isinstance(answer, ToolMessage)
            assert [one.call_id for one in answer.results] == [call.id for call in message.calls]
            assert [one.name for one in answer.results] == [call.name for call in message.calls]
        if isinstance(message, ToolMessage):
            before = messages[index - 1]
            assert isinstance(before, AssistantMessage) and before.calls
    assert len(ids) == len(set(ids))


class Growth:
    """Holds the ids of a conversation against those before, event by event. They may begin anew only after a
    compaction, a hand-off, or a model that failed."""

    def __init__(self, talk: Conversation) -> None:
        self.talk = talk
        self.seen: tuple[int, ...] = ()
        self.anew = True
        self.compared = 0

    def look(self, event: Event) -> None:
        ids = self.talk.ids
        self.anew |= isinstance(event, Compacted) or (isinstance(event, RunFinished) and event.result.error is not None)
        if not self.anew:
            assert ids is not None and ids[: len(self.seen)] == self.seen, event
            self.compared += 1
        if ids is not None:
            self.seen, self.anew = ids, False
        self.anew |= isinstance(event, HandedOff)


async def watched(growth: Growth, model: ScriptedModel, turn: dict[str, Any]) -> list[Event]:
    """The events of one run."""
    cancel, talk, events = Cancel(), growth.talk, list[Event]()
    model.clear()
    model.extend(turn["script"])
    approvals = {call.id: turn["approve"] for call in talk.waiting[:1]}
    stream = (
        World(turn, cancel)
        .agent(model)
        .stream(turn["prompt"], conversation=talk, cancel=cancel, tool_choice=turn["choice"], approvals=approvals)
    )
    async with aclosing(stream):
        async for event in stream:
            events.append(event)
            growth.look(event)
            if turn["leave"] == len(events):
                break
    growth.anew |= any(isinstance(event, HandedOff) for event in events)  # The next run goes back to the first agent.
    return events


@settings(max_examples=200, deadline=None)
@given(st.lists(turns, min_size=1, max_size=4))
def test_ids_only_grow_and_histories_are_valid(turns: list[dict[str, Any]]) -> None:
    async def go() -> None:
        talk, model = Conversation(), ScriptedModel([], chunk=7)
        growth = Growth(talk)
        for turn in turns:
            before = talk.messages
            events = await watched(growth, model, turn)
            assert_valid(talk.messages, talk.waiting)
            if not any(isinstance(event, Compacted) for event in events):
                assert talk.messages[: len(before)] == before
            again = Conversation.from_json(talk.to_json())
            assert (again.messages, again.waiting, again.noted) == (talk.messages, talk.waiting, talk.noted)
            if isinstance(events[-1], RunFinished):
                assert_result(events, events[-1].result, talk)
        assert {task for task in asyncio.all_tasks() if not task.done()} == {asyncio.current_task()}
        await talk.aclose()
        assert model.open_threads == 0

    asyncio.run(go())


def assert_result(events: Sequence[Event], result: RunResult[Any], talk: Conversation) -> None:
    """The events tell the same as the result."""
    assert [event for event in events if isinstance(event, RunFinished)] == [events[-1]]
    assert result.messages == talk.messages and result.pending == talk.waiting
    assert bool(result.pending) == (result.stop == "approval") or result.stop in ("blocked", "cancelled")
    told = [event for event in events if isinstance(event, ToolFinished)]
    assert len({event.call.id for event in told}) == len(told)
    finished = [event.message for event in events if isinstance(event, ReplyFinished)]
    if not any(isinstance(event, Compacted) for event in events):
        said = [message for message in result.messages if isinstance(message, AssistantMessage)]
        assert all(message in said for message in finished)
        contents = {call.call.id: call.result.content for call in result.calls}
        assert all(contents[event.call.id].startswith(event.result.content) for event in told)
    steps = [event.step for event in events if isinstance(event, StepFinished)]
    assert steps == list(range(1, len(steps) + 1)) and result.steps - len(steps) in (0, 1)
    assert (result.output is not None) <= (result.stop in ("done", "tokens"))
    assert (result.error is not None) == (result.stop == "error") and bool(result.reason) == (result.stop == "blocked")


@settings(max_examples=40, deadline=None)
@given(turns.map(lambda turn: turn | {"cancel": None, "leave": None}))
def test_the_stream_is_the_run(turn: dict[str, Any]) -> None:
    def agent() -> Agent[None, str]:
        return World(turn, Cancel()).agent(ScriptedModel(turn["script"]))

    async def streamed() -> RunResult[str]:
        events = [event async for event in agent().stream(turn["prompt"], tool_choice=turn["choice"])]
        assert isinstance(events[-1], RunFinished)
        return events[-1].result

    one, other = asyncio.run(streamed()), asyncio.run(agent().run(turn["prompt"], tool_choice=turn["choice"]))
    for field in ("output", "stop", "steps", "messages", "usage", "reason", "pending"):
        assert getattr(one, field) == getattr(other, field), field
    assert [record.result for record in one.calls] == [record.result for record in other.calls]
    assert str(one.error) == str(other.error)


def test_the_world_of_these_tests_is_no_desert() -> None:
    """Each feature really happens in it."""
    script: list[Reply] = [AssistantMessage(calls=tuple(ToolCall("c", name, {"n": 2}) for name in NAMES[:-1])), "fine"]
    turn = {"script": script, "steps": 4, "tool_calls": None, "tokens": None, "ask": True, "approve": True}
    world = World(turn | {"cancel": None, "hooks": True, "compact": None}, Cancel())
    told = [record.result.content for record in world.agent(ScriptedModel(script)).run_sync("Go.").calls]
    assert told[2:5] == ["even", "risked 2", "in time"] and "characters left out" in told[5] and "no tool" in told[7]

"""The run: steps, parallel calls, errors told to the model, limits, cancellation, and the append-only transcript."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m1agent.agent import Agent
from m1agent.cancel import Cancel
from m1agent.conversation import NOT_RUN, Conversation
from m1agent.errors import ModelError, ToolError
from m1agent.events import (
    ArgumentsDelta,
    CallReady,
    CallStarted,
    Event,
    ReplyFinished,
    RunFinished,
    StepFinished,
    StepStarted,
    TextDelta,
    ThinkingDelta,
    ToolFinished,
    ToolStarted,
)
from m1agent.limits import Limits
from m1agent.messages import AssistantMessage, Message, ToolCall, ToolMessage, UserMessage
from m1agent.models.base import Settings
from m1agent.models.scripted import Reply, ScriptedModel
from m1agent.prompt.envelope import Named
from m1agent.prompt.template import calls_text
from m1agent.result import RunResult
from m1agent.tools import Tool, tool


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def calls(*pairs: tuple[str, dict[str, Any]], text: str = "", thinking: str = "") -> AssistantMessage:
    return AssistantMessage(
        text, thinking, tuple(ToolCall(f"call_{i}", name, args) for i, (name, args) in enumerate(pairs, 1))
    )


def run(script: Sequence[Reply], tools: Sequence[Any] = (add,), **options: Any) -> RunResult:
    model = ScriptedModel(script)
    keywords = {key: options.pop(key) for key in ("conversation", "cancel", "tool_choice") if key in options}
    result = Agent(model, tools=tools, **options).run_sync("Go.", **keywords)
    assert_valid(result.messages)
    return result


def assert_valid(messages: Sequence[Message]) -> None:
    """Every call has one result, in order, right after it."""
    for index, message in enumerate(messages):
        if isinstance(message, AssistantMessage) and message.calls:
            answer = messages[index + 1]
            assert isinstance(answer, ToolMessage)
            assert [r.call_id for r in answer.results] == [c.id for c in message.calls]
        if isinstance(message, ToolMessage):
            before = messages[index - 1]
            assert isinstance(before, AssistantMessage) and before.calls


def results(result: RunResult) -> list[str]:
    return [record.result.content for record in result.calls]


def test_a_call_its_result_and_the_answer() -> None:
    result = run([calls(("add", {"a": 1, "b": 2}), thinking="sum"), "It is 3."])
    assert (result.output, result.stop, result.steps) == ("It is 3.", "done", 2)
    assert results(result) == ["3"]
    assert [type(message).__name__ for message in result.messages] == [
        "UserMessage",
        "AssistantMessage",
        "ToolMessage",
        "AssistantMessage",
    ]
    assert result.usage.output_tokens > 0 and result.usage.reused_tokens > 0


def test_events_come_in_the_documented_order() -> None:
    async def collect() -> list[Event]:
        model = ScriptedModel([calls(("add", {"a": 1, "b": 2}), thinking="sum"), "It is 3."], chunk=1000)
        return [event async for event in Agent(model, tools=[add]).stream("Go.")]

    events = asyncio.run(collect())
    kinds = [type(event) for event in events]
    first = [StepStarted, ThinkingDelta, CallStarted, ArgumentsDelta, CallReady, ReplyFinished]
    assert kinds[: len(first)] == first
    assert kinds[len(first) :] == [
        ToolStarted,
        ToolFinished,
        StepFinished,
        StepStarted,
        TextDelta,
        ReplyFinished,
        StepFinished,
        RunFinished,
    ]


def test_sync_tools_of_one_reply_run_at_the_same_time() -> None:
    barrier = threading.Barrier(3, timeout=5)

    @tool
    def meet(name: str) -> str:
        """Wait for the others."""
        barrier.wait()
        return name

    result = run([calls(*(("meet", {"name": n}) for n in "abc")), "ok"], [meet])
    assert results(result) == ["a", "b", "c"]


def test_results_stand_in_call_order_whichever_finishes_first() -> None:
    @tool
    async def wait(seconds: float) -> str:
        """Wait."""
        await asyncio.sleep(seconds)
        return str(seconds)

    result = run([calls(("wait", {"seconds": 0.05}), ("wait", {"seconds": 0.0})), "ok"], [wait])
    message = result.messages[2]
    assert isinstance(message, ToolMessage)
    assert [r.content for r in message.results] == ["0.05", "0.0"]


def test_a_failing_sibling_discards_nothing() -> None:
    @tool
    def broken() -> str:
        """Fail."""
        raise ValueError("boom 42")

    @tool
    def refuses() -> str:
        """Refuse."""
        raise ToolError("Not on Sundays.")

    @tool
    def leaves() -> str:
        """Leave."""
        raise SystemExit(3)

    script = [calls(("add", {"a": 1, "b": 1}), ("broken", {}), ("refuses", {}), ("leaves", {})), "ok"]
    result = run(script, [add, broken, refuses, leaves])
    assert result.stop == "done"
    assert results(result) == ["2", "ValueError: boom 42", "Not on Sundays.", "SystemExit: 3"]
    assert [record.result.is_error for record in result.calls] == [False, True, True, True]


def test_bad_calls_are_told_and_the_run_goes_on() -> None:
    script = [
        calls(("ad", {"a": 1, "b": 2}), ("add", {"a": "one"})),
        '<tool_calls>\n{"name": "add", "arguments": {"a": 1,\n</tool_calls>',
        "sorry",
    ]
    result = run(script)
    unknown, invalid, broken = results(result)
    assert "no tool" in unknown and "add" in unknown
    assert "a: expected integer" in invalid and "b: missing" in invalid
    assert "could not be read" in broken
    assert result.output == "sorry"


def test_a_coercion_is_made_and_reported() -> None:
    result = run([calls(("add", {"a": "7", "b": 1})), "ok"])
    assert results(result) == ['8\nNote: a: "7" read as 7.']


def test_the_step_limit_keeps_the_work_and_the_run_resumes() -> None:
    conversation = Conversation()
    result = run([calls(("add", {"a": 1, "b": 2}))] * 2, limits=Limits(steps=2), conversation=conversation)
    assert (result.stop, result.steps, result.output) == ("steps", 2, None)
    assert results(result) == ["3", "3"]
    again = asyncio.run(Agent(ScriptedModel(["It is 3."]), tools=[add]).run(conversation=conversation))
    assert again.output == "It is 3." and again.messages[: len(result.messages)] == result.messages


def test_the_token_limit() -> None:
    result = run([calls(("add", {"a": i, "b": 2})) for i in range(9)], limits=Limits(tokens=900))
    assert result.stop == "tokens" and 0 < result.steps < 9


def test_a_reply_is_asked_for_no_more_tokens_than_are_left() -> None:
    model = ScriptedModel(["ok"])
    agent = Agent(model, limits=Limits(tokens=500, reply_tokens=100), settings=Settings(max_tokens=200))
    agent.run_sync("Go.")
    assert model.requests[0].settings.max_tokens == 100


def test_the_call_limit_tells_the_model_to_answer() -> None:
    two = calls(("add", {"a": 1, "b": 2}), ("add", {"a": 1, "b": 3}))
    model = ScriptedModel([two, "ok"])
    result = Agent(model, tools=[add], limits=Limits(tool_calls=1)).run_sync("Go.")
    assert results(result)[0] == "3" and "not run" in results(result)[1]
    assert model.requests[1].envelope.choice == "none" and result.stop == "done"


def test_the_time_limit_stops_tools_and_answers_their_calls() -> None:
    stopped = threading.Event()

    @tool
    async def sleep() -> str:
        """Sleep."""
        try:
            await asyncio.sleep(30)
        finally:
            stopped.set()
        return "late"

    started = time.perf_counter()
    result = run([calls(("add", {"a": 1, "b": 2}), ("sleep", {}))], [add, sleep], limits=Limits(seconds=0.2))
    assert result.stop == "seconds" and time.perf_counter() - started < 5
    assert stopped.is_set()
    assert results(result) == ["3", "This call was stopped before it finished."]


def test_the_time_limit_stops_a_reply_and_keeps_what_was_said() -> None:
    def forever(_: tuple[Message, ...]) -> Any:
        return asyncio.sleep(30)

    result = run([calls(("add", {"a": 1, "b": 2})), forever], limits=Limits(seconds=0.2))
    assert result.stop == "seconds" and results(result) == ["3"]


def test_a_model_that_fails_ends_the_run_with_its_work() -> None:
    result = run([calls(("add", {"a": 1, "b": 2})), RuntimeError("out of memory")])
    assert result.stop == "error" and isinstance(result.error, ModelError)
    assert "out of memory" in str(result.error) and results(result) == ["3"]
    again = Agent(ScriptedModel(["It is 3."]), tools=[add]).run_sync(conversation=result.conversation)
    assert again.output == "It is 3."


def test_a_model_that_fails_midway_keeps_the_text_so_far() -> None:
    result = run([[TextDelta("Let me "), RuntimeError("gone")]])
    assert result.stop == "error" and result.messages[-1] == AssistantMessage("Let me ")


def test_the_same_call_over_and_over_is_told_then_stopped() -> None:
    result = run([calls(("add", {"a": 1, "b": 2}))] * 60)
    assert result.stop == "loop" and result.steps == 4
    assert ["same result" in text for text in results(result)] == [False, False, True, True]


def test_polling_with_changing_results_is_no_loop() -> None:
    ticks = iter(range(100))

    @tool
    def poll() -> int:
        """Poll."""
        return next(ticks)

    result = run([*[calls(("poll", {}))] * 10, "ok"], [poll])
    assert result.stop == "done"


def test_twins_in_one_reply_count_once() -> None:
    result = run([calls(*[("add", {"a": 1, "b": 2})] * 5), "ok"])
    assert result.stop == "done" and results(result) == ["3"] * 5


def test_cancel_from_another_thread_ends_the_run() -> None:
    cancel = Cancel()

    @tool
    async def sleep() -> str:
        """Sleep."""
        threading.Timer(0.05, cancel.cancel).start()
        await asyncio.sleep(30)
        return "late"

    result = run([calls(("sleep", {}), ("add", {"a": 1, "b": 1}))], [sleep, add], cancel=cancel)
    assert result.stop == "cancelled" and results(result)[1] == "2"


def test_a_cancelled_task_leaves_a_conversation_that_goes_on() -> None:
    async def go() -> RunResult:
        started = asyncio.Event()

        @tool
        async def sleep() -> str:
            """Sleep."""
            started.set()
            await asyncio.sleep(30)
            return "late"

        model = ScriptedModel([calls(("sleep", {}), ("add", {"a": 1, "b": 1})), "It is 2."])
        agent = Agent(model, tools=[sleep, add])
        conversation = Conversation()
        added = asyncio.Event()

        async def watch() -> None:
            async with aclosing(agent.stream("Go.", conversation=conversation)) as stream:
                async for event in stream:
                    if isinstance(event, ToolFinished):
                        added.set()

        task = asyncio.create_task(watch())
        await started.wait()
        await added.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert_valid(conversation.messages)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        before = conversation.ids
        result = await agent.run("And?", conversation=conversation)
        assert before is not None and result.conversation.ids is not None
        assert result.conversation.ids[: len(before)] == before and conversation.rebuilds == 0
        return result

    result = asyncio.run(go())
    assert result.output == "It is 2."
    assert isinstance(result.messages[2], ToolMessage) and result.messages[2].results[1].content == "2"


def test_a_reader_that_leaves_early_leaks_nothing() -> None:
    async def go() -> None:
        cancelled = asyncio.Event()

        @tool
        async def sleep() -> str:
            """Sleep."""
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                cancelled.set()
                raise
            return "late"

        script = [calls(("sleep", {}), ("add", {"a": 1, "b": 1}), text="One moment.")]
        for kind in (TextDelta, CallStarted, ReplyFinished, ToolStarted, ToolFinished):
            conversation = Conversation()
            agent = Agent(ScriptedModel(script, chunk=3), tools=[sleep, add])
            async for event in agent.stream("Go.", conversation=conversation):
                if isinstance(event, kind):
                    break
            for _ in range(10):
                await asyncio.sleep(0)
            assert asyncio.all_tasks() == {asyncio.current_task()}, kind
            assert_valid(conversation.messages)
        assert cancelled.is_set()

    asyncio.run(go())


def test_the_first_reply_can_be_forced() -> None:
    model = ScriptedModel([calls(("add", {"a": 1, "b": 2})), "ok"])
    Agent(model, tools=[add]).run_sync("Go.", tool_choice=add)
    assert [request.envelope.choice for request in model.requests] == [Named("add"), "auto"]


def test_a_call_id_is_never_used_twice_in_a_conversation() -> None:
    conversation = Conversation()
    agent = Agent(
        ScriptedModel([calls(("add", {"a": 1, "b": 2})), "ok", calls(("add", {"a": 1, "b": 2})), "ok"]), [add]
    )
    agent.run_sync("1", conversation=conversation)
    agent.run_sync("2", conversation=conversation)
    ids = [c.id for m in conversation.messages if isinstance(m, AssistantMessage) for c in m.calls]
    assert len(set(ids)) == len(ids) == 2


def test_limits_name_the_field_and_the_remedy() -> None:
    with pytest.raises(ValueError, match=r"Limits\.steps must be above 0"):
        Limits(steps=0)
    with pytest.raises(ValueError, match=r"Limits\.tokens must be a number"):
        Limits(tokens=True)


words = st.text('abc <>_/{}"\n:é', max_size=40)
replies = st.one_of(
    words,
    st.builds(
        lambda t, k, n: calls(*[("add", {"a": i, "b": 2}) for i in range(n)], text=t, thinking=k),
        words,
        words,
        st.integers(1, 3),
    ),
    st.builds(lambda t: t + calls_text([ToolCall("x", "nope", {})]) + "tail", words),
    st.just(RuntimeError("gone")),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.lists(replies, max_size=4), st.integers(1, 30), st.booleans()), min_size=1, max_size=3))
def test_transcripts_only_grow(turns: list[tuple[list[Reply], int, bool]]) -> None:
    """ids[n] == ids[n+1][:len(ids[n])] over every event of every run, also of runs cut short; only a failed model
    has its thread rebuilt.
    """

    async def go() -> None:
        model = ScriptedModel([], chunk=5)
        conversation, seen = Conversation(), tuple[int, ...]()
        agent = Agent(model, tools=[add], limits=Limits(steps=6))
        for script, stop_after, leaves in turns:
            model.extend([*script, "done"])
            count = 0
            stream = agent.stream(f"turn {count}", conversation=conversation)
            async for event in stream:
                ids, count = conversation.ids or (), count + 1
                if isinstance(event, RunFinished) and event.result.stop == "error":
                    seen = ()
                    break
                assert ids[: len(seen)] == seen
                seen = ids
                if leaves and count == stop_after:
                    break
            await stream.aclose()
            assert_valid(conversation.messages)
            model.clear()

    asyncio.run(go())


def test_conversations_fork() -> None:
    model = ScriptedModel(["one", "left", "right"])
    agent = Agent(model)
    trunk = agent.run_sync("Start.").conversation
    twin = trunk.fork()
    left, right = agent.run_sync("L", conversation=trunk), agent.run_sync("R", conversation=twin)
    assert (left.output, right.output) == ("left", "right")
    assert left.messages[:2] == right.messages[:2] and left.messages[2] == UserMessage("L")
    assert model.requests[2].messages == (UserMessage("Start."), AssistantMessage("one"), UserMessage("R"))


def test_not_run_is_told() -> None:
    async def go() -> None:
        conversation = Conversation()
        agent = Agent(ScriptedModel([calls(("add", {"a": 1, "b": 1}))]), tools=[add])
        async for event in agent.stream("Go.", conversation=conversation):
            if isinstance(event, ReplyFinished):
                break
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        last = conversation.messages[-1]
        assert isinstance(last, ToolMessage) and last.results[0].content == NOT_RUN and last.results[0].is_error

    asyncio.run(go())


def test_tool_from_a_schema_with_a_property_called_from() -> None:
    async def link(**arguments: Any) -> str:
        return f"{arguments['from']}-{arguments['to']}"

    text = {"type": "string"}
    schema = {"type": "object", "properties": {"from": text, "to": text}, "required": ["from", "to"]}
    result = run([calls(("link", {"from": "a", "to": "b"})), "ok"], [Tool.from_schema("link", "Link.", schema, link)])
    assert results(result) == ["a-b"]


class _Odd(BaseException):
    """Not an Exception."""


@pytest.mark.parametrize("error", [GeneratorExit("closed"), _Odd("very")])
@pytest.mark.parametrize("is_async", [True, False])
def test_what_is_no_exception_is_told_too(
    error: BaseException, is_async: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def later() -> str:
        """Fail."""
        raise error

    def now() -> str:
        """Fail."""
        raise error

    odd = tool(later if is_async else now)
    result = run([calls((odd.name, {}), ("add", {"a": 1, "b": 1})), "ok"], [odd, add])
    assert result.output == "ok" and results(result) == [f"{type(error).__name__}: {error}", "2"]
    gc.collect()
    assert not caplog.records


def test_ctrl_c_in_a_tool_ends_the_run() -> None:
    script = """
from m1agent import Agent, tool
from m1agent.models.scripted import ScriptedModel

@tool
def stop() -> str:
    "Stop."
    raise KeyboardInterrupt

call = '<tool_calls>\\n{"name": "stop", "arguments": {}}\\n</tool_calls>'
try:
    Agent(ScriptedModel([call, "no"]), tools=[stop]).run_sync("Go.")
except KeyboardInterrupt:
    print("ended")
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert ran.stdout == "ended\n", ran.stderr


def test_a_run_that_is_cancelled_before_its_first_token_leaves_no_empty_reply() -> None:
    cancel = Cancel()

    async def hang(messages: Sequence[Message]) -> str:
        cancel.cancel()
        await asyncio.Event().wait()
        return "never"

    async def go() -> None:
        agent: Agent[None, str] = Agent(ScriptedModel([hang, "Yes.", "Still."]))
        talk, ended = Conversation(), Cancel()
        ended.cancel()
        assert (await agent.run("One?", conversation=talk, cancel=ended)).stop == "cancelled"
        assert talk.messages == (UserMessage("One?"),)
        assert (await agent.run("Two?", conversation=talk, cancel=cancel)).stop == "cancelled"
        assert talk.messages == (UserMessage("One?"), UserMessage("Two?"))
        before = talk.ids
        assert (await agent.run("Three?", conversation=talk)).output == "Yes."
        assert before is not None and talk.ids is not None and talk.ids[: len(before)] == before
        text = bytes(token for token in talk.ids if token < 256).decode()
        assert [text.count(asked) for asked in ("One?", "Two?", "Three?")] == [1, 1, 1]
        assert (await agent.run(None, conversation=talk)).output == "Still." and talk.rebuilds == 0

    asyncio.run(go())


@pytest.mark.parametrize(
    ("tools", "choice", "says"),
    [
        ([add], Named("nope"), 'tool_choice: There is no tool "nope".* Tools: add'),
        ([add], Named("ad"), 'Did you mean "add"'),
        ([], Named("add"), "Tools: none"),
        ([], "required", "tool_choice='required' needs tools, and the agent has none"),
    ],
)
def test_a_choice_that_cannot_be_met_is_refused(tools: list[Tool], choice: Any, says: str) -> None:
    model, talk = ScriptedModel([]), Conversation()
    with pytest.raises(ValueError, match=says):
        Agent(model, tools=tools).run_sync("Go.", tool_choice=choice, conversation=talk)
    assert not model.requests and not talk.messages

"""Hooks that change calls and results, guards that let things in and out."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from pydantic import BaseModel

from m1agent.agent import Agent
from m1agent.approval import Approval
from m1agent.cancel import Cancel
from m1agent.context import Context
from m1agent.conversation import Conversation
from m1agent.errors import GuardError, ModelError
from m1agent.events import Event, ToolProgress
from m1agent.guards import Block, Retry
from m1agent.hooks import Hooks
from m1agent.limits import Limits
from m1agent.messages import AssistantMessage, Message, ToolCall, ToolOutput, ToolResult, UserMessage
from m1agent.models.scripted import ScriptedModel
from m1agent.result import RunResult
from m1agent.tools import tool


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@tool
def where(context: Context) -> str:
    """Tell which call this is."""
    return f"{context.call.name} {context.call.arguments}"


@tool
def fails() -> str:
    """Fail."""
    raise ValueError("at 10.0.0.7")


ADD = AssistantMessage(calls=(ToolCall("call_1", "add", {"a": 1, "b": 2}),))


def told(hooks: Hooks, reply: AssistantMessage = ADD, **options: Any) -> list[str]:
    agent = Agent(ScriptedModel([reply, "ok"]), tools=[add, where, fails], hooks=hooks, **options)
    result = agent.run_sync("Go.")
    assert result.stop == "done"
    assert [record.result.call_id for record in result.calls] == [record.call.id for record in result.calls]
    return [record.result.content for record in result.calls]


def test_a_hook_that_says_nothing_changes_nothing() -> None:
    seen: list[tuple[str, ToolCall]] = []

    async def after(context: Context[Any], call: ToolCall, result: ToolResult) -> None:
        seen.append((result.content, call))

    assert told(Hooks(lambda context, call: None, after)) == ["3"]
    assert seen == [("3", ADD.calls[0])]


def test_a_hook_answers_in_the_place_of_the_tool() -> None:
    async def cached(context: Context[Any], call: ToolCall) -> ToolOutput | None:
        return ToolOutput("from memory")

    assert told(Hooks(before_call=cached)) == ["from memory"]


def test_what_a_hook_raises_blocks_the_call_alone() -> None:
    def refuse(context: Context[Any], call: ToolCall) -> None:
        if call.arguments["a"] == 1:
            raise PermissionError("not one")

    two = AssistantMessage(calls=(*ADD.calls, ToolCall("d", "add", {"a": 2, "b": 2})))
    assert told(Hooks(before_call=refuse), two) == ["PermissionError: not one", "4"]


def test_a_changed_call_runs_with_what_it_was_changed_to() -> None:
    def change(context: Context[Any], call: ToolCall) -> ToolCall:
        return ToolCall("", "where", {}) if call.arguments["a"] == 2 else ToolCall("", "add", {"a": 5, "b": "6"})

    assert told(Hooks(before_call=change)) == ['11\nNote: b: "6" read as 6.']
    other = AssistantMessage(calls=(ToolCall("c", "add", {"a": 2, "b": 2}),))
    assert told(Hooks(before_call=change), other) == ["where {}"]


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (ToolCall("", "add", {"a": "many", "b": 1}), "a: expected integer"),
        (ToolCall("", "add", {}), "a: missing"),
        (ToolCall("", "ad", {}), 'There is no tool "ad". Did you mean "add"?'),
    ],
)
def test_a_changed_call_is_validated_again(changed: ToolCall, says: str) -> None:
    assert says in told(Hooks(before_call=lambda context, call: changed))[0]


def test_the_timeout_of_the_changed_call_counts() -> None:
    @tool(timeout=0.01)
    async def slow() -> str:
        """Take for ever."""
        await asyncio.Event().wait()
        return "never"

    hooks = Hooks(before_call=lambda context, call: ToolCall("", "slow", {}))
    result = Agent(ScriptedModel([ADD, "ok"]), tools=[add, slow], hooks=hooks).run_sync("Go.")
    assert result.calls[0].result.content == "slow did not finish within 0.01 seconds."


def test_a_result_is_replaced_and_keeps_its_place() -> None:
    def redact(context: Context[Any], call: ToolCall, result: ToolResult) -> ToolResult:
        return ToolResult("other", "other", result.content.replace("10.0.0.7", "***"), result.is_error)

    three = AssistantMessage(calls=(ToolCall("c", "fails", {}), *ADD.calls))
    agent = Agent(ScriptedModel([three, "ok"]), tools=[add, fails], hooks=Hooks(after_call=redact))
    results = [record.result for record in agent.run_sync("Go.").calls]
    assert [(one.name, one.content, one.is_error) for one in results] == [
        ("fails", "ValueError: at ***", True),
        ("add", "3", False),
    ]


def test_an_after_hook_that_raises_is_the_result() -> None:
    def fail(context: Context[Any], call: ToolCall, result: ToolResult) -> None:
        raise RuntimeError(f"did not like {result.content}")

    assert told(Hooks(after_call=fail)) == ["RuntimeError: did not like 3"]


@pytest.mark.parametrize("nonsense", [False, "3", {"a": 1}])
def test_hooks_that_return_nonsense_are_told_so(nonsense: Any) -> None:
    assert "before_call returns None, a ToolCall or a ToolOutput" in told(Hooks(lambda context, call: nonsense))[0]
    after = Hooks(after_call=lambda context, call, result: nonsense)
    assert "after_call returns None or a ToolResult" in told(after)[0]


def test_hooks_tell_progress_for_any_tool() -> None:
    async def collect() -> list[Event]:
        hooks = Hooks(before_call=lambda context, call: context.progress("begun"))
        agent = Agent(ScriptedModel([ADD, "ok"]), tools=[add], hooks=hooks)
        return [event async for event in agent.stream("Go.")]

    assert [event.message for event in asyncio.run(collect()) if isinstance(event, ToolProgress)] == ["begun"]


# Input guards


def guarded(*script: Any, **options: Any) -> tuple[Agent[None, Any], ScriptedModel]:
    model = ScriptedModel(script)
    return Agent(model, tools=[add], **options), model


async def no_secrets(messages: Sequence[Message]) -> Block | None:
    secret = any(isinstance(message, UserMessage) and "secret" in message.text for message in messages)
    return Block("no secrets") if secret else None


def test_a_blocked_prompt_reaches_neither_the_model_nor_the_conversation() -> None:
    agent, model = guarded("ok", input_guards=[lambda messages: None, no_secrets])
    talk = Conversation()
    result = agent.run_sync("a secret", conversation=talk)
    assert (result.stop, result.reason, result.output, result.messages) == ("blocked", "no secrets", None, ())
    assert not model.requests and len(talk) == 0 and result.steps == 0
    assert agent.run_sync("something else", conversation=talk).output == "ok"


def test_a_prompt_is_judged_as_messages_and_going_on_is_not_judged() -> None:
    seen: list[Sequence[Message]] = []
    agent, _ = guarded("ok", "more", input_guards=[seen.append])
    talk = Conversation()
    agent.run_sync([UserMessage("a"), UserMessage("b")], conversation=talk)
    agent.run_sync(None, conversation=talk)
    assert seen == [(UserMessage("a"), UserMessage("b"))]


def test_the_first_objection_counts() -> None:
    agent, _ = guarded(input_guards=[lambda messages: Block("first"), lambda messages: Block("second")])
    assert agent.run_sync("Go.").reason == "first"


def test_a_guard_that_fails_lets_nothing_in() -> None:
    def offline(messages: Sequence[Message]) -> None:
        raise ConnectionError("no moderation today")

    agent, model = guarded("ok", input_guards=[offline])
    result = agent.run_sync("Go.")
    assert result.stop == "error" and isinstance(result.error, GuardError) and not model.requests
    assert str(result.error) == "offline raised ConnectionError: no moderation today"
    assert isinstance(result.error.__cause__, ConnectionError) and result.messages == ()


@pytest.mark.parametrize("where_", ["input_guards", "output_guards"])
@pytest.mark.parametrize("nonsense", [False, True, "no", Block])
def test_a_guard_that_returns_nonsense_is_a_programmers_error(where_: str, nonsense: Any) -> None:
    agent, _ = guarded("ok", **{where_: [lambda value: nonsense]})
    talk = Conversation()
    with pytest.raises(TypeError, match=r"a guard returns None, Block\('why'\) or Retry\('feedback'\)"):
        agent.run_sync("Go.", conversation=talk)
    assert guarded("fine")[0].run_sync("Again.", conversation=talk).output == "fine"


def test_a_slow_guard_is_bound_by_limits_and_cancellation() -> None:
    async def for_ever(value: Any) -> None:
        await asyncio.Event().wait()

    agent, _ = guarded("ok", input_guards=[for_ever], limits=Limits(seconds=0.05))
    assert agent.run_sync("Go.").stop == "seconds"
    cancel = Cancel()

    async def cancels(value: Any) -> None:
        cancel.cancel()
        await asyncio.Event().wait()

    agent, _ = guarded("ok", output_guards=[cancels])
    result = agent.run_sync("Go.", cancel=cancel)
    assert (result.stop, result.output, result.messages[-1]) == ("cancelled", None, AssistantMessage("ok"))


# Output guards


def test_a_blocked_answer_is_no_output() -> None:
    agent, _ = guarded("the password is x", output_guards=[lambda text: Block("leak") if "password" in text else None])
    result = agent.run_sync("Go.")
    assert (result.stop, result.reason, result.output) == ("blocked", "leak", None)


def test_a_refused_answer_is_asked_for_again() -> None:
    async def short(text: str) -> Retry | None:
        return Retry("Shorter, please.") if len(text) > 5 else None

    agent, model = guarded("far too long", "short", output_guards=[short])
    result = agent.run_sync("Go.")
    assert result.output == "short" and result.steps == 2
    assert model.requests[1].messages[-1] == UserMessage("Shorter, please.")


def test_refusing_has_an_end() -> None:
    agent, _ = guarded(*["no"] * 9, output_guards=[lambda text: Retry("Again.")])
    result = agent.run_sync("Go.")
    assert (result.stop, result.steps, result.output) == ("error", 3, None)
    assert isinstance(result.error, ModelError) and "a guard refused the answer: Again." in str(result.error)


def test_refusing_is_bound_by_the_step_limit() -> None:
    agent, _ = guarded(*["no"] * 9, output_guards=[lambda text: Retry("Again.")], limits=Limits(steps=1))
    assert agent.run_sync("Go.").stop == "steps"


class Answer(BaseModel):
    """A number."""

    value: int


def test_an_output_guard_sees_the_value_of_the_output_type() -> None:
    seen: list[Any] = []

    def even(answer: Answer) -> Retry | None:
        seen.append(answer)
        return Retry("An even number.") if answer.value % 2 else None

    agent, _ = guarded('{"value": 3}', '{"value": 4}', output=Answer, output_guards=[even])
    result: RunResult[Answer] = agent.run_sync("Go.")
    assert result.output == Answer(value=4) and seen == [Answer(value=3), Answer(value=4)]


def test_after_a_guards_objection_tools_may_be_called_again_and_after_a_misfit_not() -> None:
    """A guard can say "search again", with an output type as without one."""

    @tool
    def search() -> str:
        """Search."""
        return "4"

    def even(answer: Answer) -> Retry | None:
        return Retry("Search again.") if answer.value % 2 else None

    call = AssistantMessage(calls=(ToolCall("call_1", "search", {}),))
    model = ScriptedModel(["no JSON", '{"value": 3}', call, '{"value": 4}'])
    result = Agent(model, [search], output=Answer, output_guards=[even]).run_sync("Go.")
    assert result.output == Answer(value=4) and [record.call.name for record in result.calls] == ["search"]
    assert [request.envelope.choice for request in model.requests] == ["auto", "none", "auto", "auto"]


def test_an_output_guard_that_fails_lets_nothing_out() -> None:
    agent, _ = guarded("ok", output_guards=[lambda text: 1 / 0])
    result = agent.run_sync("Go.")
    assert result.stop == "error" and isinstance(result.error, GuardError) and result.output is None


def test_half_an_answer_passes_no_guard() -> None:
    from m1agent.events import ReplyFinished, TextDelta
    from m1agent.messages import Usage

    half = [TextDelta("the pass"), ReplyFinished(AssistantMessage("the pass"), Usage(), "length")]
    plain, _ = guarded(half)
    assert plain.run_sync("Go.").output == "the pass"
    agent, _ = guarded(half, output_guards=[lambda text: Block("leak") if "password" in text else None])
    result = agent.run_sync("Go.")
    assert (result.stop, result.output) == ("tokens", None)


def test_what_is_changed_in_place_changes_neither_the_call_nor_the_history() -> None:
    @tool
    def sort(context: Context, items: list[int]) -> str:
        """Sort."""
        items.sort()
        context.call.arguments["items"].append(9)
        return str(items)

    def spoil(context: Context[Any], call: ToolCall, *result: Any) -> None:
        call.arguments["items"].clear()
        context.call.arguments.clear()

    def ask(request: Any) -> bool:
        request.call.arguments["items"].append(7)
        return True

    made = AssistantMessage(calls=(ToolCall("call_1", "sort", {"items": [3, 1]}),))
    careless = Agent(
        ScriptedModel([made, "ok"]),
        tools=[sort.changed(approval=True)],
        hooks=Hooks(after_call=spoil),
        approval=Approval(ask=ask),
    )
    result = careless.run_sync("Go.")
    assert result.calls[0].result.content == "[1, 3]" and result.calls[0].call.arguments == {"items": [3, 1]}
    assert result.messages[1] == made
    worse = Agent(ScriptedModel([made, "ok"]), tools=[sort], hooks=Hooks(before_call=lambda _, call: spoil(_, call)))
    assert worse.run_sync("Go.").messages[1] == made

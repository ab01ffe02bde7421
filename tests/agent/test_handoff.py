"""Agents as tools of other agents, and conversations that are handed over."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from m1agent.agent import Agent
from m1agent.approval import Approval, Rule
from m1agent.cancel import Cancel
from m1agent.context import Context
from m1agent.conversation import Conversation
from m1agent.delegation import Handoff, handoff
from m1agent.errors import ToolDefinitionError
from m1agent.events import Event, HandedOff, RunFinished, StepStarted
from m1agent.guards import Block
from m1agent.limits import Limits
from m1agent.messages import AssistantMessage, ToolCall, ToolMessage, Usage, UserMessage
from m1agent.models.base import Settings
from m1agent.models.scripted import ScriptedModel
from m1agent.observe import RunInfo, Unobserved
from m1agent.store import ConversationStore
from m1agent.tools import tool
from m1agent.toolset import Toolset


def call(name: str, id: str = "c", **arguments: Any) -> AssistantMessage:
    return AssistantMessage(calls=(ToolCall(id, name, arguments),))


def both(*names: str) -> AssistantMessage:
    return AssistantMessage(calls=tuple(ToolCall(f"call_{i}", name, {}) for i, name in enumerate(names, 1)))


@tool
def ping() -> str:
    """Answer."""
    return "pong"


@tool(approval=True)
def risky() -> str:
    """Do something risky."""
    return "done"


# As a tool


def test_an_agent_answers_as_a_tool_and_its_tokens_count() -> None:
    def researcher() -> Agent[None, str]:
        return Agent(ScriptedModel([call("ping"), "It says pong."]), tools=[ping], name="Researcher")

    alone = researcher().run_sync("What does ping say?")
    model = ScriptedModel([call("researcher", prompt="What does ping say?"), "Pong."])
    result = Agent(model, tools=[researcher().as_tool(description="Ask for facts.")]).run_sync("Go.")
    assert result.output == "Pong." and result.calls[0].result.content == "It says pong."
    own = Agent(
        ScriptedModel([call("researcher", prompt="What does ping say?"), "Pong."]),
        tools=[_as_constant("researcher", "Ask for facts.", "It says pong.")],
    ).run_sync("Go.")
    assert result.usage == own.usage + alone.usage


def _as_constant(name: str, description: str, answer: str) -> Any:
    made = Agent(ScriptedModel([]), name=name).as_tool(description=description)

    async def constant(context: Context[Any], prompt: str) -> str:
        return answer

    return made.changed(handler=constant)


def test_tokens_of_agents_of_agents_count_to_the_top() -> None:
    inner = Agent(ScriptedModel(["deep"]), name="inner")
    deep = Agent(ScriptedModel(["deep"])).run_sync("?").usage
    seen: list[Usage] = []

    class Watch(Unobserved):
        def run_started(self, run: RunInfo) -> Watch:
            return self

        def run_finished(self, result: Any) -> None:
            seen.append(result.usage)

    asks = ScriptedModel([call("inner", prompt="?"), "mid"])
    middle = Agent(asks, tools=[inner.as_tool()], name="middle", observers=[Watch()])
    top = Agent(ScriptedModel([call("middle", prompt="?"), "top"]), tools=[middle.as_tool()])
    result = top.run_sync("Go.")
    assert result.stop == "done" and result.usage.output_tokens > seen[0].output_tokens > deep.output_tokens
    assert result.usage.input_tokens > seen[0].input_tokens > deep.input_tokens


def test_a_typed_answer_is_told_as_json() -> None:
    class Fact(BaseModel):
        text: str

    child = Agent(ScriptedModel(['{"text": "x"}']), output=Fact, name="child")
    result = Agent(ScriptedModel([call("child", prompt="?"), "ok"]), tools=[child.as_tool()]).run_sync("Go.")
    assert json.loads(result.calls[0].result.content) == {"text": "x"}


@pytest.mark.parametrize(
    ("child", "says"),
    [
        (Agent(ScriptedModel([both("ping")] * 9), tools=[ping], limits=Limits(steps=1)), "steps"),
        (Agent(ScriptedModel([RuntimeError("no power")])), "error (RuntimeError: no power)"),
        (Agent(ScriptedModel(["x"]), output_guards=[lambda text: Block("not that")]), "blocked (not that)"),
        (
            Agent(ScriptedModel([both("risky", "ping", "risky")]), tools=[risky, ping]),
            "a person must approve its call of risky, and nobody can be asked here",
        ),
    ],
)
def test_why_an_agent_gave_no_answer_is_told(child: Agent[Any, Any], says: str) -> None:
    model = ScriptedModel([call("child", prompt="?"), "I see."])
    result = Agent(model, tools=[child.as_tool("child")]).run_sync("Go.")
    assert result.calls[0].result.content == f"The agent stopped without an answer: {says}."
    assert result.calls[0].result.is_error and result.output == "I see."


def test_the_child_has_the_deps_of_its_parent() -> None:
    @tool
    def look(context: Context[dict[str, str]]) -> str:
        """Look."""
        return context.deps["colour"]

    child = Agent(ScriptedModel([both("look"), "It is red."]), tools=[look], name="child", deps_type=dict)
    parent = Agent(ScriptedModel([call("child", prompt="?"), "Red."]), tools=[child.as_tool()], deps_type=dict)
    assert parent.run_sync("Go.", deps={"colour": "red"}).calls[0].result.content == "It is red."


def test_cancelling_the_parent_ends_the_child_and_its_tokens_count() -> None:
    cancel, ended = Cancel(), list[str]()

    @tool
    async def hang() -> str:
        """Hang."""
        cancel.cancel()
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("hang")
        return "never"

    child = Agent(ScriptedModel([both("hang")]), tools=[hang], name="child")
    model = ScriptedModel([call("child", prompt="?")])
    result = Agent(model, tools=[child.as_tool()]).run_sync("Go.", cancel=cancel)
    assert result.stop == "cancelled" and ended == ["hang"]
    alone = Agent(ScriptedModel([call("child", prompt="?")]), tools=[child.as_tool()], limits=Limits(steps=1))
    assert result.usage.output_tokens > 0 and result.calls[0].result.is_error
    assert result.usage.output_tokens > alone.run_sync("Go.").usage.output_tokens


def spender(replies: int, **options: Any) -> Agent[None, str]:
    """Writes a hundred tokens and more in each reply, and never comes to an end by itself."""

    @tool
    def note(number: int) -> str:
        """Note a number."""
        return f"noted {number}"

    said = [AssistantMessage("well " * 20, calls=(ToolCall("c", "note", {"number": n}),)) for n in range(replies)]
    return Agent(ScriptedModel(said), tools=[note], name="spender", **options)


@pytest.mark.parametrize("limits", [Limits(tokens=4000), Limits(output_tokens=600), Limits(input_tokens=4000)])
def test_limits_on_tokens_hold_in_the_agents_that_a_run_asks(limits: Limits) -> None:
    child = spender(40, limits=Limits(steps=None))
    asks = Agent(ScriptedModel([call("spender", prompt="?")]), tools=[child.as_tool()], limits=limits)
    result = asks.run_sync("Go.")
    assert result.stop == "tokens" and result.calls[0].result.content == "The agent stopped without an answer: tokens."
    read, written = result.usage.input_tokens - result.usage.reused_tokens, result.usage.output_tokens
    used = read + written if limits.tokens else written if limits.output_tokens else read
    bound = limits.tokens or limits.output_tokens or limits.input_tokens or 0
    assert bound <= used < bound + 400  # The last reply and what it read.


def test_agents_asked_at_once_share_what_is_left() -> None:
    children = [spender(20, limits=Limits(steps=None)) for _ in range(3)]
    tools = [child.as_tool(f"spender_{n}") for n, child in enumerate(children)]
    asks = AssistantMessage(calls=tuple(ToolCall(made.name, made.name, {"prompt": "?"}) for made in tools))
    result = Agent(ScriptedModel([asks]), tools=tools, limits=Limits(output_tokens=1500)).run_sync("Go.")
    assert result.stop == "tokens" and len(result.calls) == 3
    assert all(record.result.content.endswith("without an answer: tokens.") for record in result.calls)
    assert result.usage.output_tokens < 1500 + 3 * 200


def test_an_agent_is_not_asked_with_tokens_that_are_used_up() -> None:
    child = Agent(ScriptedModel([]), name="child")
    top = Agent(ScriptedModel([call("child", prompt="?")]), tools=[child.as_tool()], limits=Limits(output_tokens=1))
    result = top.run_sync("Go.")
    assert result.stop == "tokens"
    assert result.calls[0].result.content == "The agent was not asked: the tokens allowed in this run are used up."


def test_those_whom_a_run_may_ask_answer_for_the_agents_it_asks() -> None:
    asked: list[str] = []

    def answer(request: Any) -> bool:
        asked.append(request.call.id)
        return len(asked) == 1

    inner = Agent(ScriptedModel([both("risky"), "Inner."]), tools=[risky], name="inner")
    middle = Agent(ScriptedModel([call("inner", prompt="?"), "Middle."]), tools=[inner.as_tool()], name="middle")
    model = ScriptedModel([call("middle", prompt="?"), both("risky"), "Top."])
    top = Agent(model, tools=[middle.as_tool(), risky], approval=Approval(ask=answer))
    result = top.run_sync("Go.")
    assert result.output == "Top." and len(asked) == 2
    assert [one.result.content for one in result.calls] == ["Middle.", "This call was not allowed."]
    assert isinstance(inner.model, ScriptedModel)
    told = inner.model.requests[1].messages[-1]
    assert isinstance(told, ToolMessage) and told.results[0].content == "done"


def test_an_agent_asks_its_own_people_first() -> None:
    child = Agent(ScriptedModel([both("risky"), "ok"]), tools=[risky], name="child", approval=lambda _: True)
    model = ScriptedModel([call("child", prompt="?"), "ok"])
    result = Agent(model, tools=[child.as_tool()], approval=lambda _: False).run_sync("Go.")
    assert result.calls[0].result.content == "ok"


def test_one_run_may_be_given_somebody_to_ask() -> None:
    agent: Agent[None, str] = Agent(ScriptedModel([both("risky"), "ok"]), tools=[risky])
    assert agent.run_sync("Go.", ask=lambda _: True).calls[0].result.content == "done"
    with pytest.raises(TypeError, match="run: ask must be a function, not a int"):
        agent.run_sync("Go.", ask=1)  # type: ignore[typeddict-item]


@pytest.mark.parametrize("name", ["two words", "", "ärger", "x" * 65])
def test_names_that_are_none_are_refused(name: str) -> None:
    agent = Agent(ScriptedModel([]), name="!" if not name else "ok")
    with pytest.raises(ToolDefinitionError, match="cannot be a tool's name; give the agent a name of letters"):
        agent.as_tool(name)
    with pytest.raises(ToolDefinitionError, match="cannot be a tool's name"):
        handoff(agent, name=name)


# Handing over


def team(first: list[Any], second: list[Any], **options: Any) -> tuple[Agent[Any, Any], ScriptedModel, ScriptedModel]:
    one, two = ScriptedModel(first, name="one"), ScriptedModel(second, name="two")
    billing = Agent(
        two, tools=[ping], instructions="You do billing.", name="Billing", settings=Settings(temperature=0.5)
    )
    desk = Agent(one, tools=[handoff(billing)], instructions="You are the desk.", name="Desk", **options)
    return desk, one, two


def events_of(agent: Agent[Any, Any], **options: Any) -> list[Event]:
    async def collect() -> list[Event]:
        return [event async for event in agent.stream("My bill?", **options)]

    return asyncio.run(collect())


def test_the_conversation_goes_on_with_the_other_agent() -> None:
    talk = Conversation()
    desk, one, two = team([call("transfer_to_billing")], [both("ping"), "Paid."])
    events = events_of(desk, conversation=talk)
    kinds = [type(event).__name__ for event in events]
    assert kinds.count("RunFinished") == 1 and isinstance(events[-1], RunFinished)
    at = kinds.index("HandedOff")
    assert events[at] == HandedOff("Billing") and kinds[at - 1] == "StepFinished" and kinds[at + 1] == "StepStarted"
    assert [event.step for event in events if isinstance(event, StepStarted)] == [1, 2, 3]
    result = events[-1].result
    assert (result.output, result.steps, len(result.calls)) == ("Paid.", 3, 2)
    assert result.calls[0].result.content == '{"assistant": "Billing"}'
    asked = two.requests[0]
    assert [spec.name for spec in asked.envelope.tools] == ["ping"] and asked.settings.temperature == 0.5
    assert asked.messages[0] == UserMessage("My bill?") and isinstance(asked.messages[-1], ToolMessage)
    assert result.messages == talk.messages and len(one.requests) == 1
    prompt = bytes(token for token in talk.ids or () if token < 256).decode()
    assert "You do billing." in prompt and "You are the desk." not in prompt
    assert [record.call.id for record in result.calls] == ["call_1", "call_2"]


def test_usage_and_time_are_those_of_both() -> None:
    desk, _, _ = team([call("transfer_to_billing")], ["Paid."])
    result = desk.run_sync("My bill?")
    alone, _, _ = team([call("transfer_to_billing")], [], limits=Limits(steps=1))
    first = alone.run_sync("My bill?")
    assert result.usage.output_tokens == first.usage.output_tokens + len("Paid.")
    assert result.usage.input_tokens > 2 * first.usage.input_tokens and result.seconds > 0


@pytest.mark.parametrize("limits", [Limits(steps=1), Limits(output_tokens=1)])
def test_a_limit_that_is_reached_hands_nothing_over(limits: Limits) -> None:
    desk, _, two = team([call("transfer_to_billing")], ["Paid."], limits=limits)
    result = desk.run_sync("My bill?")
    assert result.stop in ("steps", "tokens") and result.steps == 1 and not two.requests
    assert isinstance(result.messages[-1], ToolMessage)


def ping_pong(limits: Limits) -> Agent[Any, Any]:
    first = Agent(ScriptedModel([call("transfer_to_second")] * 50), name="first", limits=limits)
    second = Agent(ScriptedModel([call("transfer_to_first")] * 50), name="second", tools=[handoff(first)])
    first.tools = Toolset("tools", [*first.tools, handoff(second)])
    return first


def test_handing_back_and_forth_is_bound_by_steps() -> None:
    result = ping_pong(Limits(steps=5)).run_sync("Go.")
    assert (result.stop, result.steps) == ("steps", 5)


def test_handing_back_and_forth_is_a_loop() -> None:
    result = ping_pong(Limits(steps=None)).run_sync("Go.")
    assert result.stop == "loop" and result.steps == 7


class Answer(BaseModel):
    """A sum."""

    value: int


def test_the_answer_is_of_the_type_of_the_agent_that_was_asked() -> None:
    desk, _, two = team([call("transfer_to_billing")], ["about 7", '{"value": 7}'], output=Answer)
    result = desk.run_sync("How much?")
    assert result.output == Answer(value=7)
    prompt = bytes(token for token in result.conversation.ids or () if token < 256).decode()
    assert '"value"' in prompt and "You do billing." in prompt and len(two.requests) == 2


def test_the_output_guards_of_the_agent_that_was_asked_judge_the_answer() -> None:
    guard = [lambda text: Block("leak") if "secret" in text else None]
    desk, _, _ = team([call("transfer_to_billing")], ["a secret"], output_guards=guard)
    assert desk.run_sync("Go.").stop == "blocked"


def test_an_open_approval_comes_before_the_handoff() -> None:
    billing = Agent(ScriptedModel(["Paid."]), name="Billing")
    model = ScriptedModel([both("transfer_to_billing", "risky")])
    desk = Agent(model, tools=[handoff(billing), risky])
    first = desk.run_sync("Go.")
    assert first.stop == "approval" and [one.name for one in first.pending] == ["risky"]
    talk = Conversation.from_json(first.conversation.to_json())
    second = desk.run_sync(None, conversation=talk, approvals={first.pending[0].id: True})
    assert second.output == "Paid." and second.calls[0].result.content == "done"


def test_the_approval_of_the_agent_that_goes_on_counts() -> None:
    asked: list[str] = []

    def ask(request: Any) -> bool:
        asked.append(request.call.name)
        return True

    billing = Agent(ScriptedModel([both("risky"), "ok"]), tools=[risky], name="Billing", approval=Approval(ask=ask))
    desk = Agent(ScriptedModel([call("transfer_to_billing")]), tools=[handoff(billing)])
    assert desk.run_sync("Go.").output == "ok" and asked == ["risky"]


def test_a_denied_handoff_hands_nothing_over() -> None:
    billing = Agent(ScriptedModel([]), name="Billing")
    transfer = handoff(billing).changed(approval=True)
    model = ScriptedModel([call("transfer_to_billing"), "Then I do it."])
    desk = Agent(model, tools=[transfer], approval=lambda request: False)
    assert desk.run_sync("Go.").output == "Then I do it."


def test_a_handoff_stays_one_under_another_name() -> None:
    made = Toolset("team", [handoff(Agent(ScriptedModel(["Paid."]), name="Billing"))]).prefixed("a_")
    (transfer,) = made
    assert isinstance(transfer, Handoff) and transfer.name == "a_transfer_to_billing"
    assert Agent(ScriptedModel([call("a_transfer_to_billing")]), tools=[made]).run_sync("Go.").output == "Paid."


def test_deps_that_do_not_fit_the_other_agent_stop_the_handoff() -> None:
    billing = Agent(ScriptedModel([]), name="Billing", deps_type=int)
    desk: Agent[Any, str] = Agent(ScriptedModel([call("transfer_to_billing"), "Sorry."]), tools=[handoff(billing)])
    result = desk.run_sync("Go.", deps="text")
    assert "deps must be a int, not a str" in result.calls[0].result.content and result.output == "Sorry."


def test_those_who_watch_the_agent_that_was_asked_see_the_whole_run() -> None:
    seen: list[str] = []

    class Watch(Unobserved):
        def run_started(self, run: RunInfo) -> Watch:
            seen.append(run.agent)
            return self

        def run_finished(self, result: Any) -> None:
            seen.append(result.stop)

    desk, _, _ = team([call("transfer_to_billing")], ["Paid."], observers=[Watch()])
    desk.run_sync("Go.")
    assert seen == ["Desk", "done", "Billing", "done"]


def test_the_next_run_goes_on_with_the_agent_that_is_asked_then() -> None:
    talk = Conversation()
    desk, one, _ = team([call("transfer_to_billing"), "Desk again."], ["Paid."])
    desk.run_sync("My bill?", conversation=talk)
    assert desk.run_sync("And now?", conversation=talk).output == "Desk again."
    assert one.requests[1].messages[-1] == UserMessage("And now?") and len(one.requests[1].messages) == 5


def asks_first() -> Agent[Any, Any]:
    billing = Agent(ScriptedModel([call("risky", id="r"), "Paid."]), tools=[risky], name="Billing")
    return Agent(ScriptedModel([call("transfer_to_billing")]), tools=[handoff(billing)], name="Desk")


def test_the_agent_whose_calls_wait_goes_on_when_they_are_answered() -> None:
    desk = asks_first()
    first = desk.run_sync("My bill?")
    assert first.stop == "approval" and first.conversation.agent == "Billing"
    talk = Conversation.from_json(json.loads(json.dumps(first.conversation.to_json())))
    assert talk.agent == "Billing" and talk.fork().agent == "Billing"
    second = desk.run_sync(None, conversation=talk, approvals={first.pending[0].id: True})
    assert (second.stop, second.output, second.calls[0].result.content) == ("done", "Paid.", "done")
    assert talk.agent == ""


def test_a_store_knows_whose_calls_wait(tmp_path: Path) -> None:
    desk = asks_first()
    with ConversationStore(tmp_path / "talks.db") as store:
        talk = store.create()
        desk.run_sync("My bill?", conversation=talk)
        again, twin = store.open(talk.id), store.fork(talk.id)
        assert again.agent == twin.agent == "Billing"
        waits = {one.id: True for one in again.waiting}
        assert desk.run_sync(None, conversation=again, approvals=waits).output == "Paid."


def test_agents_of_one_name_are_told_apart_by_their_tools() -> None:
    other = Agent(ScriptedModel([both("risky"), "Paid."]), tools=[risky])
    desk = Agent(ScriptedModel([call("transfer_to_agent")]), tools=[handoff(other)])
    first = desk.run_sync("My bill?")
    result = desk.run_sync(None, conversation=first.conversation, approvals={first.pending[0].id: True})
    assert result.output == "Paid."


def test_what_comes_with_the_answers_is_judged_by_the_agent_that_was_asked() -> None:
    billing = Agent(ScriptedModel([both("risky")]), tools=[risky], name="Billing")
    model = ScriptedModel([call("transfer_to_billing")])
    guards = [lambda messages: Block("bad") if messages[-1].text == "bad" else None]
    desk: Agent[Any, Any] = Agent(model, tools=[handoff(billing)], input_guards=guards)
    first = desk.run_sync("My bill?")
    second = desk.run_sync("bad", conversation=first.conversation, approvals={first.pending[0].id: True})
    assert second.stop == "blocked" and [one.name for one in second.pending] == ["risky"]


def test_of_two_handoffs_in_one_reply_the_second_is_told_that_it_did_not_happen() -> None:
    billing = Agent(ScriptedModel(["Paid."]), name="Billing")
    sales = Agent(ScriptedModel([]), name="Sales")
    desk = Agent(
        ScriptedModel([both("transfer_to_billing", "transfer_to_sales")]), tools=[handoff(sales), handoff(billing)]
    )
    result = desk.run_sync("Go.")
    first, second = (record.result for record in result.calls)
    assert result.output == "Paid." and first.content == '{"assistant": "Billing"}'
    assert second.is_error and second.content == (
        "This call was not run: one call of a reply may hand the conversation over, and transfer_to_billing came"
        " before it."
    )


def test_after_a_denied_handoff_another_may_happen() -> None:
    billing, sales = Agent(ScriptedModel([]), name="Billing"), Agent(ScriptedModel(["Sold."]), name="Sales")
    model = ScriptedModel([both("transfer_to_billing", "transfer_to_sales")])
    desk: Agent[Any, Any] = Agent(
        model, tools=[handoff(sales), handoff(billing)], approval=Approval([Rule("transfer_to_billing", "deny")])
    )
    assert desk.run_sync("Go.").output == "Sold."

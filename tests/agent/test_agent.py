"""The agent as a user meets it: sync inside async, output types, conversations, models it owns."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from contextlib import aclosing
from typing import Any, Literal

import pytest
from pydantic import BaseModel

from m1agent import Agent, Conversation, Limits, Toolset, tool
from m1agent.agent import run_blocking
from m1agent.errors import ConversationInUse, ModelNotFound, ToolDefinitionError
from m1agent.messages import AssistantMessage, SystemMessage, ToolCall, UserMessage
from m1agent.models.base import Settings
from m1agent.models.scripted import ScriptedModel


class Answer(BaseModel):
    value: int
    unit: Literal["m", "km"]


@tool
def double(x: int) -> int:
    """Double a number."""
    return 2 * x


def half(x: int) -> float:
    """Halve a number."""
    return x / 2


CALL = AssistantMessage(calls=(ToolCall("c", "double", {"x": 2}),))


def test_run_sync_works_inside_a_running_loop() -> None:
    async def go() -> Any:
        return Agent(ScriptedModel([CALL, "4"]), tools=[double]).run_sync("?").output

    assert asyncio.run(go()) == "4"


def test_ctrl_c_ends_run_sync_inside_a_running_loop() -> None:
    ended: list[str] = []

    async def forever() -> None:
        try:
            await asyncio.sleep(20)
        finally:
            ended.append("cancelled")

    async def go() -> None:
        run_blocking(forever)

    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    started = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        asyncio.run(go())
    assert ended == ["cancelled"] and time.perf_counter() - started < 5


def test_errors_cross_the_thread_of_run_sync() -> None:
    async def go() -> None:
        async def fails() -> None:
            raise KeyError("x")

        with pytest.raises(KeyError):
            run_blocking(fails)

    asyncio.run(go())


@pytest.mark.parametrize("prompt", [42, b"Hi", ["Hi"], UserMessage("Hi")])
def test_a_prompt_that_is_none_is_refused_and_leaves_the_conversation(prompt: Any) -> None:
    conversation = Conversation()
    with pytest.raises(TypeError, match="a prompt is text or a list of messages"):
        Agent(ScriptedModel(["?"])).run_sync(prompt, conversation=conversation)
    assert len(conversation) == 0


@pytest.mark.parametrize("choice", ["requierd", "double", None, half])
def test_a_tool_choice_that_is_none_is_refused(choice: Any) -> None:
    with pytest.raises(ValueError, match="tool_choice is 'auto', 'none', 'required'"):
        Agent(ScriptedModel(["?"]), tools=[double]).run_sync("Hi", tool_choice=choice)


@pytest.mark.parametrize("tools", [double, half, "maths"])
def test_tools_that_are_no_list_are_refused(tools: Any) -> None:
    with pytest.raises(ToolDefinitionError, match=r"tools are a list; pass \[(double|half|maths)\]"):
        Agent(ScriptedModel([]), tools=tools)


@pytest.mark.parametrize(
    "given",
    [
        {"max_tokens": 0},
        {"max_tokens": 2.5},
        {"temperature": -1},
        {"temperature": "hot"},
        {"temperature": float("nan")},
        {"top_p": 2},
        {"seed": -1},
        {"seed": True},
        {"stop": "x"},
        {"stop": ("",)},
    ],
)
def test_settings_name_the_field(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"Settings.{next(iter(given))} must be"):
        Settings(**given)


@pytest.mark.parametrize("model", [None, 5])
def test_what_is_no_model_is_refused(model: Any) -> None:
    with pytest.raises(TypeError, match=f"model={model} is neither a Model nor a name"):
        Agent(model)


@pytest.mark.parametrize("output", [5, "Nowhere", threading.Lock])
def test_what_is_no_type_of_an_answer_is_refused(output: Any) -> None:
    with pytest.raises(TypeError, match="is no type an answer can have"):
        Agent(ScriptedModel([]), output=output)


def test_a_limit_is_a_number_that_counts() -> None:
    with pytest.raises(ValueError, match=r"Limits.seconds must be above 0"):
        Limits(seconds=float("nan"))


def test_tools_may_be_functions_toolsets_and_tools() -> None:
    model = ScriptedModel(["ok"])
    Agent(model, tools=[Toolset("t", [double]), half]).run_sync("?")
    assert [spec.name for spec in model.requests[0].envelope.tools] == ["double", "half"]
    with pytest.raises(ToolDefinitionError, match="two tools are called 'double'"):
        Agent(model, tools=[double, double])
    with pytest.raises(ModelNotFound):
        Agent("gguf:some/model")


def test_an_output_type_is_validated() -> None:
    result = Agent(ScriptedModel(['{"value": 3, "unit": "km"}']), output=Answer).run_sync("?")
    assert result.output == Answer(value=3, unit="km") and result.stop == "done"


def test_an_answer_of_the_wrong_type_is_asked_for_again() -> None:
    model = ScriptedModel([CALL, "It is 4 km.", '{"value": "many", "unit": "km"}', '{"value": 4, "unit": "km"}'])
    agent = Agent(model, tools=[double], output=Answer)
    result = agent.run_sync("?")
    assert result.output == Answer(value=4, unit="km") and result.steps == 4
    assert [request.envelope.choice for request in model.requests] == ["auto", "auto", "none", "none"]
    assert all(request.envelope.answer == agent.output_schema for request in model.requests)
    assert isinstance(result.messages[-2], UserMessage) and "value: " in result.messages[-2].text


def test_an_answer_that_never_fits_ends_the_run() -> None:
    result = Agent(ScriptedModel(["a", "b", "c"]), output=Answer).run_sync("?")
    assert (result.stop, result.output) == ("error", None) and "output type" in str(result.error)


def test_a_conversation_goes_on_and_system_messages_stand_first() -> None:
    model = ScriptedModel(["one", "two"])
    agent = Agent(model, instructions="Be brief.")
    conversation = Conversation([SystemMessage("And kind.")])
    first = agent.run_sync("1", conversation=conversation)
    second = agent.run_sync("2", conversation=first.conversation)
    assert second.messages[0] == SystemMessage("And kind.") and len(second.messages) == 5
    assert second.usage.reused_tokens > 0 and conversation.rebuilds == 0


def test_other_tools_mean_the_history_is_read_anew() -> None:
    conversation = Conversation()
    model = ScriptedModel(["one", "two"])
    Agent(model).run_sync("1", conversation=conversation)
    Agent(model, tools=[double]).run_sync("2", conversation=conversation)
    assert conversation.rebuilds == 1 and len(conversation) == 4
    assert model.open_threads == 1
    asyncio.run(conversation.aclose())
    assert model.open_threads == 0


def test_messages_may_be_the_prompt_and_no_prompt_goes_on() -> None:
    model = ScriptedModel([CALL, "4"])
    agent = Agent(model, tools=[double], limits=Limits(steps=1))
    first = agent.run_sync([UserMessage("a"), UserMessage("b")])
    assert first.stop == "steps"
    assert agent.run_sync(conversation=first.conversation).output == "4"


def test_runs_of_one_agent_do_not_share_anything() -> None:
    async def go() -> list[Any]:
        agent = Agent(ScriptedModel(["same"] * 5), tools=[double])
        return await asyncio.gather(*(agent.run(str(n)) for n in range(5)))

    results = asyncio.run(go())
    assert [result.messages[0] for result in results] == [UserMessage(str(n)) for n in range(5)]


def test_two_runs_cannot_share_a_conversation() -> None:
    async def go() -> None:
        agent = Agent(ScriptedModel(["One.", "Two.", "Three."]))
        talk = Conversation()
        async with aclosing(agent.stream("First?", conversation=talk)) as stream:
            await anext(stream)
            before = talk.messages
            with pytest.raises(ConversationInUse, match="fork"):
                await agent.run("Second?", conversation=talk)
            assert talk.messages == before
        assert (await agent.run("Third?", conversation=talk)).stop == "done"

    asyncio.run(go())


def test_without_tools_nothing_is_a_call() -> None:
    text = '<tool_calls>\n{"name": "f", "arguments": {}}\n</tool_calls>'
    result = Agent(ScriptedModel([text])).run_sync("Say it.")
    assert (result.stop, result.output, result.calls) == ("done", text, ())

"""MiniMax's own rules, over HTTP."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from m1agent import Agent, Conversation, Settings, load_model, tool
from m1agent.errors import ModelError
from m1agent.messages import AssistantMessage, Setup, UserMessage
from m1agent.models.minimax import Increments, MiniMaxModel
from m1agent.prompt.envelope import Envelope

JSON = {"content-type": "application/json"}


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def chunk(finish: str | None = None, **part: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": {"role": "assistant", "name": "MiniMax AI", "audio_content": "", **part}}
    return {
        "choices": [choice | ({"finish_reason": finish} if finish else {})],
        "object": "chat.completion.chunk",
        "usage": None,
        "input_sensitive": False,
        "output_sensitive": False,
    }


def whole(content: str, **part: Any) -> dict[str, Any]:
    """What ends a stream: the message once more, usage and the status."""
    message = {"role": "assistant", "content": content, "name": "MiniMax AI", **part}
    return {
        "object": "chat.completion",
        "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
        "usage": {"total_tokens": 19, "prompt_tokens": 12, "completion_tokens": 7},
        "base_resp": {"status_code": 0, "status_msg": ""},
    }


def failed(code: int, text: str) -> dict[str, Any]:
    return {"id": "1", "choices": None, "base_resp": {"status_code": code, "status_msg": text}}


def model(stand_in: Any, name: str = "MiniMax-M1", **options: Any) -> MiniMaxModel:
    return MiniMaxModel(name, stand_in.url, **{"patience": 2.0, "api_key": "k"} | options)


def reply(model: MiniMaxModel, settings: Settings | None = None, envelope: Envelope | None = None) -> list[Any]:
    async def go() -> list[Any]:
        thread = model.open(Setup("", (add.spec,)))
        stream = thread.respond([UserMessage("hi")], envelope or Envelope((add.spec,)), settings or Settings())
        events = [event async for event in stream]
        await model.aclose()
        return events

    return asyncio.run(go())


@pytest.mark.parametrize("every_byte", [False, True])
def test_a_reply_of_m1(stand_in: Any, every_byte: bool) -> None:
    chunks = [chunk(reasoning_content="hm", content=""), chunk(content="Sun"), chunk("stop", content="ny.")]
    stand_in.say(*chunks, whole("Sunny.", reasoning_content="hm"), every_byte=every_byte)
    last = reply(model(stand_in))[-1]
    assert last.message == AssistantMessage("Sunny.", "hm")
    assert (last.usage.input_tokens, last.usage.output_tokens) == (12, 7)
    assert "reasoning_split" not in stand_in.requests[0]


@pytest.mark.parametrize("cumulative", [False, True])
def test_a_reply_of_m2_and_its_thinking_given_back(stand_in: Any, cumulative: bool) -> None:
    thoughts, texts = ["Let me ", "see ", "it."], ["Sun", "ny", " and warm."]
    if cumulative:
        thoughts, texts = (["".join(one[: i + 1]) for i in range(3)] for one in (thoughts, texts))
    detail = {"type": "reasoning.text", "id": "r1", "format": "MiniMax-response-v1", "index": 0}
    stand_in.say(
        *(chunk(reasoning_details=[{**detail, "text": one}]) for one in thoughts),
        *(chunk(content=one) for one in texts),
        whole("Sunny and warm."),
    )
    stand_in.say(chunk(content="b"), whole("b"))
    with Agent(model(stand_in, "MiniMax-M2.5")) as agent:
        talk = Conversation()
        first = agent.run_sync("x", conversation=talk)
        agent.run_sync("y", conversation=talk)
    assert first.messages[-1] == AssistantMessage("Sunny and warm.", "Let me see it.")
    assert all(sent["reasoning_split"] is True for sent in stand_in.requests)
    assert stand_in.requests[1]["messages"][1]["reasoning_details"] == [{**detail, "text": "Let me see it."}]


def test_a_tool_loop(stand_in: Any) -> None:
    one = {
        "id": "call_function_1",
        "type": "function",
        "index": 0,
        "function": {"name": "add", "arguments": '{"a": 1, "b": 2}'},
    }
    stand_in.say(chunk(reasoning_content="add"), chunk("tool_calls", tool_calls=[one]), whole("", tool_calls=[one]))
    stand_in.say(chunk(content="3"), whole("3"))
    with Agent(model(stand_in), tools=[add]) as agent:
        result = agent.run_sync("1 + 2?")
    assert (result.output, result.stop, len(result.calls)) == ("3", "done", 1)
    assert stand_in.requests[1]["messages"][1]["reasoning_content"] == "add"


@pytest.mark.parametrize(("given", "sent"), [(0, 0.01), (0.5, 0.5), (1.5, 1.0), (None, None)])
def test_temperatures_stay_in_its_range(stand_in: Any, given: float | None, sent: float | None) -> None:
    stand_in.say(chunk("stop", content="a"))
    reply(model(stand_in), Settings(temperature=given, max_tokens=5))
    assert stand_in.requests[0].get("temperature") == sent
    assert stand_in.requests[0]["max_completion_tokens"] == 5


@pytest.mark.parametrize(
    ("code", "text", "told"),
    [
        (1004, "login fail", r"login fail \(1004\); the key's region and group.*Key|MINIMAX"),
        (1008, "insufficient balance", "balance is used up"),
        (1026, "input new_sensitive", "filter refused the prompt"),
        (1039, "tokens", "does not fit into the context"),
        (2013, "invalid params, unknown model 'x'", "invalid params"),
        (2049, "invalid api key", "invalid api key"),
        (9999, "new", r"new \(9999\)"),
    ],
)
def test_errors_with_status_200(stand_in: Any, code: int, text: str, told: str) -> None:
    stand_in.send(json.dumps(failed(code, text)).encode(), headers=JSON)
    with pytest.raises(ModelError, match=told):
        reply(model(stand_in))
    assert len(stand_in.requests) == 1


@pytest.mark.parametrize("code", [1000, 1001, 1002, 1024, 1033])
def test_what_passes_is_tried_again(stand_in: Any, code: int) -> None:
    stand_in.say(failed(code, "busy"))
    stand_in.say(chunk("stop", content="a"))
    assert reply(model(stand_in))[-1].message.text == "a"


def test_no_call_can_be_required(stand_in: Any) -> None:
    with pytest.raises(ModelError, match=r"cannot be held to tool_choice 'required'; it knows auto, none"):
        reply(model(stand_in), envelope=Envelope((add.spec,), "required"))
    assert not stand_in.requests


def test_the_key_is_its_own(stand_in: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-not-for-them")
    monkeypatch.setenv("MINIMAX_API_KEY", "mm-key")
    stand_in.say(chunk("stop", content="a"))
    reply(model(stand_in, api_key=None))
    assert stand_in.headers[0]["authorization"] == "Bearer mm-key"


def test_by_name() -> None:
    made = load_model("minimax:MiniMax-M1")
    assert isinstance(made, MiniMaxModel) and made.server.shown == "https://api.minimax.io/v1"
    made = load_model("minimax:MiniMax-M2@https://api.minimaxi.com/v1")
    assert isinstance(made, MiniMaxModel) and made.server.shown == "https://api.minimaxi.com/v1"


def test_increments_of_either_kind() -> None:
    for pieces in (["a", "ab", "abc"], ["a", "b", "c"], ["", "a", "b", "", "c"], ["a", "ab", "ab", "abc"]):
        new = Increments()
        assert "".join(map(new, pieces)) == "abc"

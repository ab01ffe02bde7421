"""What a server can do, found out by asking it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from m1agent.models.openai import OpenAIModel
from m1agent.models.probe import WORD, ServerProfile, probe


def delta(finish: str | None = None, **part: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": part, "finish_reason": finish}]}


def call(*arguments: str) -> list[Any]:
    first = {"index": 0, "id": "a", "function": {"name": "note_word", "arguments": arguments[0]}}
    rest = [delta(tool_calls=[{"index": 0, "function": {"arguments": more}}]) for more in arguments[1:]]
    return [delta(tool_calls=[first]), *rest, delta("tool_calls"), "[DONE]"]


def look(stand_in: Any) -> ServerProfile:
    async def go() -> ServerProfile:
        model = OpenAIModel("stand-in", stand_in.url, patience=0.0)
        found = await probe(model)
        await model.aclose()
        return found

    return asyncio.run(go())


def test_a_server_that_can_all(stand_in: Any) -> None:
    stand_in.models = {"data": [{"id": "stand-in", "owned_by": "vllm", "max_model_len": 8192}]}
    stand_in.say(
        delta(reasoning="hm"), delta(content="ok"), delta("stop"), {"choices": [], "usage": {"prompt_tokens": 1}}
    )
    stand_in.say(*call(f'{{"word": "{WORD}", ', '"times": 3}'))
    stand_in.say(*call(f'{{"word": "{WORD}", "times": 1}}'))
    stand_in.say(delta(content=json.dumps({"word": WORD})), delta("stop"))
    found = look(stand_in)
    assert found == ServerProfile(
        "vllm",
        True,
        models=("stand-in",),
        listed=True,
        context=8192,
        thinking="reasoning",
        usage=True,
        auto="calls",
        required="calls",
        held=True,
        streamed=True,
        schema=True,
    )
    assert found.lines()[0] == "answers (vllm, 8192 tokens of context)"
    assert stand_in.requests[2]["tool_choice"] == "required"
    assert stand_in.requests[3]["response_format"]["json_schema"]["strict"] is True


def test_a_server_that_can_little(stand_in: Any) -> None:
    stand_in.models = None
    stand_in.say(delta(content="<think>hm</think>ok"), delta("stop"))
    stand_in.say(delta(content='<tool_calls>\n{"name": "note_word"}\n</tool_calls>'), delta("stop"))
    stand_in.refuse(400, {"error": {"message": "tool_choice required is not supported"}})
    stand_in.refuse(400, {"error": {"message": "response_format is not supported"}})
    stand_in.say(delta(content="a plum"), delta("stop"))
    found = look(stand_in)
    assert (found.kind, found.thinking, found.usage, found.auto) == ("unknown", "content", False, "text")
    assert (found.required, found.held, found.schema, found.refused) == ("refused", False, False, ("response_format",))
    told = "\n".join(found.lines())
    assert "no parser for this model's calls" in told and "fields it refuses: response_format" in told


def test_no_server() -> None:
    async def go() -> ServerProfile:
        model = OpenAIModel("m", "http://127.0.0.1:9", patience=0.0)
        found = await probe(model)
        await model.aclose()
        return found

    found = asyncio.run(go())
    assert not found.reachable and "Is the server running" in found.lines()[0]

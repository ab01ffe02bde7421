"""How much of the agent's model servers may use, and which call pays for it."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from m1agent.context import Context
from m1agent.mcp import eras
from m1agent.mcp.client_side import ClientSide
from m1agent.mcp.config import StdioServer
from m1agent.mcp.server import McpServer
from m1agent.messages import ToolCall, Usage
from m1agent.models.scripted import ScriptedModel

SERVERS = Path(__file__).parent / "servers"
GREEDY = StdioServer("greedy", sys.executable, (str(SERVERS / "greedy.py"),))


def paying(spent: list[Usage]) -> Context[Any]:
    return Context(None, ToolCall("1", "x", {}), on_usage=spent.append)


def test_a_call_may_ask_the_model_eight_times_and_nothing_else_may() -> None:
    model = ScriptedModel(["Yes."] * 16)
    spent: list[Usage] = []

    async def go() -> list[list[Any]]:
        server = McpServer(GREEDY, ClientSide(model))
        assert (await server.connect()).state == "ready"
        try:
            calls = (("unasked", 0), ("ask", 10), ("ask", 8))
            told = [await server.call(name, {"times": times}, paying(spent)) for name, times in calls]
        finally:
            await server.aclose()
        return [json.loads(output.content) for output in told]

    unasked, greedy, modest = asyncio.run(go())
    errors = [[answer["error"] for answer in answers if "error" in answer] for answers in (unasked, greedy, modest)]
    assert errors[0] == [
        {"code": -32600, "message": "the model is asked during a tool call alone, and none is running"}
    ]
    used_up = {"code": -32600, "message": "a tool call may ask the model 8 times, and these are used up"}
    assert errors[1:] == [[used_up, used_up], []]
    assert len(spent) == len(model.requests) == 16


@pytest.mark.parametrize("legacy", [False, True])
def test_the_call_that_asked_pays_or_the_oldest_where_that_is_not_told(legacy: bool) -> None:
    config = StdioServer("full", sys.executable, (str(SERVERS / "full.py"),))
    eras.remember(config, legacy=legacy)
    oldest: list[Usage] = []
    asking: list[Usage] = []

    async def go() -> None:
        server = McpServer(config, ClientSide(ScriptedModel(["Short."])))
        assert (await server.connect()).state == "ready"
        waits = asyncio.create_task(server.call("wait", {}, paying(oldest)))
        await server.call("waiting", {})
        await server.call("shorten", {"text": "A long text."}, paying(asking))
        waits.cancel()
        await asyncio.gather(waits, return_exceptions=True)
        await server.aclose()

    asyncio.run(go())
    assert (len(oldest), len(asking)) == ((1, 0) if legacy else (0, 1))

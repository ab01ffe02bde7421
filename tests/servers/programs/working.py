"""An agent that works until it is killed: `working.py STORE SERVERS` tells each event on a line.

Each step makes two calls, `small__echo` and `note`; the first step also makes those that SERVERS has under "first".
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from m1agent import Agent, Limits
from m1agent.messages import AssistantMessage, Message, ToolCall, ToolMessage
from m1agent.models.scripted import ScriptedModel
from m1agent.store import ConversationStore
from m1agent.tools import tool

STEPS = 500


async def main(store_file: str, given: dict[str, Any]) -> None:
    @tool
    def note(text: str) -> str:
        """Note something."""
        return f"noted {text}"

    def reply(messages: tuple[Message, ...]) -> AssistantMessage:
        step = sum(isinstance(message, ToolMessage) for message in messages)
        first = [ToolCall("x", name, arguments) for name, arguments in given["first"]] if step == 0 else []
        calls = [ToolCall("x", name, {"text": str(step)}) for name in ("small__echo", "note")]
        return AssistantMessage("", "", (*first, *calls))

    agent = Agent(ScriptedModel([reply] * STEPS), [note], mcp=given, limits=Limits(steps=STEPS))
    with ConversationStore(store_file) as store:
        async with agent:
            assert all(status.state == "ready" for status in agent.servers), agent.servers
            async for event in agent.stream("Work.", conversation=store.open("work")):
                print(type(event).__name__, flush=True)


asyncio.run(main(sys.argv[1], json.loads(Path(sys.argv[2]).read_text())))

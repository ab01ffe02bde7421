"""langchain's create_agent with a GenericFakeChatModel whose bind_tools returns itself, as its testing guide advises.

The model answers natively async, as one over HTTP would: without that langchain adds a thread hop to each step.
"""

from __future__ import annotations

import asyncio
from typing import Any

from langchain.agents import create_agent
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, ToolCall
from langchain_core.outputs import ChatResult
from langchain_core.tools import tool

from benchmarks.peers.common import NAP, Marks, measure, report


@tool
async def add_async(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@tool
def add_sync(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@tool
async def nap(n: int) -> int:
    """Wait a little."""
    await asyncio.sleep(NAP)
    return n


class MarkingModel(GenericFakeChatModel):
    marks: Any

    def bind_tools(self, tools: Any, **kwargs: Any) -> MarkingModel:
        return self

    async def _agenerate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> ChatResult:
        self.marks.ask()
        result = self._generate(messages, stop, **kwargs)
        self.marks.answer()
        return result


async def run(script: list[list[tuple[str, dict[str, Any]]]]) -> Marks:
    """One run of an agent that makes these calls."""
    replies = [
        AIMessage("", tool_calls=[ToolCall(name=name, args=given, id=f"c{n}") for n, (name, given) in enumerate(calls)])
        for calls in script
    ]
    model = MarkingModel(messages=iter([*replies, "done"]), marks=Marks())
    agent = create_agent(model, [add_async, add_sync, nap])
    limit = {"recursion_limit": 4 * len(script) + 10}
    result = await agent.ainvoke({"messages": [{"role": "user", "content": "Go."}]}, limit)
    assert result["messages"][-1].content == "done"
    return model.marks


if __name__ == "__main__":
    report(measure(run))

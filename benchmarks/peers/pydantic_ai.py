"""pydantic-ai with its FunctionModel, as its testing guide advises; nothing is instrumented by default."""

from __future__ import annotations

import asyncio
from typing import Any

from pydantic_ai import Agent, UsageLimits, models
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from benchmarks.peers.common import NAP, Marks, measure, report

models.ALLOW_MODEL_REQUESTS = False


class MarkingModel(FunctionModel):
    marks: Marks

    async def request(self, *args: Any, **kwargs: Any) -> ModelResponse:
        self.marks.ask()
        response = await super().request(*args, **kwargs)
        self.marks.answer()
        return response


async def run(script: list[list[tuple[str, dict[str, Any]]]]) -> Marks:
    """One run of an agent that makes these calls."""
    replies = iter(script)

    def reply(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        calls = next(replies, None)
        if calls is None:
            return ModelResponse(parts=[TextPart("done")])
        return ModelResponse(parts=[ToolCallPart(name, given, f"c{n}") for n, (name, given) in enumerate(calls)])

    model = MarkingModel(reply)
    model.marks = Marks()
    agent = Agent(model)

    @agent.tool_plain
    async def add_async(a: int, b: int) -> int:
        """Add two numbers."""
        return a + b

    @agent.tool_plain
    def add_sync(a: int, b: int) -> int:
        """Add two numbers."""
        return a + b

    @agent.tool_plain
    async def nap(n: int) -> int:
        """Wait a little."""
        await asyncio.sleep(NAP)
        return n

    result = await agent.run("Go.", usage_limits=UsageLimits(request_limit=None))
    assert result.output == "done"
    return model.marks


if __name__ == "__main__":
    report(measure(run))

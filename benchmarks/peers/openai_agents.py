"""openai-agents with agents.testing.ScriptedModel and tracing disabled, as its testing guide advises."""

from __future__ import annotations

import asyncio
from typing import Any

from agents import Agent, ModelResponse, RunConfig, Runner, function_tool, set_tracing_disabled
from agents.testing import ScriptedModel, assistant_message, function_call

from benchmarks.peers.common import NAP, Marks, measure, report

set_tracing_disabled(True)


@function_tool
async def add_async(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@function_tool
def add_sync(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@function_tool
async def nap(n: int) -> int:
    """Wait a little."""
    await asyncio.sleep(NAP)
    return n


class MarkingModel(ScriptedModel):
    marks: Marks

    async def get_response(self, *args: Any, **kwargs: Any) -> ModelResponse:
        self.marks.ask()
        response = await super().get_response(*args, **kwargs)
        self.marks.answer()
        return response


async def run(script: list[list[tuple[str, dict[str, Any]]]]) -> Marks:
    """One run of an agent that makes these calls."""
    replies = [
        [function_call(name, given, call_id=f"c{step}_{n}") for n, (name, given) in enumerate(calls)]
        for step, calls in enumerate(script)
    ]
    model = MarkingModel([*replies, [assistant_message("done")]])
    model.marks = Marks()
    agent = Agent(name="adder", model=model, tools=[add_async, add_sync, nap])
    config = RunConfig(tracing_disabled=True)
    result = await Runner.run(agent, "Go.", max_turns=len(script) + 1, run_config=config)
    assert result.final_output == "done"
    return model.marks


if __name__ == "__main__":
    report(measure(run))

"""What the SDK costs a step, with a scripted model: `python -m benchmarks.loop_overhead`.

A step is one reply with one call, its validation, a sync or async tool, and its result; the model's own text costs
what the scripted model costs. Flat means: the last fifty steps of 400 cost no more than the first fifty.
"""

from __future__ import annotations

import asyncio
import time

from benchmarks import report
from m1agent import Agent, Limits, tool
from m1agent.events import RunFinished, StepFinished
from m1agent.messages import AssistantMessage, ToolCall
from m1agent.models.scripted import ScriptedModel


@tool
async def add_async(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@tool
def add_sync(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


async def run(steps: int, name: str) -> list[float]:
    """Seconds of each step of one run."""
    script = [AssistantMessage(calls=(ToolCall("c", name, {"a": n, "b": 2}),)) for n in range(steps)]
    agent = Agent(
        ScriptedModel([*script, "done"], chunk=1000), tools=[add_async, add_sync], limits=Limits(steps=steps + 1)
    )
    spent: list[float] = []
    began = time.perf_counter()
    async for event in agent.stream("Go."):
        if isinstance(event, StepFinished):
            spent.append(time.perf_counter() - began)
            began = time.perf_counter()
        if isinstance(event, RunFinished):
            assert event.result.stop == "done" and event.result.steps == steps + 1
    return spent


def main() -> None:
    """Median milliseconds a step at three lengths, and at both ends of the longest."""
    figures: dict[str, float] = {}
    for name in ("add_async", "add_sync"):
        asyncio.run(run(20, name))
        for steps in (10, 100, 400):
            runs = [asyncio.run(run(steps, name)) for _ in range(5)]
            figures[f"{name}, {steps} steps, ms a step"] = _ms([sum(spent) / len(spent) for spent in runs])
            if steps == 400:
                figures[f"{name}, steps 1-50 of 400, ms a step"] = _ms([t for spent in runs for t in spent[:50]])
                figures[f"{name}, steps 351-400 of 400, ms a step"] = _ms([t for spent in runs for t in spent[350:400]])
    report.save("loop_overhead", figures)


def _ms(values: list[float]) -> float:
    return round(1000 * report.median(values), 3)


if __name__ == "__main__":
    main()

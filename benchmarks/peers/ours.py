"""m1agent with its ScriptedModel, which writes each reply as text that is then parsed, as a real model's is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from benchmarks.peers.common import NAP, Marks, measure, report
from m1agent import Agent, Limits, tool
from m1agent.events import ModelEvent, ReplyFinished
from m1agent.messages import AssistantMessage, Message, Setup, ToolCall
from m1agent.models.base import Settings
from m1agent.models.scripted import ScriptedModel, ScriptedThread
from m1agent.prompt.envelope import Envelope


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


class MarkingThread(ScriptedThread):
    marks: Marks

    async def respond(
        self, new: Sequence[Message], envelope: Envelope, settings: Settings
    ) -> AsyncGenerator[ModelEvent]:
        self.marks.ask()
        async for event in super().respond(new, envelope, settings):
            if isinstance(event, ReplyFinished):
                self.marks.answer()
            yield event


class MarkingModel(ScriptedModel):
    marks: Marks

    def open(self, setup: Setup, history: Sequence[Message] = ()) -> ScriptedThread:
        thread = super().open(setup, history)
        thread.__class__ = MarkingThread
        thread.marks = self.marks  # type: ignore[attr-defined]
        return thread


async def run(script: list[list[tuple[str, dict[str, Any]]]]) -> Marks:
    """One run of an agent that makes these calls."""
    replies = [
        AssistantMessage(calls=tuple(ToolCall(f"c{n}", *call) for n, call in enumerate(calls))) for calls in script
    ]
    model = MarkingModel([*replies, "done"], chunk=1000)
    model.marks = Marks()
    agent = Agent(model, tools=[add_async, add_sync, nap], limits=Limits(steps=None))
    result = await agent.run("Go.")
    assert result.output == "done" and not any(record.result.is_error for record in result.calls)
    return model.marks


if __name__ == "__main__":
    report(measure(run))

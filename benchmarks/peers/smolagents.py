"""smolagents' ToolCallingAgent with a Model subclass; it knows sync tools only, and runs parallel ones in threads."""

from __future__ import annotations

import time
from typing import Any

from smolagents import ChatMessage, LogLevel, Model, ToolCallingAgent, tool
from smolagents.models import ChatMessageToolCall, ChatMessageToolCallFunction, MessageRole

from benchmarks.peers.common import CALLS, NAP, Marks, measure, report


@tool
def add_sync(a: int, b: int) -> int:
    """Add two numbers.

    Args:
        a: the first
        b: the second
    """
    return a + b


@tool
def nap(n: int) -> int:
    """Wait a little.

    Args:
        n: which
    """
    time.sleep(NAP)
    return n


class MarkingModel(Model):
    def __init__(self, script: list[list[tuple[str, dict[str, Any]]]]) -> None:
        super().__init__(model_id="scripted")
        self.marks = Marks()
        self.replies = iter([*script, [("final_answer", {"answer": "done"})]])

    def generate(self, messages: Any, **kwargs: Any) -> ChatMessage:
        self.marks.ask()
        calls = [
            ChatMessageToolCall(ChatMessageToolCallFunction(given, name), f"c{n}", "function")
            for n, (name, given) in enumerate(next(self.replies))
        ]
        message = ChatMessage(MessageRole.ASSISTANT, None, calls)
        self.marks.answer()
        return message


async def run(script: list[list[tuple[str, dict[str, Any]]]]) -> Marks:
    """One run of an agent that makes these calls."""
    model = MarkingModel(script)
    agent = ToolCallingAgent([add_sync, nap], model, max_tool_threads=CALLS, verbosity_level=LogLevel.OFF)
    assert agent.run("Go.", max_steps=len(script) + 1) == "done"
    return model.marks


if __name__ == "__main__":
    report(measure(run, kinds=("sync",)))

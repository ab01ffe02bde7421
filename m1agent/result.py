"""How a run ended."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeAlias

from typing_extensions import TypeVar

from m1agent.conversation import Conversation
from m1agent.errors import RunStopped
from m1agent.messages import Message, ToolCall, ToolResult, Usage

StopReason: TypeAlias = Literal[
    "done", "steps", "tokens", "seconds", "cancelled", "loop", "approval", "blocked", "error"
]
Out = TypeVar("Out", default=Any, covariant=True)


@dataclass(frozen=True, slots=True)
class CallRecord:
    """A call and what the model was told about it."""

    call: ToolCall
    result: ToolResult


@dataclass(frozen=True, slots=True)
class RunResult(Generic[Out]):
    """How a run ended, and everything finished by then.

    `output` is the answer text, or a value of the agent's output type; None where the run ended before an answer.
    `stop` is `done`, the limit that ended the run (`steps`, `tokens`, `seconds`), `cancelled`, `loop` (the same call
    over and over), `approval` (calls wait for a human: `pending`), `blocked` (a guard said no: `reason`) or `error`
    (the model failed; `error` says how). `messages` is the whole conversation. `usage` counts what agents called as
    tools used, too.
    """

    output: Out | None
    stop: StopReason
    steps: int
    # Not shown: asyncio writes results into its logs, and builds their text at the end of every `asyncio.run`.
    calls: tuple[CallRecord, ...] = field(repr=False)
    messages: tuple[Message, ...] = field(repr=False)
    usage: Usage
    seconds: float
    conversation: Conversation
    error: Exception | None = None
    reason: str = ""
    pending: tuple[ToolCall, ...] = ()

    def unwrap(self) -> Out:
        """The output of a run that is done.

        Raises:
            RunStopped: the run ended before an answer; the text says why.
        """
        if self.stop != "done":
            raise RunStopped(self.stop, self.reason or (str(self.error) if self.error else ""))
        return self.output  # type: ignore[return-value]

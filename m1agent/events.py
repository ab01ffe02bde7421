"""What a run tells, in order, while it happens.

A model's reply streams `ThinkingDelta`, `TextDelta`, `CallStarted`, `ArgumentsDelta`, `CallReady`, and ends with
`ReplyFinished`. The loop wraps these between `StepStarted` and `StepFinished`, adds `ToolStarted` and `ToolFinished`
(and `ToolProgress` between them)
for the calls it runs, and ends with `RunFinished`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from m1agent.messages import AssistantMessage, ToolCall, ToolResult, Usage

if TYPE_CHECKING:
    from m1agent.result import RunResult


@dataclass(frozen=True, slots=True)
class ThinkingDelta:
    """More of the model's thinking."""

    text: str


@dataclass(frozen=True, slots=True)
class TextDelta:
    """More of the model's answer text."""

    text: str


@dataclass(frozen=True, slots=True)
class CallStarted:
    """The model named the tool it calls; `index` counts the calls of this reply from 0."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class ArgumentsDelta:
    """More of a call's arguments: the next characters of their JSON, never repeated."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class CallReady:
    """A call is complete; it may still fail validation against the tool's schema."""

    index: int
    call: ToolCall


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """A token, the natural logarithm of its probability, and the likeliest tokens in its place, where asked for.

    The probability is that among the tokens the grammar allowed, at temperature 1; a forced token has 0.0.
    """

    text: str
    bytes: bytes
    logprob: float
    top: tuple[ScoredToken, ...] = ()


@dataclass(frozen=True, slots=True)
class TokensScored:
    """The next tokens of the reply, thinking and calls included, where `Settings.logprobs` asks for them."""

    tokens: tuple[ScoredToken, ...]


@dataclass(frozen=True, slots=True)
class ReplyFinished:
    """The model's reply is complete. `stop` is `length` when the token budget cut it."""

    message: AssistantMessage
    usage: Usage
    stop: Literal["done", "length"] = "done"


@dataclass(frozen=True, slots=True)
class StepStarted:
    """The loop asks the model for reply number `step`, counted from 1."""

    step: int


@dataclass(frozen=True, slots=True)
class ToolStarted:
    """A validated call begins to run."""

    call: ToolCall


@dataclass(frozen=True, slots=True)
class ToolProgress:
    """A running call tells how far it is; `fraction` runs from 0 to 1, or is None where that is not known."""

    call: ToolCall
    message: str = ""
    fraction: float | None = None


@dataclass(frozen=True, slots=True)
class ToolFinished:
    """A call has its result, or the error the model will be told."""

    call: ToolCall
    result: ToolResult
    seconds: float


@dataclass(frozen=True, slots=True)
class ApprovalNeeded:
    """Calls that wait for a human's answer; the run ends here with `stop == "approval"`."""

    calls: tuple[ToolCall, ...]


@dataclass(frozen=True, slots=True)
class Compacted:
    """The older part of the conversation was replaced by `summary`; the numbers count messages."""

    before: int
    after: int
    summary: str


@dataclass(frozen=True, slots=True)
class HandedOff:
    """Another agent, of this name, goes on with the conversation."""

    agent: str


@dataclass(frozen=True, slots=True)
class StepFinished:
    """A reply and the results of its calls are in the conversation."""

    step: int
    usage: Usage


@dataclass(frozen=True, slots=True)
class RunFinished:
    """The run has ended; the result says how."""

    result: RunResult[Any]


ModelEvent: TypeAlias = (
    ThinkingDelta | TextDelta | CallStarted | ArgumentsDelta | CallReady | TokensScored | ReplyFinished
)
RunEvent: TypeAlias = ApprovalNeeded | Compacted | HandedOff
Event: TypeAlias = (
    RunEvent | ModelEvent | StepStarted | ToolStarted | ToolProgress | ToolFinished | StepFinished | RunFinished
)

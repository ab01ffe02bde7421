"""One run: the model replies, its calls run, their results are told, until the model answers or a limit ends it.

A run is an async generator of events and nothing else; `Agent.run` consumes what `Agent.stream` shows. However it
ends, by a limit, a cancellation, a failure, or a reader that walks away, the conversation is left valid: every call has
a result, and the next run goes on from there.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, TypeVar

import anyio

from m1agent.calls import STOP_AT, Calls, Repeats
from m1agent.conversation import Conversation
from m1agent.errors import ModelError
from m1agent.events import (
    CallReady,
    Event,
    ModelEvent,
    ReplyFinished,
    RunFinished,
    StepFinished,
    StepStarted,
    TextDelta,
    ThinkingDelta,
    ToolFinished,
    ToolStarted,
)
from m1agent.limits import Limits
from m1agent.messages import AssistantMessage, Message, ToolCall, ToolResult, Usage, UserMessage
from m1agent.models.base import Settings
from m1agent.output import Output, OutputMismatch
from m1agent.prompt.envelope import Envelope, ToolChoice
from m1agent.tools import Toolset

StopReason: TypeAlias = Literal["done", "steps", "tokens", "seconds", "cancelled", "loop", "error"]
OUTPUT_TRIES = 3

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class CallRecord:
    """A call and what the model was told about it."""

    call: ToolCall
    result: ToolResult


@dataclass(frozen=True, slots=True)
class RunResult:
    """How a run ended, and everything finished by then.

    `output` is the answer text, or a value of the agent's output type; None where the run ended before an answer.
    `stop` is `done`, the limit that ended the run (`steps`, `tokens`, `seconds`), `cancelled`, `loop` (the same call
    over and over) or `error` (the model failed; `error` says how). `messages` is the whole conversation.
    """

    output: Any
    stop: StopReason
    steps: int
    calls: tuple[CallRecord, ...]
    messages: tuple[Message, ...]
    usage: Usage
    seconds: float
    conversation: Conversation
    error: Exception | None = None


class Cancel:
    """Ends runs from outside: `cancel()` may be called from any task, thread or signal handler."""

    def __init__(self) -> None:
        self.requested = False
        self._waiting: dict[anyio.CancelScope, asyncio.AbstractEventLoop] = {}

    def cancel(self) -> None:
        """End the runs that were given this object, now and from here on; they return what is finished."""
        self.requested = True
        for scope, loop in list(self._waiting.items()):
            loop.call_soon_threadsafe(scope.cancel)

    async def race(self, awaitable: Awaitable[T], deadline: float) -> T:
        """The awaited value; raises Interrupted when cancelled, or at `deadline` on the event loop's clock."""
        loop = asyncio.get_running_loop()
        with anyio.CancelScope(deadline=deadline) as scope:
            self._waiting[scope] = loop
            try:
                return await awaitable
            finally:
                del self._waiting[scope]
        raise Interrupted("cancelled" if self.requested else "seconds")


class Interrupted(Exception):
    """A wait ended early; `args[0]` is the run's stop reason."""


@dataclass(slots=True)
class _Partial:
    """What a reply has said so far."""

    thinking: list[str]
    text: list[str]
    calls: list[ToolCall]

    def add(self, event: ModelEvent) -> None:
        match event:
            case ThinkingDelta(text):
                self.thinking.append(text)
            case TextDelta(text):
                self.text.append(text)
            case CallReady(_, call):
                self.calls.append(call)
            case _:
                pass

    def message(self) -> AssistantMessage:
        return AssistantMessage("".join(self.text), "".join(self.thinking), tuple(self.calls))


class Run:
    """One run over a conversation that has its model attached. `events` may be read once."""

    def __init__(
        self,
        conversation: Conversation,
        tools: Toolset,
        *,
        limits: Limits,
        settings: Settings,
        output: Output | None = None,
        choice: ToolChoice = "auto",
        cancel: Cancel | None = None,
    ) -> None:
        self._conversation = conversation
        self._tools = tools
        self._limits = limits
        self._settings = settings
        self._output = output
        self._choice: ToolChoice = choice
        self._cancel = cancel or Cancel()
        self._usage = Usage()
        self._step = 0
        self._ran = 0
        self._stop: StopReason | None = None
        self._answer: Any = None
        self._error: Exception | None = None
        self._records: list[CallRecord] = []
        self._repeats = Repeats()
        self._partial: _Partial | None = None
        self._calls: Calls | None = None
        self._output_tries = 0
        self._envelopes: dict[tuple[bool, ToolChoice], Envelope] = {}

    async def events(self) -> AsyncGenerator[Event]:
        """Everything that happens, in order; the last event is `RunFinished`."""
        self._started = time.perf_counter()
        seconds = self._limits.seconds
        self._deadline = asyncio.get_running_loop().time() + seconds if seconds is not None else float("inf")
        try:
            async with aclosing(self._steps()) as steps:
                async for event in steps:
                    yield event
        except Interrupted as interrupted:
            self._stop = interrupted.args[0]
        except ModelError as error:
            self._stop, self._error = "error", error
            await self._conversation.detach()
        finally:
            self._settle()
        yield RunFinished(self._result())

    async def _steps(self) -> AsyncGenerator[Event]:
        while self._stop is None:
            self._step += 1
            yield StepStarted(self._step)
            reply: ReplyFinished | None = None
            async with aclosing(self._reply()) as stream:
                async for event in stream:
                    if isinstance(event, ReplyFinished):
                        reply = event
                        self._usage += event.usage
                    yield event
            if reply is None:
                raise ModelError("the model ended its reply without finishing it")
            if reply.message.calls:
                async with aclosing(self._run_calls(reply.message.calls)) as finished:
                    async for event in finished:
                        yield event
            yield StepFinished(self._step, reply.usage)
            self._stop = self._verdict(reply)

    async def _reply(self) -> AsyncGenerator[ModelEvent]:
        self._partial = _Partial([], [], [])
        stream = self._conversation.reply(self._envelope(), self._reply_settings())
        async with aclosing(stream):
            while (event := await self._next(stream)) is not None:
                self._partial.add(event)
                if isinstance(event, ReplyFinished):
                    self._partial = None
                    yield event
                    return
                yield event

    async def _next(self, stream: AsyncGenerator[ModelEvent]) -> ModelEvent | None:
        try:
            return await self._guard(lambda: anext(stream, None))
        except (Interrupted, ModelError):
            raise
        except Exception as error:
            raise ModelError(f"{type(error).__name__}: {error}") from error

    async def _guard(self, begin: Callable[[], Awaitable[T]]) -> T:
        if self._cancel.requested or asyncio.get_running_loop().time() >= self._deadline:
            raise Interrupted("cancelled" if self._cancel.requested else "seconds")
        return await self._cancel.race(begin(), self._deadline)

    async def _run_calls(self, calls: Sequence[ToolCall]) -> AsyncGenerator[ToolStarted | ToolFinished]:
        allowed = self._limits.tool_calls
        self._calls = Calls(calls, self._tools, None if allowed is None else allowed - self._ran)
        async with aclosing(self._calls.run(self._guard)) as events:
            async for event in events:
                yield event
        self._close_calls()

    def _close_calls(self) -> None:
        """Put the results of the last reply's calls into the conversation, complete or not."""
        calls, self._calls = self._calls, None
        if calls is None:
            return
        self._ran += calls.ran
        known = [(index, result) for index, result in enumerate(calls.results) if result is not None]
        told = self._repeats.note([calls.calls[index] for index, _ in known], [result for _, result in known])
        results: list[ToolResult | None] = [None] * len(calls.calls)
        for (index, _), result in zip(known, told, strict=True):
            results[index] = result
            self._records.append(CallRecord(calls.calls[index], result))
        self._conversation.settle(results)

    def _verdict(self, reply: ReplyFinished) -> StopReason | None:
        """Why the run ends after this step, or None when it goes on."""
        if self._repeats.worst >= STOP_AT:
            return "loop"
        if not reply.message.calls:
            return self._judge(reply)
        return self._limit_reached()

    def _limit_reached(self) -> StopReason | None:
        if self._limits.steps is not None and self._step >= self._limits.steps:
            return "steps"
        return "tokens" if self._tokens_left() == 0 else None

    def _judge(self, reply: ReplyFinished) -> StopReason | None:
        """Take the answer as it is, or as the output type; an answer that isn't one is asked for again."""
        if reply.stop == "length":
            self._answer = None if self._output else reply.message.text
            return "tokens"
        if self._output is None:
            self._answer = reply.message.text
            return "done"
        try:
            self._answer = self._output.parse(reply.message.text)
            return "done"
        except OutputMismatch as error:
            self._output_tries += 1
            if self._output_tries >= OUTPUT_TRIES:
                self._error = ModelError(f"the answer does not fit the output type: {error}")
                return "error"
            self._conversation.append(UserMessage(self._output.request(error)))
            return self._limit_reached()

    def _envelope(self) -> Envelope:
        """What the next reply may be; equal replies share one object, so that a grammar is compiled once."""
        forced = self._output is not None and (self._output_tries > 0 or not len(self._tools))
        spent = self._limits.tool_calls is not None and self._ran >= self._limits.tool_calls
        choice: ToolChoice = "none" if forced or spent else self._choice if self._step == 1 else "auto"
        choice = "none" if choice == "auto" and not len(self._tools) else choice
        if (forced, choice) not in self._envelopes:
            schema = self._output.schema if forced and self._output else None
            self._envelopes[forced, choice] = Envelope(self._tools.specs, choice, output=schema)
        return self._envelopes[forced, choice]

    def _reply_settings(self) -> Settings:
        bounds = (self._settings.max_tokens, self._limits.reply_tokens, self._tokens_left())
        known = [bound for bound in bounds if bound is not None]
        return replace(self._settings, max_tokens=max(1, min(known))) if known else self._settings

    def _tokens_left(self) -> int | None:
        if self._limits.tokens is None:
            return None
        spent = self._usage.input_tokens - self._usage.reused_tokens + self._usage.output_tokens
        return max(0, self._limits.tokens - spent)

    def _settle(self) -> None:
        """Leave a valid history behind, whatever happened."""
        partial, self._partial = self._partial, None
        said = partial.message() if partial is not None else None
        if said is not None and (self._error is None or said != AssistantMessage()):
            self._conversation.record(said)
        self._close_calls()
        self._conversation.settle()

    def _result(self) -> RunResult:
        return RunResult(
            output=self._answer,
            stop=self._stop or "error",
            steps=self._step,
            calls=tuple(self._records),
            messages=self._conversation.messages,
            usage=self._usage,
            seconds=time.perf_counter() - self._started,
            conversation=self._conversation,
            error=self._error,
        )

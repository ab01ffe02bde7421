"""One run: the model replies, its calls run, their results are told, until the model answers or a limit ends it.

A run is an async generator of events and nothing else; `Agent.run` consumes what `Agent.stream` shows. However it
ends, by a limit, a cancellation, a failure, or a reader that walks away, the conversation is left valid: every call has
a result, and the next run goes on from there. The one exception is a run that ends because calls wait for a human's
answer: these stay open until the next run brings it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, TypeVar

from m1agent.approval import Answer, Approval, Denied, refusal
from m1agent.budget import ResultBudget, Spill
from m1agent.calls import STOP_AT, CallEvent, CallRules, Calls, Repeats
from m1agent.cancel import Cancel, Interrupted
from m1agent.compaction import INTRODUCTION, Compaction, split, summary_of
from m1agent.context import Context
from m1agent.conversation import Conversation
from m1agent.errors import ModelError
from m1agent.events import (
    ApprovalNeeded,
    CallReady,
    Compacted,
    Event,
    ModelEvent,
    ReplyFinished,
    RunFinished,
    StepFinished,
    StepStarted,
    TextDelta,
    ThinkingDelta,
)
from m1agent.guards import Block, InputGuard, OutputGuard, judged
from m1agent.handoff import Handoff
from m1agent.hooks import Hooks
from m1agent.limits import Limits
from m1agent.messages import AssistantMessage, Message, ToolCall, ToolResult, ToolSpec, Usage, UserMessage
from m1agent.meter import Meter
from m1agent.models.base import Model, Settings
from m1agent.observe import Observer, ReplyInfo, RunInfo, watch
from m1agent.output import Output, OutputMismatch
from m1agent.prompt.envelope import Envelope, Named, ToolChoice
from m1agent.result import CallRecord, RunResult, StopReason
from m1agent.tools import Tool, Toolset

OUTPUT_TRIES = 3
UNANSWERED = Denied("Nobody answered the question whether it may run.")

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan:
    """What an agent brings to a run."""

    model: Model
    tools: Toolset
    name: str = ""
    instructions: str = ""
    limits: Limits = field(default_factory=Limits)
    settings: Settings = field(default_factory=Settings)
    output: Output | None = None
    approval: Approval = field(default_factory=Approval)
    hooks: Hooks = field(default_factory=Hooks)
    spill: Spill = field(default_factory=lambda: Spill(ResultBudget()))
    input_guards: Sequence[InputGuard] = ()
    output_guards: Sequence[OutputGuard] = ()
    compaction: Compaction | None = None
    observers: Sequence[Observer] = ()


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
    """One run over a conversation that has its model attached. `events` may be read once.

    Args:
        conversation: what is extended.
        plan: what the agent brings.
        new: messages to begin with.
        choice: what the first reply must be.
        deps: what tools find in their context.
        cancel: ends the run from outside.
        answers: for the calls that waited for approval, by call id.
        before: the result of the run this one takes over from; its counts go on.
    """

    def __init__(
        self,
        conversation: Conversation,
        plan: RunPlan,
        *,
        new: Sequence[Message] = (),
        choice: ToolChoice = "auto",
        deps: Any = None,
        cancel: Cancel | None = None,
        answers: Mapping[str, Answer] | None = None,
        before: RunResult[Any] | None = None,
    ) -> None:
        self._conversation = conversation
        self._plan = plan
        self._tools = plan.tools
        self._new = new
        self._choice: ToolChoice = choice
        self._deps = deps
        self._cancel = cancel or Cancel()
        self._answers = answers or {}
        self._records = list(before.calls) if before else []
        self._meter = Meter(plan.limits)
        if before is not None:
            self._meter = Meter(plan.limits, before.usage, before.steps, len(before.calls))
        self._first = self._meter.steps + 1
        self._elapsed = before.seconds if before else 0.0
        self._stop: StopReason | None = None
        self._answer: Any = None
        self._error: Exception | None = None
        self._reason = ""
        self._repeats = Repeats()
        self._partial: _Partial | None = None
        self._calls: Calls | None = None
        self._output_tries = 0
        self._envelopes: dict[tuple[Any, ...], Envelope] = {}
        self._changing = any(tool.available or tool.retries for tool in self._tools)
        self.handed_to: Any = None

    async def events(self) -> AsyncGenerator[Event]:
        """Everything that happens, in order; the last event is `RunFinished`."""
        self._started = time.perf_counter()
        self._observer = watch(self._plan.observers, self._info())
        self._rules = self._call_rules()
        seconds = self._plan.limits.seconds
        left = None if seconds is None else seconds - self._elapsed
        self._deadline = asyncio.get_running_loop().time() + left if left is not None else float("inf")
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
            self._observer.run_finished(self._result())
        yield RunFinished(self._result())

    async def _steps(self) -> AsyncGenerator[Event]:
        async with aclosing(self._begin()) as begun:
            async for event in begun:
                yield event
        usage = Usage()
        while self._stop is None and self.handed_to is None:
            if self._plan.compaction is not None and self._plan.compaction.due(usage):
                async with aclosing(self._compact(self._plan.compaction)) as compacted:
                    async for event in compacted:
                        yield event
            self._meter.steps += 1
            yield StepStarted(self._meter.steps)
            reply: ReplyFinished | None = None
            async with aclosing(self._reply()) as stream:
                async for event in stream:
                    if isinstance(event, ReplyFinished):
                        reply = event
                        self._meter.charge(event.usage)
                    yield event
            if reply is None:
                raise ModelError("the model ended its reply without finishing it")
            if reply.message.calls:
                async with aclosing(self._run_calls(reply.message.calls)) as finished:
                    async for event in finished:
                        yield event
            usage = reply.usage
            yield StepFinished(self._meter.steps, usage)
            self._stop = await self._verdict(reply)

    async def _begin(self) -> AsyncGenerator[Event]:
        """Take up what waited for an answer, then what is new."""
        if self._plan.input_guards and self._new:
            objection = await self._guard(lambda: judged(self._plan.input_guards, tuple(self._new)))
            if objection is not None:
                self._block(objection.reason if isinstance(objection, Block) else objection.feedback)
                return
        if waiting := self._conversation.waiting:
            answers = {call.id: refusal(self._answers.get(call.id, UNANSWERED)) for call in waiting}
            last = self._conversation.messages[-1]
            assert isinstance(last, AssistantMessage)
            async with aclosing(self._run_calls(last.calls, self._conversation.noted, answers)) as finished:
                async for event in finished:
                    yield event
        for message in self._new:
            self._conversation.append(message)

    async def _reply(self) -> AsyncGenerator[ModelEvent]:
        self._partial = _Partial([], [], [])
        settings = self._meter.settings(self._plan.settings)
        seen, reply, failure = self._observer, None, None
        seen.reply_started(ReplyInfo(self._meter.steps, self._plan.model.name, settings, self._conversation))
        stream = self._conversation.reply(self._envelope(), settings)
        try:
            async with aclosing(stream):
                while (event := await self._next(stream)) is not None:
                    self._partial.add(event)
                    if isinstance(event, ReplyFinished):
                        self._partial, reply = None, event
                        yield event
                        return
                    yield event
        except BaseException as error:
            failure = error
            raise
        finally:
            seen.reply_finished(reply, failure)

    async def _next(self, stream: AsyncGenerator[ModelEvent]) -> ModelEvent | None:
        try:
            with self._observer.replying():
                return await self._guard(lambda: anext(stream, None))
        except (Interrupted, ModelError):
            raise
        except Exception as error:
            raise ModelError(f"{type(error).__name__}: {error}") from error

    async def _guard(self, begin: Callable[[], Awaitable[T]]) -> T:
        if self._cancel.requested or asyncio.get_running_loop().time() >= self._deadline:
            raise Interrupted("cancelled" if self._cancel.requested else "seconds")
        return await self._cancel.race(begin(), self._deadline)

    async def _compact(self, compaction: Compaction) -> AsyncGenerator[Event]:
        messages = self._conversation.messages
        head, older, kept = split(messages, compaction.keep)
        if not older:
            return
        plan = self._plan
        try:
            summary, usage = await self._guard(lambda: summary_of(compaction, older, plan.model, plan.settings))
        except (Interrupted, ModelError):
            raise
        except Exception as error:
            raise ModelError(f"the conversation could not be summarised: {type(error).__name__}: {error}") from error
        self._meter.charge(usage)
        after = [*head, UserMessage(INTRODUCTION + summary), *kept]
        await self._conversation.replace(after)
        yield Compacted(len(messages), len(after), summary)

    async def _run_calls(
        self,
        calls: Sequence[ToolCall],
        known: Sequence[ToolResult | None] = (),
        answers: Mapping[str, Denied | None] | None = None,
    ) -> AsyncGenerator[CallEvent | ApprovalNeeded]:
        self._calls = Calls(calls, self._tools, self._rules, self._meter.calls_left, known, answers)
        async with aclosing(self._calls.run(self._guard)) as events:
            async for event in events:
                yield event
        if waiting := self._calls.waiting:
            self._stop = "approval"
            yield ApprovalNeeded(tuple(waiting))
        else:
            self._close_calls()

    def _close_calls(self) -> None:
        """Put the results of the last reply's calls into the conversation, complete or not."""
        calls, self._calls = self._calls, None
        if calls is None:
            return
        self._meter.calls += calls.ran
        known = [(i, result) for i, result in enumerate(calls.results) if result is not None and i not in calls.known]
        told = self._repeats.note([calls.calls[index] for index, _ in known], [result for _, result in known])
        results = list(calls.results)
        for (index, _), result in zip(known, told, strict=True):
            results[index] = result
            self._records.append(CallRecord(calls.calls[index], result))
            tool = self._tools.get(result.name)
            if isinstance(tool, Handoff) and not result.is_error:
                self.handed_to = tool.agent
        if self._stop == "approval":
            self._conversation.note(results, [call.id for call in calls.waiting])
        else:
            self._conversation.settle(results)

    async def _verdict(self, reply: ReplyFinished) -> StopReason | None:
        """Why the run ends after this step, or None when it goes on."""
        if self._stop is not None:
            return self._stop
        if self._repeats.worst >= STOP_AT:
            return "loop"
        if not reply.message.calls:
            return await self._judge(reply)
        return self._meter.reached

    async def _judge(self, reply: ReplyFinished) -> StopReason | None:
        """Take the answer as it is, or as the output type; an answer that isn't one is asked for again."""
        if reply.stop == "length":
            self._answer = None if self._plan.output else reply.message.text
            return "tokens"
        try:
            answer = self._plan.output.parse(reply.message.text) if self._plan.output else reply.message.text
        except OutputMismatch as error:
            assert self._plan.output is not None
            return self._again(self._plan.output.request(error), f"the answer does not fit the output type: {error}")
        if self._plan.output_guards:
            verdict = await self._guard(lambda: judged(self._plan.output_guards, answer))
            if isinstance(verdict, Block):
                return self._block(verdict.reason)
            if verdict is not None:
                return self._again(verdict.feedback, f"a guard refused the answer: {verdict.feedback}")
        self._answer = answer
        return "done"

    def _again(self, request: str, failure: str) -> StopReason | None:
        """Ask for another answer, or give up after `OUTPUT_TRIES`."""
        self._output_tries += 1
        if self._output_tries >= OUTPUT_TRIES:
            self._error = ModelError(failure)
            return "error"
        self._conversation.append(UserMessage(request))
        return self._meter.reached

    def _block(self, reason: str) -> StopReason:
        self._reason, self._stop = reason, "blocked"
        return "blocked"

    def _envelope(self) -> Envelope:
        """What the next reply may be; equal replies share one object, so that a grammar is compiled once."""
        output = self._plan.output
        offered = self._offered() if self._changing else None
        forced = output is not None and (self._output_tries > 0 or not len(self._tools))
        spent = self._meter.calls_left == 0
        choice: ToolChoice = "none" if forced or spent else self._choice if self._meter.steps == self._first else "auto"
        choice = "none" if choice == "auto" and not (self._tools if offered is None else offered) else choice
        if offered is not None and isinstance(choice, Named) and choice.name not in {spec.name for spec in offered}:
            choice = "auto" if offered else "none"
        key = (forced, choice, None if offered is None else tuple(spec.name for spec in offered))
        if key not in self._envelopes:
            schema = output.schema if forced and output else None
            self._envelopes[key] = Envelope(self._tools.specs if offered is None else offered, choice, output=schema)
        return self._envelopes[key]

    def _offered(self) -> tuple[ToolSpec, ...]:
        """The tools the next reply may call; the prompt names all of them all the same."""

        def usable(tool: Tool) -> bool:
            return not self._rules.worn_out(tool) and (tool.available is None or tool.available())

        return tuple(tool.spec for tool in self._tools if usable(tool))

    def _call_rules(self) -> CallRules:
        plan = self._plan
        return CallRules(
            context=self._context,
            approval=plan.approval,
            hooks=plan.hooks,
            spill=plan.spill,
            observer=self._observer,
            note=self._conversation.note,
        )

    def _context(self, call: ToolCall, progress: Callable[[str, float | None], None]) -> Context[Any]:
        return Context(self._deps, call, self._conversation.messages, self._plan.model, progress, self._meter.charge)

    def _info(self) -> RunInfo:
        plan = self._plan
        return RunInfo(
            conversation=self._conversation,
            model=plan.model.name,
            agent=plan.name,
            instructions=plan.instructions,
            tools=plan.tools.specs if plan.observers else (),
        )

    def _settle(self) -> None:
        """Leave a valid history behind, whatever happened."""
        partial, self._partial = self._partial, None
        said = partial.message() if partial is not None else None
        if said is not None and (self._error is None or said != AssistantMessage()):
            self._conversation.record(said)
        self._close_calls()
        if self._stop not in ("approval", "blocked"):
            self._conversation.settle()

    def _result(self) -> RunResult[Any]:
        return RunResult(
            output=self._answer,
            stop=self._stop or ("done" if self.handed_to is not None else "error"),
            steps=self._meter.steps,
            calls=tuple(self._records),
            messages=self._conversation.messages,
            usage=self._meter.usage,
            seconds=self._elapsed + time.perf_counter() - self._started,
            conversation=self._conversation,
            error=self._error,
            reason=self._reason,
            pending=self._conversation.waiting,
        )

"""One run: the model replies, its calls run, their results are told, until the model answers or a limit ends it.

A run is an async generator of events and nothing else; `Agent.run` consumes what `Agent.stream` shows. However it
ends, by a limit, a cancellation, a failure, or a reader that walks away, the conversation is left valid: every call has
a result, and the next run goes on from there. The one exception is a run that ends because calls wait for a human's
answer: these stay open until the next run brings it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

from m1agent.approval import Answer, Denied, refusal
from m1agent.calls import CallEvent, CallRules, Calls, from_any_thread
from m1agent.cancel import Cancel, Interrupted
from m1agent.compaction import shortened
from m1agent.context import Context
from m1agent.conversation import Conversation
from m1agent.delegation import Handoff
from m1agent.errors import GuardError, ModelError
from m1agent.events import (
    ApprovalNeeded,
    Event,
    ModelEvent,
    ReplyFinished,
    RunFinished,
    StepFinished,
    StepStarted,
)
from m1agent.guards import Block, Retry, judged
from m1agent.messages import AssistantMessage, Message, ToolCall, ToolResult, UserMessage
from m1agent.meter import Progress
from m1agent.observe import ReplyInfo, RunInfo, watch
from m1agent.offer import Offer
from m1agent.output import OutputMismatch
from m1agent.partial import PartialReply
from m1agent.plan import RunPlan
from m1agent.prompt.envelope import Envelope, ToolChoice
from m1agent.result import CallRecord, RunResult, StopReason

OUTPUT_TRIES = 3
UNANSWERED = Denied("Nobody answered the question whether it may run.")

T = TypeVar("T")


class Run:
    """One agent's part of a run, over a conversation that has its model attached. `events` may be read once.

    Args:
        conversation: what is extended.
        plan: what the agent brings.
        progress: what counts for the run as a whole, earlier agents included.
        new: messages to begin with.
        choice: what the first reply must be.
        deps: what tools find in their context.
        cancel: ends the run from outside.
        answers: for the calls that waited for approval, by call id.
    """

    def __init__(
        self,
        conversation: Conversation,
        plan: RunPlan,
        progress: Progress,
        *,
        new: Sequence[Message] = (),
        choice: ToolChoice = "auto",
        deps: Any = None,
        cancel: Cancel | None = None,
        answers: Mapping[str, Answer] | None = None,
    ) -> None:
        self._conversation = conversation
        self._plan = plan
        self._progress = progress
        self._meter = progress.meter
        self._new = new
        self._choice: ToolChoice = choice
        self._deps = deps
        self._cancel = cancel or Cancel()
        self._answers = answers or {}
        self._stop: StopReason | None = None
        self._answer: Any = None
        self._error: Exception | None = None
        self._reason = ""
        self._partial: PartialReply | None = None
        self._calls: Calls | None = None
        self._refused = 0
        self._unfit = False
        self._transfer: Any = None

    @property
    def handed_to(self) -> Any:
        """The agent that goes on with the run, or None: a run that stops is handed to nobody."""
        return self._transfer if self._stop is None else None

    async def events(self) -> AsyncGenerator[Event]:
        """Everything that happens, in order; the last event is `RunFinished` unless another agent goes on."""
        self._observer = watch(self._plan.observers, self._info())
        self._rules = self._call_rules()
        self._offer = Offer(self._plan.tools, self._plan.output, self._rules.worn_out)
        self._charge = from_any_thread(self._meter.charge)
        self._deadline = asyncio.get_running_loop().time() + self._progress.seconds_left
        try:
            async with aclosing(self._steps()) as steps:
                async for event in steps:
                    yield event
        except Interrupted as interrupted:
            self._stop = interrupted.args[0]
        except (ModelError, GuardError) as error:
            self._stop, self._error = "error", error
        finally:
            self._settle()
            result = self._result()
            self._observer.run_finished(result)
        if self.handed_to is None:
            yield RunFinished(result)

    async def _steps(self) -> AsyncGenerator[Event]:
        async with aclosing(self._begin()) as begun:
            async for event in begun:
                yield event
        while self._stop is None and self._transfer is None:
            async with aclosing(self._compact()) as compacted:
                async for event in compacted:
                    yield event
            if self._plan.refresh is not None:
                await self._guard(self._plan.refresh)
            self._meter.steps += 1
            yield StepStarted(self._meter.steps)
            reply: ReplyFinished | None = None
            async with aclosing(self._reply()) as stream:
                async for event in stream:
                    if isinstance(event, ReplyFinished):
                        reply = event
                    yield event
            if reply is None:
                raise ModelError("the model ended its reply without finishing it")
            if reply.message.calls:
                async with aclosing(self._run_calls(reply.message.calls)) as finished:
                    async for event in finished:
                        yield event
            yield StepFinished(self._meter.steps, reply.usage)
            self._stop = self._stop or await self._verdict(reply)

    async def _begin(self) -> AsyncGenerator[Event]:
        """Take up what waited for an answer, then what is new."""
        if self._new and (objection := await self._objection(self._plan.input_guards, tuple(self._new))):
            self._stop = self._block(objection)
            return
        if waiting := self._conversation.waiting:
            answers = {call.id: refusal(self._answers.get(call.id, UNANSWERED)) for call in waiting}
            calls = self._conversation.last_calls
            async with aclosing(self._run_calls(calls, self._conversation.noted, answers)) as finished:
                async for event in finished:
                    yield event
        else:
            self._conversation.settle()
        for message in self._new:
            self._conversation.append(message)

    # A step: compaction, reply, calls

    async def _compact(self) -> AsyncGenerator[Event]:
        talk, plan, compaction = self._conversation, self._plan, self._plan.compaction
        if compaction is None or not compaction.due(talk.tokens, talk.shortest or 0):
            return
        made = await self._guard(lambda: shortened(compaction, talk.messages, plan.model, plan.settings))
        if made is None:
            talk.shortest = talk.tokens
            return
        self._meter.charge(made.usage)
        await talk.restart(made.messages)
        talk.shortest = None
        yield made.event

    async def _reply(self) -> AsyncGenerator[ModelEvent]:
        self._partial = PartialReply()
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
                        self._meter.charge(event.usage)
                        yield event
                        return
                    yield event
        except BaseException as error:
            failure = error
            if isinstance(error, ModelError):  # Nobody knows what its thread has read.
                await self._conversation.detach()
            raise
        finally:
            seen.reply_finished(reply, failure)

    def _envelope(self) -> Envelope:
        answer = self._meter.calls_left == 0 or (
            self._plan.output is not None and (self._unfit or not len(self._plan.tools))
        )
        choice, self._choice = self._choice, "auto"
        return self._offer.envelope(choice, answer=answer)

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

    async def _run_calls(
        self,
        calls: Sequence[ToolCall],
        known: Sequence[ToolResult | None] = (),
        answers: Mapping[str, Denied | None] | None = None,
    ) -> AsyncGenerator[CallEvent | ApprovalNeeded]:
        self._calls = Calls(calls, self._plan.tools, self._rules, self._meter.calls_left, known, answers)
        async with aclosing(self._calls.run(self._guard)) as events:
            async for event in events:
                yield event
        if waiting := self._calls.waiting:
            self._stop = "approval"
            self._close_calls()
            yield ApprovalNeeded(tuple(waiting))
        else:
            self._close_calls()

    def _close_calls(self) -> None:
        """Put the results of the last reply's calls into the conversation, complete or not."""
        calls, self._calls = self._calls, None
        if calls is None:
            return
        self._meter.calls += calls.ran
        new = [index for index, one in enumerate(calls.results) if one is not None and index not in calls.known]
        results = list(calls.results)
        told = self._progress.repeats.note([calls.calls[i] for i in new], [r for i in new if (r := results[i])])
        for index, result in zip(new, told, strict=True):
            results[index] = result
            self._progress.records.append(CallRecord(calls.calls[index], result))
        if self._stop == "approval":
            self._note(results, [call.id for call in calls.waiting])
            return
        self._conversation.settle(results)
        self._transfer = next((tool.agent for result in results if (tool := self._handoff(result))), None)

    def _handoff(self, result: ToolResult | None) -> Handoff | None:
        tool = self._plan.tools.get(result.name) if result is not None and not result.is_error else None
        return tool if isinstance(tool, Handoff) else None

    # What becomes of a reply

    async def _verdict(self, reply: ReplyFinished) -> StopReason | None:
        """Why the run ends after this step, or None when it goes on."""
        if self._progress.repeats.looping:
            return "loop"
        if not reply.message.calls:
            return await self._judge(reply)
        return self._meter.reached

    async def _judge(self, reply: ReplyFinished) -> StopReason | None:
        """Take the answer as it is, or as the output type; an answer that isn't one is asked for again."""
        output, text = self._plan.output, reply.message.text
        if reply.stop == "length":
            whole = output is not None or self._plan.output_guards  # Half an answer cannot be judged.
            self._answer = None if whole else text
            return "tokens"
        try:
            answer = output.parse(text) if output is not None else text
        except OutputMismatch as error:
            assert output is not None
            self._unfit = True
            return self._again(output.request(error), f"the answer does not fit the output type: {error}")
        self._unfit = False  # A guard may want more looked up, so the next reply may make calls.
        objection = await self._objection(self._plan.output_guards, answer)
        if isinstance(objection, Retry):
            return self._again(objection.feedback, f"a guard refused the answer: {objection.feedback}")
        if objection is not None:
            return self._block(objection)
        self._answer = answer
        return "done"

    def _again(self, request: str, failure: str) -> StopReason | None:
        """Ask for another answer, or give up after `OUTPUT_TRIES`."""
        self._refused += 1
        if self._refused >= OUTPUT_TRIES:
            self._error = ModelError(failure)
            return "error"
        self._conversation.append(UserMessage(request))
        return self._meter.reached

    async def _objection(self, guards: Sequence[Callable[[Any], Any]], value: Any) -> Block | Retry | None:
        return await self._guard(lambda: judged(guards, value)) if guards else None

    def _block(self, objection: Block | Retry) -> StopReason:
        self._reason = objection.reason if isinstance(objection, Block) else objection.feedback
        return "blocked"

    # What tools, observers and callers are told

    def _call_rules(self) -> CallRules:
        plan = self._plan
        return CallRules(
            context=self._context,
            approval=plan.approval,
            hooks=plan.hooks,
            spill=plan.spill,
            observer=self._observer,
            note=self._note,
        )

    def _note(self, results: Sequence[ToolResult | None], waiting: Sequence[str]) -> None:
        self._conversation.note(results, waiting, self._plan.name)

    def _context(self, call: ToolCall, progress: Callable[[str, float | None], None]) -> Context[Any]:
        talk = self._conversation
        return Context(
            self._deps,
            call,
            self._plan.model,
            on_progress=progress,
            on_usage=self._charge,
            on_messages=lambda: talk.messages,
            on_left=lambda: self._meter.left,
        )

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
        """Leave a valid history behind, whatever happened. Calls that wait for an answer are left to wait."""
        partial, self._partial = self._partial, None
        said = partial.message() if partial is not None else None
        if said is not None and said != AssistantMessage():  # A thread closes what it began, said or not.
            self._conversation.record(said)
        self._close_calls()
        if not self._conversation.waiting:
            self._conversation.settle()

    def _result(self) -> RunResult[Any]:
        return RunResult(
            output=self._answer,
            stop=self._stop or ("done" if self._transfer is not None else "error"),
            steps=self._meter.steps,
            calls=tuple(self._progress.records),
            messages=self._conversation.messages,
            usage=self._meter.usage,
            seconds=self._progress.seconds,
            conversation=self._conversation,
            error=self._error,
            reason=self._reason,
            pending=self._conversation.waiting,
        )

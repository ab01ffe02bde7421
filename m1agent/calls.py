"""Running the calls of one reply: together, each on its own terms, and with an eye on repetition."""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import anyio

from m1agent.approval import Approval, ApprovalRequest, Denied
from m1agent.budget import ResultBudget, Spill
from m1agent.context import Context
from m1agent.errors import InvalidArguments, ToolError
from m1agent.events import ToolFinished, ToolProgress, ToolStarted
from m1agent.hooks import Hooks, settled
from m1agent.messages import Part, ToolCall, ToolOutput, ToolResult
from m1agent.observe import UNOBSERVED, RunObserver
from m1agent.schema import canonical_json
from m1agent.tools import Tool, Toolset, Validated

STOPPED = "This call was stopped before it finished."
SPENT = "This call was not run: the tool calls allowed in this run are used up. Answer with what you have."
WORN_OUT = "This call was not run: {name} failed {count} times in a row and is not offered any more in this run."
TOLD_AT, STOP_AT = 3, 4
REPEATED = "\n\nYou have made this call {count} times with the same result. Do something else, or answer."
GRACE = 5.0

CallEvent: TypeAlias = ToolStarted | ToolProgress | ToolFinished
Guard: TypeAlias = Callable[[Callable[[], Awaitable[Any]]], Awaitable[Any]]


@dataclass(slots=True)
class Repeats:
    """Counts calls that were made again with the same arguments and brought the same result."""

    seen: dict[tuple[str, str], tuple[str, int]] = field(default_factory=dict[tuple[str, str], tuple[str, int]])
    worst: int = 0

    def note(self, calls: Sequence[ToolCall], results: Sequence[ToolResult]) -> list[ToolResult]:
        """Count one reply's calls, twins in one reply once; the results say so where the model repeats itself."""
        counted: dict[tuple[str, str], int] = {}
        told: list[ToolResult] = []
        for call, result in zip(calls, results, strict=True):
            key = (call.name, canonical_json(call.arguments) if call.problem is None else call.problem)
            if key not in counted:
                content, count = self.seen.get(key, (result.content, 0))
                counted[key] = count + 1 if content == result.content else 1
                self.seen[key] = (result.content, counted[key])
            count = counted[key]
            self.worst = max(self.worst, count)
            note = REPEATED.format(count=count) if count >= TOLD_AT else ""
            told.append(replace(result, content=result.content + note) if note else result)
        return told


@dataclass(slots=True, kw_only=True)
class CallRules:
    """What holds for all calls of a run. `context` makes what a tool may know of the run that calls it."""

    context: Callable[[ToolCall, Callable[[str, float | None], None]], Context[Any]]
    approval: Approval = field(default_factory=Approval)
    hooks: Hooks = field(default_factory=Hooks)
    spill: Spill = field(default_factory=lambda: Spill(ResultBudget()))
    observer: RunObserver = UNOBSERVED
    note: Callable[[Sequence[ToolResult | None]], None] = lambda results: None
    failures: dict[str, int] = field(default_factory=dict[str, int])

    def worn_out(self, tool: Tool) -> bool:
        """Whether the tool failed as often in a row as it may."""
        return tool.retries is not None and self.failures.get(tool.name, 0) >= tool.retries


@dataclass(slots=True)
class _Job:
    index: int
    call: ToolCall
    tool: Tool
    checked: Validated
    ask: bool = False
    seconds: float = 0.0


class Calls:
    """The calls of one reply. `results` holds, in the order of the calls, what is known so far.

    Args:
        calls: the reply's calls.
        tools: what they may call.
        rules: what holds for them.
        allowed: how many may run; None for any number.
        known: results of calls that are already settled.
        answers: approvals by call id, given from outside.
    """

    def __init__(
        self,
        calls: Sequence[ToolCall],
        tools: Toolset,
        rules: CallRules,
        allowed: int | None = None,
        known: Sequence[ToolResult | None] = (),
        answers: Mapping[str, Denied | None] | None = None,
    ) -> None:
        self.calls = tuple(calls)
        self.results: list[ToolResult | None] = [*known, *[None] * (len(self.calls) - len(known))]
        self.known = frozenset(index for index, result in enumerate(known) if result is not None)
        self.waiting: list[ToolCall] = []
        self.ran = 0
        self._tools = tools
        self._rules = rules
        self._allowed = allowed
        self._answers = answers or {}
        self._asking = asyncio.Lock()
        self._news: deque[ToolStarted | ToolProgress] = deque()
        self._wake: asyncio.Future[None] | None = None

    async def run(self, guard: Guard) -> AsyncGenerator[CallEvent]:
        """Run all calls at the same time; tell when each starts and finishes. Closing it cancels what still runs."""
        jobs: list[_Job] = []
        for index, call in enumerate(self.calls):
            if self.results[index] is not None:
                continue
            checked = self._check(index, call)
            if checked is None:
                self.waiting.append(call)
            elif isinstance(checked, str):
                self._finish(index, checked, is_error=True)
                yield self._told(index, 0.0)
            else:
                jobs.append(checked)
        for job in jobs:
            if not job.ask:
                yield ToolStarted(job.call)
        running = {asyncio.create_task(self._run(job), name=job.tool.name): job for job in jobs}
        waiting = set(running)
        try:
            while waiting:
                done = await guard(functools.partial(self._wait, waiting, any(_may_tell(job) for job in jobs)))
                waiting -= done
                while self._news:
                    yield self._news.popleft()
                for job in sorted((running[task] for task in done), key=lambda job: job.index):
                    yield self._finished(job)
                if waiting and done:
                    self._rules.note(self.results)
        finally:
            await _cancel([task for task in running if not task.done()])

    async def _wait(self, waiting: set[asyncio.Task[None]], may_tell: bool) -> set[asyncio.Task[None]]:
        """The tasks that are done, once there are any or there is news."""
        if not may_tell:
            return (await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED))[0]
        self._wake = asyncio.get_running_loop().create_future()
        if self._news:
            self._wake.set_result(None)
        done, _ = await asyncio.wait({*waiting, self._wake}, return_when=asyncio.FIRST_COMPLETED)
        return {task for task in done if task in waiting}  # type: ignore[misc]

    def _tell(self, event: ToolStarted | ToolProgress) -> None:
        self._news.append(event)
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def _check(self, index: int, call: ToolCall) -> _Job | str | None:
        """What is to run, or what the model is told instead; None when the call waits for an answer."""
        if call.problem is not None and not call.name:
            return f"This could not be read as a call: {call.problem}"
        tool = self._tools.get(call.name)
        if tool is None:
            return self._tools.unknown(call.name)
        if call.problem is not None:
            return f"The call of {call.name} could not be read: {call.problem}"
        if self._allowed is not None and self.ran >= self._allowed:
            return SPENT
        if self._rules.worn_out(tool):
            return WORN_OUT.format(name=call.name, count=tool.retries)
        if tool.available is not None and not tool.available():
            return f"{call.name} is not available now."
        try:
            checked = tool.validate(call.arguments)
        except InvalidArguments as error:
            self._count(tool, failed=True)
            return str(error)
        return self._approved(_Job(index, call, tool, checked))

    def _approved(self, job: _Job) -> _Job | str | None:
        if job.call.id in self._answers:
            denied = self._answers[job.call.id]
        else:
            decision = self._rules.approval.decide(job.tool, replace(job.call, arguments=job.checked.arguments))
            if decision == "ask":
                if self._rules.approval.ask is None:
                    return None
                job.ask = True
            denied = decision if isinstance(decision, Denied) else None
        if denied is not None:
            return denied.told
        self.ran += 1
        return job

    async def _run(self, job: _Job) -> None:
        seen, error = self._rules.observer, None
        seen.tool_started(job.call, job.tool.spec)
        try:
            output = await self._asked(job) if job.ask else await self._timed(job)
            notes = [f"Note: {line}." for line in job.checked.coercions]
            self._finish(job.index, "\n".join([output.content, *notes]), output.is_error, output.parts)
        except asyncio.CancelledError as cancelled:
            error = cancelled
            self._finish(job.index, STOPPED, is_error=True)
            raise
        except (Exception, SystemExit) as raised:
            error = raised
            told = str(raised) if isinstance(raised, ToolError) else f"{type(raised).__name__}: {raised}"
            self._finish(job.index, told, is_error=True)
        finally:
            result = self.results[job.index]
            assert result is not None
            self._count(job.tool, failed=result.is_error)
            seen.tool_finished(job.call, result, error)

    async def _asked(self, job: _Job) -> ToolResult:
        async with self._asking:
            denied = await self._rules.approval.answer(ApprovalRequest(job.call, job.tool))
        if denied is not None:
            return ToolResult(job.call.id, job.call.name, denied.told, is_error=True)
        self._tell(ToolStarted(job.call))
        return await self._timed(job)

    async def _timed(self, job: _Job) -> ToolResult:
        started = time.perf_counter()
        try:
            return await (self._work(job) if job.tool.timeout is None else self._bounded(job, job.tool.timeout))
        finally:
            job.seconds = time.perf_counter() - started

    async def _bounded(self, job: _Job, seconds: float) -> ToolResult:
        bound = asyncio.timeout(seconds)
        try:
            async with bound:
                return await self._work(job)
        except TimeoutError:
            if bound.expired():
                raise ToolError(f"{job.call.name} did not finish within {seconds:g} seconds.") from None
            raise

    async def _work(self, job: _Job) -> ToolResult:
        """Run the tool between the hooks."""
        hooks, context = self._rules.hooks, self._context(job)
        output: ToolOutput | None = None
        if hooks.before_call is not None and context is not None:
            given = await settled(hooks.before_call(context, job.call))
            if isinstance(given, ToolCall):
                job.tool = self._tool(given)
                job.checked = job.tool.validate(given.arguments)
            elif given is not None:
                output = given
        if output is None:
            output = await job.tool.run(job.checked, context)
        result = ToolResult(job.call.id, job.call.name, output.content, parts=output.parts)
        if hooks.after_call is not None and context is not None:
            result = await settled(hooks.after_call(context, job.call, result)) or result
        return result

    def _tool(self, call: ToolCall) -> Tool:
        tool = self._tools.get(call.name)
        if tool is None:
            raise ToolError(self._tools.unknown(call.name))
        return tool

    def _context(self, job: _Job) -> Context[Any] | None:
        if not (job.tool.takes_context or self._rules.hooks.any):
            return None
        loop, thread = asyncio.get_running_loop(), threading.get_ident()

        def progress(message: str, fraction: float | None) -> None:
            event = ToolProgress(job.call, message, fraction)
            if threading.get_ident() == thread:
                self._tell(event)
            else:
                with suppress(RuntimeError):  # A thread that outlived its run and its loop.
                    loop.call_soon_threadsafe(self._tell, event)

        return self._rules.context(job.call, progress)

    def _count(self, tool: Tool, *, failed: bool) -> None:
        if tool.retries is not None:
            self._rules.failures[tool.name] = self._rules.failures.get(tool.name, 0) + 1 if failed else 0

    def _finish(self, index: int, content: str, is_error: bool, parts: tuple[Part, ...] = ()) -> None:
        call = self.calls[index]
        self.results[index] = self._rules.spill.fit(ToolResult(call.id, call.name, content, is_error, parts))

    def _finished(self, job: _Job) -> ToolFinished:
        result = self.results[job.index]
        assert result is not None
        return ToolFinished(job.call, result, job.seconds)

    def _told(self, index: int, seconds: float) -> ToolFinished:
        """A call that is never run, with what the model is told of it."""
        result = self.results[index]
        assert result is not None
        self._rules.observer.tool_finished(self.calls[index], result, None)
        return ToolFinished(self.calls[index], result, seconds)


def _may_tell(job: _Job) -> bool:
    return job.ask or job.tool.takes_context


async def _cancel(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        with anyio.move_on_after(GRACE, shield=True):
            await asyncio.wait(tasks)

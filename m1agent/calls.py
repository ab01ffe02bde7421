"""Running the calls of one reply: together, and each on its own terms."""

from __future__ import annotations

import asyncio
import copy
import functools
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, ParamSpec, TypeAlias

import anyio

from m1agent.approval import Approval, ApprovalRequest, Denied
from m1agent.budget import ResultBudget, Spill
from m1agent.context import Context
from m1agent.delegation import Handoff
from m1agent.errors import InvalidArguments, ToolError
from m1agent.events import ToolFinished, ToolProgress, ToolStarted
from m1agent.hooks import Hooks
from m1agent.messages import ToolCall, ToolOutput, ToolResult
from m1agent.observe import UNOBSERVED, RunObserver
from m1agent.tools import Tool, Validated
from m1agent.toolset import Toolset

STOPPED = "This call was stopped before it finished."
SPENT = "This call was not run: the tool calls allowed in this run are used up. Answer with what you have."
WORN_OUT = "This call was not run: {name} failed {count} times in a row and is not offered any more in this run."
HANDED = "This call was not run: one call of a reply may hand the conversation over, and {name} came before it."
GRACE = 5.0

P = ParamSpec("P")
CallEvent: TypeAlias = ToolStarted | ToolProgress | ToolFinished
Guard: TypeAlias = Callable[[Callable[[], Awaitable[Any]]], Awaitable[Any]]


@dataclass(slots=True, kw_only=True)
class CallRules:
    """What holds for all calls of a run.

    `context` makes what a tool may know of the run that calls it. `note` is told of results while other calls still
    run, with the ids of those that wait for an answer.
    """

    context: Callable[[ToolCall, Callable[[str, float | None], None]], Context[Any]]
    approval: Approval = field(default_factory=Approval)
    hooks: Hooks = field(default_factory=Hooks)
    spill: Spill = field(default_factory=lambda: Spill(ResultBudget()))
    observer: RunObserver = UNOBSERVED
    note: Callable[[Sequence[ToolResult | None], Sequence[str]], None] = lambda results, waiting: None
    failures: dict[str, int] = field(default_factory=dict[str, int])

    def worn_out(self, tool: Tool) -> bool:
        """Whether the tool failed as often in a row as it may."""
        return tool.retries is not None and self.failures.get(tool.name, 0) >= tool.retries

    def count(self, tool: Tool, *, failed: bool) -> None:
        """Count a failure; a success begins anew."""
        if tool.retries is not None:
            self.failures[tool.name] = self.failures.get(tool.name, 0) + 1 if failed else 0


@dataclass(slots=True)
class _Job:
    """A call that is to run. A hook may give it another tool and other arguments."""

    index: int
    call: ToolCall
    tool: Tool
    checked: Validated
    ask: bool = False
    error: BaseException | None = None
    seconds: float = 0.0

    @property
    def shown(self) -> ToolCall:
        """The call for the eyes of others: what they do to its arguments changes no history."""
        return replace(self.call, arguments=copy.deepcopy(self.call.arguments))

    def failed(self, told: str) -> ToolResult:
        return ToolResult(self.call.id, self.call.name, told, is_error=True)

    def returned(self, output: ToolOutput) -> ToolResult:
        notes = [f"Note: {line}." for line in self.checked.coercions]
        return ToolResult(self.call.id, self.call.name, "\n".join([output.content, *notes]), parts=output.parts)


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
        self._handed = ""
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
            elif isinstance(checked, _Job):
                jobs.append(checked)
            else:
                yield self._refuse(index, checked)
        if self.waiting:
            self._note()
        for job in jobs:
            if not job.ask:
                yield ToolStarted(job.call)
        running = {asyncio.create_task(self._run(job), name=job.tool.name): job for job in jobs}
        left, may_tell = set(running), any(map(self._may_tell, jobs))
        try:
            while left:
                done = await guard(functools.partial(self._wait, left, may_tell))
                left -= done
                while self._news:
                    yield self._news.popleft()
                if done:
                    self._note()  # Before it is told, so that what was told is safe.
                for job in sorted((running[task] for task in done), key=lambda job: job.index):
                    yield ToolFinished(job.call, self._result(job.index), job.seconds)
        finally:
            await _cancel([task for task in running if not task.done()])

    # What happens to a call: refused, run, asked about here, or left waiting for an answer from outside

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
        if isinstance(tool, Handoff) and self._handed:
            return HANDED.format(name=self._handed)
        if self._rules.worn_out(tool):
            return WORN_OUT.format(name=call.name, count=tool.retries)
        try:
            if tool.available is not None and not tool.available():
                return f"{call.name} is not available now."
            return self._approved(_Job(index, call, tool, tool.validate(call.arguments)))
        except InvalidArguments as error:
            self._rules.count(tool, failed=True)
            return str(error)
        except Exception as error:  # From the tool's own `available` or `approval`; a call nobody judged is not run.
            return f"Whether {call.name} may run could not be found out: {_told(error)}"

    def _approved(self, job: _Job) -> _Job | str | None:
        approval = self._rules.approval
        if job.call.id in self._answers:
            decision = self._answers[job.call.id] or "allow"
        else:
            decision = approval.decide(job.tool, replace(job.call, arguments=job.checked.arguments))
        if isinstance(decision, Denied):
            return decision.told
        if isinstance(job.tool, Handoff):
            self._handed = job.call.name
        if decision == "ask" and approval.ask is None:
            return None
        job.ask = decision == "ask"
        self.ran += 1
        return job

    def _refuse(self, index: int, told: str) -> ToolFinished:
        """A call that is never run, with what the model is told of it."""
        call = self.calls[index]
        result = self._finish(index, ToolResult(call.id, call.name, told, is_error=True))
        self._rules.observer.tool_finished(call, result, None)
        return ToolFinished(call, result, 0.0)

    # One call, in a task of its own

    async def _run(self, job: _Job) -> None:
        seen, result = self._rules.observer, job.failed(STOPPED)
        seen.tool_started(job.call, job.tool.spec)
        try:
            denied = await self._asked(job) if job.ask else None
            result = await self._timed(job) if denied is None else job.failed(denied.told)
        except (asyncio.CancelledError, KeyboardInterrupt) as error:
            job.error = error
            raise
        except BaseException as error:
            job.error, result = error, job.failed(_told(error))
        finally:
            seen.tool_finished(job.call, self._finish(job.index, result), job.error)

    async def _asked(self, job: _Job) -> Denied | None:
        async with self._asking:
            denied = await self._rules.approval.answer(ApprovalRequest(job.shown, job.tool))
        if denied is None:
            self._tell(ToolStarted(job.call))
        else:
            self.ran -= 1
        return denied

    async def _timed(self, job: _Job) -> ToolResult:
        started = time.perf_counter()
        try:
            result = await self._work(job)
        finally:
            job.seconds = time.perf_counter() - started
        self._rules.count(job.tool, failed=result.is_error)
        return result

    async def _work(self, job: _Job) -> ToolResult:
        """Run the tool between the hooks; what it raises is a result too."""
        context = self._context(job)
        try:
            result = job.returned(await self._output(job, context))
        except (asyncio.CancelledError, KeyboardInterrupt):
            raise
        except BaseException as error:
            job.error, result = error, job.failed(_told(error))
        return result if context is None else await self._rules.hooks.after(context, job.shown, result)

    async def _output(self, job: _Job, context: Context[Any] | None) -> ToolOutput:
        if context is not None:
            given = await self._rules.hooks.before(context, job.shown)
            if isinstance(given, ToolOutput):
                return given
            if given is not None:
                job.tool = self._named(given.name)
                job.checked = job.tool.validate(given.arguments)
                context = replace(context, call=replace(given, arguments=copy.deepcopy(given.arguments)))
        bound = asyncio.timeout(job.tool.timeout)
        try:
            async with bound:
                return await job.tool.run(job.checked, context)
        except TimeoutError:
            if not bound.expired():
                raise
            raise ToolError(f"{job.tool.name} did not finish within {job.tool.timeout:g} seconds.") from None

    def _named(self, name: str) -> Tool:
        tool = self._tools.get(name)
        if tool is None:
            raise ToolError(self._tools.unknown(name))
        return tool

    # What is known and told

    def _context(self, job: _Job) -> Context[Any] | None:
        def progress(message: str, fraction: float | None) -> None:
            if self.results[job.index] is None:
                self._tell(ToolProgress(job.call, message, fraction))

        if not self._may_tell(job):
            return None
        context = self._rules.context(job.shown, from_any_thread(progress))
        return context if self._rules.approval.ask is None else replace(context, ask=self._ask)

    async def _ask(self, request: ApprovalRequest) -> Denied | bool:
        """Ask on behalf of an agent that a call puts to work: about one call at a time, as about this run's own."""
        async with self._asking:
            return await self._rules.approval.answer(request) or True

    def _may_tell(self, job: _Job) -> bool:
        return job.ask or job.tool.takes_context or self._rules.hooks.any

    def _tell(self, event: ToolStarted | ToolProgress) -> None:
        self._news.append(event)
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def _wait(self, tasks: set[asyncio.Task[None]], may_tell: bool) -> set[asyncio.Task[None]]:
        """The tasks that are done, once there are any or there is news."""
        if not may_tell:
            return (await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED))[0]
        self._wake = asyncio.get_running_loop().create_future()
        if self._news:
            self._wake.set_result(None)
        await asyncio.wait({*tasks, self._wake}, return_when=asyncio.FIRST_COMPLETED)
        return {task for task in tasks if task.done()}

    def _finish(self, index: int, result: ToolResult) -> ToolResult:
        call = self.calls[index]
        kept = self._rules.spill.fit(replace(result, call_id=call.id, name=call.name))
        self.results[index] = kept
        return kept

    def _result(self, index: int) -> ToolResult:
        result = self.results[index]
        assert result is not None
        return result

    def _note(self) -> None:
        self._rules.note(self.results, [call.id for call in self.waiting])


def from_any_thread(function: Callable[P, None]) -> Callable[P, None]:
    """`function`, run in the event loop of this moment whichever thread calls it, in the order of the calls."""
    loop, thread = asyncio.get_running_loop(), threading.get_ident()

    def call(*args: P.args, **kwargs: P.kwargs) -> None:
        if threading.get_ident() == thread:
            function(*args, **kwargs)
            return
        with suppress(RuntimeError):  # A thread that outlived its run and its loop.
            loop.call_soon_threadsafe(functools.partial(function, *args, **kwargs))

    return call


def _told(error: BaseException) -> str:
    """What the model is told of an error; a `ToolError` in its own words alone."""
    try:
        return str(error) if isinstance(error, ToolError) else f"{type(error).__name__}: {error}"
    except Exception:
        return type(error).__name__


async def _cancel(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        with anyio.move_on_after(GRACE, shield=True):
            await asyncio.wait(tasks)

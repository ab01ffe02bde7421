"""Running the calls of one reply: together, each on its own terms, and with an eye on repetition."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import anyio

from m1agent.errors import InvalidArguments, ToolError
from m1agent.events import ToolFinished, ToolStarted
from m1agent.messages import ToolCall, ToolResult
from m1agent.schema import canonical_json
from m1agent.tools import Tool, Toolset, Validated

STOPPED = "This call was stopped before it finished."
SPENT = "This call was not run: the tool calls allowed in this run are used up. Answer with what you have."
TOLD_AT, STOP_AT = 3, 4
REPEATED = "\n\nYou have made this call {count} times with the same result. Do something else, or answer."
GRACE = 5.0

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


class Calls:
    """The calls of one reply. `results` holds, in the order of the calls, what is known so far."""

    def __init__(self, calls: Sequence[ToolCall], tools: Toolset, allowed: int | None) -> None:
        self.calls = tuple(calls)
        self.results: list[ToolResult | None] = [None] * len(self.calls)
        self.ran = 0
        self._tools = tools
        self._allowed = allowed
        self._seconds = [0.0] * len(self.calls)

    async def run(self, guard: Guard) -> AsyncGenerator[ToolStarted | ToolFinished]:
        """Run all calls at the same time; tell when each starts and finishes. Closing it cancels what still runs."""
        ready: list[tuple[int, Tool, Validated]] = []
        for index, call in enumerate(self.calls):
            checked = self._check(call)
            if isinstance(checked, str):
                self._finish(index, checked, is_error=True)
                yield self._finished(index)
            else:
                ready.append((index, *checked))
        for index, _, _ in ready:
            yield ToolStarted(self.calls[index])
        running = {asyncio.create_task(self._run(*item), name=item[1].name): item[0] for item in ready}
        waiting = set(running)
        try:
            while waiting:
                done, waiting = await guard(
                    functools.partial(asyncio.wait, waiting, return_when=asyncio.FIRST_COMPLETED)
                )
                for index in sorted(running[task] for task in done):
                    yield self._finished(index)
        finally:
            await _cancel([task for task in running if not task.done()])

    def _check(self, call: ToolCall) -> tuple[Tool, Validated] | str:
        """The tool and its checked arguments, or what the model is told instead."""
        if call.problem is not None and not call.name:
            return f"This could not be read as a call: {call.problem}"
        tool = self._tools.get(call.name)
        if tool is None:
            return self._tools.unknown(call.name)
        if call.problem is not None:
            return f"The call of {call.name} could not be read: {call.problem}"
        if self._allowed is not None and self.ran >= self._allowed:
            return SPENT
        try:
            checked = tool.validate(call.arguments)
        except InvalidArguments as error:
            return str(error)
        self.ran += 1
        return tool, checked

    async def _run(self, index: int, tool: Tool, checked: Validated) -> None:
        started = time.perf_counter()
        try:
            content, is_error = await tool.run(checked), False
        except ToolError as error:
            content, is_error = str(error), True
        except (Exception, SystemExit) as error:
            content, is_error = f"{type(error).__name__}: {error}", True
        except asyncio.CancelledError:
            self._finish(index, STOPPED, is_error=True)
            raise
        self._seconds[index] = time.perf_counter() - started
        self._finish(index, "\n".join([content, *(f"Note: {line}." for line in checked.coercions)]), is_error)

    def _finish(self, index: int, content: str, is_error: bool) -> None:
        call = self.calls[index]
        self.results[index] = ToolResult(call.id, call.name, content, is_error)

    def _finished(self, index: int) -> ToolFinished:
        result = self.results[index]
        assert result is not None
        return ToolFinished(self.calls[index], result, self._seconds[index])


async def _cancel(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        with anyio.move_on_after(GRACE, shield=True):
            await asyncio.wait(tasks)

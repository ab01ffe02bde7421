"""Sync functions beside the event loop, in daemon threads that are used again.

The threads of asyncio and of anyio are counted and waited for: enough functions that hang stop all others, and the
interpreter does not exit while one hangs. Here a call that finds no idle thread starts one, a cancelled call leaves its
thread behind, and a thread that has been idle for `IDLE_SECONDS` ends.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context, copy_context
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")
IDLE_SECONDS = 10.0


@dataclass(slots=True)
class _Job:
    work: Callable[[], Any]
    context: Context
    loop: asyncio.AbstractEventLoop
    done: asyncio.Future[_Outcome]

    def run(self) -> _Outcome:
        try:
            return _Outcome(self.context.run(self.work))
        except BaseException as error:
            return _Outcome(error=error)

    def tell(self, outcome: _Outcome) -> None:
        with suppress(RuntimeError):  # The loop was closed while the function hung.
            self.loop.call_soon_threadsafe(self._settle, outcome)

    def _settle(self, outcome: _Outcome) -> None:
        if not self.done.done():
            self.done.set_result(outcome)


@dataclass(slots=True)
class _Outcome:
    """What a function came to. A future refuses StopIteration as its exception, so errors travel in here."""

    value: Any = None
    error: BaseException | None = None


class _Worker:
    """One thread; while it waits for a job it stands in `_idle`."""

    def __init__(self, first: _Job) -> None:
        self._jobs: SimpleQueue[_Job] = SimpleQueue()
        self._jobs.put(first)
        threading.Thread(target=self._live, name="m1agent sync tool", daemon=True).start()

    def give(self, job: _Job) -> None:
        self._jobs.put(job)

    def _live(self) -> None:
        while (job := self._next()) is not None:
            outcome = job.run()
            # Idle before the caller knows, so that its next call finds this thread.
            _idle.append(self)
            job.tell(outcome)
            del job, outcome

    def _next(self) -> _Job | None:
        try:
            return self._jobs.get(timeout=IDLE_SECONDS)
        except Empty:
            try:
                _idle.remove(self)
            except ValueError:  # It was picked in this very moment: a job is on its way.
                return self._jobs.get()
            return None


_idle: deque[_Worker] = deque()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_idle.clear)


async def in_thread(work: Callable[[], T]) -> T:
    """The result of `work`, run in a thread with the caller's context variables.

    Cancelling does not wait for `work`; what it returns or raises then is lost. What it raises passes through,
    SystemExit too; StopIteration becomes the RuntimeError that Python makes of it in a coroutine.
    """
    loop = asyncio.get_running_loop()
    job = _Job(work, copy_context(), loop, loop.create_future())
    try:
        worker = _idle.pop()
    except IndexError:
        _Worker(job)
    else:
        worker.give(job)
    outcome = await job.done
    if outcome.error is None:
        return outcome.value
    try:
        raise outcome.error
    finally:
        del outcome, job  # The error's traceback holds this frame.

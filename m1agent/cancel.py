"""Ending runs from outside."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextlib import suppress
from math import inf
from typing import Any, TypeVar

T = TypeVar("T")
AGAIN = 0.1


class Cancel:
    """Ends runs from outside: `cancel()` may be called from any task, thread or signal handler."""

    def __init__(self) -> None:
        self.requested = False
        self._waiting: set[_Wait] = set()

    def cancel(self) -> None:
        """End the runs that were given this object, now and from here on; they return what is finished."""
        self.requested = True
        for wait in list(self._waiting):
            with suppress(RuntimeError):  # A loop that has just been closed has nothing left to end.
                wait.loop.call_soon_threadsafe(wait.end)

    async def race(self, awaitable: Awaitable[T], deadline: float) -> T:
        """The awaited value; raises Interrupted when cancelled, or at `deadline` on the event loop's clock."""
        task = asyncio.current_task()
        assert task is not None
        # Not a cancel scope: several of these are entered in every step, and a scope costs seven times as much.
        wait = _Wait(task)
        self._waiting.add(wait)
        timer = None if deadline == inf else wait.loop.call_at(deadline, wait.end)
        if self.requested:  # By another thread, after the caller looked.
            wait.loop.call_soon(wait.end)
        try:
            value = await awaitable
        except asyncio.CancelledError:
            if wait.close():
                raise Interrupted("cancelled" if self.requested else "seconds") from None
            raise
        finally:
            self._waiting.discard(wait)
            if timer is not None:
                timer.cancel()
            ended = wait.close()
        if ended:
            raise Interrupted("cancelled" if self.requested else "seconds")
        return value


class _Wait:
    """One wait of a task; `end` cancels it, again and again where what is awaited takes no notice."""

    __slots__ = ("_again", "_before", "_closed", "_ended", "loop", "task")

    def __init__(self, task: asyncio.Task[Any]) -> None:
        self.task, self.loop = task, task.get_loop()
        self._before = task.cancelling()
        self._ended = 0
        self._closed = False
        self._again: asyncio.TimerHandle | None = None

    def end(self) -> None:
        """Cancel the task, once it waits here."""
        if self._closed:
            return
        self._ended += 1
        self.task.cancel()
        self._again = self.loop.call_later(AGAIN, self.end)

    def close(self) -> bool:
        """Take back what was cancelled from here; whether that alone ended the wait."""
        if self._closed:
            return False
        self._closed = True
        if self._again is not None:
            self._again.cancel()
        for _ in range(self._ended):
            self.task.uncancel()
        return self._ended > 0 and self.task.cancelling() <= self._before


class Interrupted(Exception):
    """A wait ended early; `args[0]` is the run's stop reason."""

"""Ending runs from outside."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextlib import suppress
from typing import TypeVar

import anyio

T = TypeVar("T")


class Cancel:
    """Ends runs from outside: `cancel()` may be called from any task, thread or signal handler."""

    def __init__(self) -> None:
        self.requested = False
        self._waiting: dict[anyio.CancelScope, asyncio.AbstractEventLoop] = {}

    def cancel(self) -> None:
        """End the runs that were given this object, now and from here on; they return what is finished."""
        self.requested = True
        for scope, loop in list(self._waiting.items()):
            with suppress(RuntimeError):  # A loop that has just been closed has nothing left to end.
                loop.call_soon_threadsafe(scope.cancel)

    async def race(self, awaitable: Awaitable[T], deadline: float) -> T:
        """The awaited value; raises Interrupted when cancelled, or at `deadline` on the event loop's clock."""
        loop = asyncio.get_running_loop()
        with anyio.CancelScope(deadline=deadline) as scope:
            self._waiting[scope] = loop
            if self.requested:  # By another thread, after the caller looked.
                scope.cancel()
            try:
                return await awaitable
            finally:
                del self._waiting[scope]
        raise Interrupted("cancelled" if self.requested else "seconds")


class Interrupted(Exception):
    """A wait ended early; `args[0]` is the run's stop reason."""

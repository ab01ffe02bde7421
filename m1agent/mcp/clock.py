"""Deadlines of a server's requests, which stand still while the server waits for us."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager


class Clock:
    """Times the requests in flight to one server. A person who is asked, or a model, is not the server's slowness."""

    def __init__(self) -> None:
        self._left: dict[asyncio.Timeout, float] = {}
        self._pauses = 0

    @asynccontextmanager
    async def limit(self, seconds: float) -> AsyncGenerator[None]:
        """Raises TimeoutError once the clock has run for `seconds` in this block."""
        async with asyncio.timeout(None if self._pauses else seconds) as scope:
            self._left[scope] = seconds
            try:
                yield
            finally:
                del self._left[scope]

    @contextmanager
    def paused(self) -> Generator[None]:
        """The clock stands still while one of these blocks is open."""
        self._pauses += 1
        if self._pauses == 1:
            for scope in self._running():
                self._left[scope] = (scope.when() or 0.0) - asyncio.get_running_loop().time()
                scope.reschedule(None)
        try:
            yield
        finally:
            self._pauses -= 1
            if self._pauses == 0:
                for scope in self._running():
                    scope.reschedule(asyncio.get_running_loop().time() + self._left[scope])

    def _running(self) -> list[asyncio.Timeout]:
        return [scope for scope in self._left if not scope.expired()]

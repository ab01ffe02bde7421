"""How many requests are let in: so many at a time, so many that wait, so many a minute."""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from time import monotonic

from m1agent.serve.refused import Refused

CLIENTS = 4096
"""Clients whose rate is remembered."""


class Gate:
    """Lets `running` requests in at a time and `waiting` more wait; the next is refused with 429 and Retry-After."""

    def __init__(self, running: int, waiting: int) -> None:
        self._room = asyncio.Semaphore(running)
        self._places = running
        self._most = waiting
        self._seconds = 1.0
        self.running = 0
        self.waiting = 0

    @asynccontextmanager
    async def pass_through(self) -> AsyncGenerator[None]:
        """Hold a place while the request is answered."""
        if self._room.locked() and self.waiting >= self._most:
            after = str(self._retry_after())
            raise Refused(
                429,
                f"{self.running} requests are being answered and {self.waiting} wait; try again in {after} s",
                code="overloaded",
                headers={"Retry-After": after},
            )
        self.waiting += 1
        try:
            await self._room.acquire()
        finally:
            self.waiting -= 1
        self.running += 1
        began = monotonic()
        try:
            yield
        finally:
            self.running -= 1
            self._seconds += (monotonic() - began - self._seconds) / 16
            self._room.release()

    def _retry_after(self) -> int:
        """Seconds until those that wait now have had their turn."""
        return min(60, max(1, math.ceil(self._seconds * self.waiting / self._places)))


class Rate:
    """At most `per_minute` requests of one client a minute, up to a quarter of them at once."""

    def __init__(self, per_minute: int | None) -> None:
        self._per_second = (per_minute or 0) / 60
        self._most = max(1.0, (per_minute or 0) / 4)
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def count(self, client: str) -> None:
        """One more request of a client. Raises Refused (429, with Retry-After) where it is one too many."""
        if not self._per_second:
            return
        now = monotonic()
        left, at = self._left.pop(client, (self._most, now))
        left = min(self._most, left + (now - at) * self._per_second)
        self._left[client] = (left - 1 if left >= 1 else left, now)
        if len(self._left) > CLIENTS:
            self._left.popitem(last=False)
        if left < 1:
            after = str(math.ceil((1 - left) / self._per_second))
            raise Refused(
                429,
                f"more than {self._per_second * 60:g} requests a minute; try again in {after} s",
                code="rate_limit_exceeded",
                headers={"Retry-After": after},
            )

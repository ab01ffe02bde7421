"""What the engine's thread has for one caller: a queue that can be waited for by a thread or by a coroutine."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Failure:
    error: BaseException


class Mailbox(Generic[T]):
    """Items in order, for one reader."""

    def __init__(self) -> None:
        self._items: deque[T | _Failure] = deque()
        self._filled = threading.Condition()
        self._wakers: list[Callable[[], None]] = []

    def put(self, item: T) -> None:
        """Adds an item."""
        self._put(item)

    def fail(self, error: BaseException) -> None:
        """Adds an error: the reader's `get` raises it."""
        self._put(_Failure(error))

    def get(self) -> T:
        """The next item; blocks until there is one."""
        with self._filled:
            while not self._items:
                self._filled.wait()
            item = self._items.popleft()
        if isinstance(item, _Failure):
            raise item.error
        return item

    async def wait(self) -> None:
        """Returns once `get` would not block."""
        loop = asyncio.get_running_loop()
        filled = loop.create_future()

        def wake() -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(lambda: filled.done() or filled.set_result(None))

        with self._filled:
            if self._items:
                return
            self._wakers.append(wake)
        await filled

    def _put(self, item: T | _Failure) -> None:
        with self._filled:
            self._items.append(item)
            self._filled.notify()
            wakers, self._wakers = self._wakers, []
        for wake in wakers:
            wake()

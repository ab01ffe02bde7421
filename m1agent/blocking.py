"""Async runs for programs that are not async."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")
JOIN_SECONDS = 0.1


def run_blocking(function: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine function to its end; in a thread of its own where an event loop runs in this one."""
    if not _in_loop():
        return asyncio.run(function())
    outcome: list[T] = []
    errors: list[BaseException] = []
    running: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any] | None]] = []

    async def begin() -> T:
        running.append((asyncio.get_running_loop(), asyncio.current_task()))
        return await function()

    def work() -> None:
        try:
            outcome.append(asyncio.run(begin()))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work, name="m1agent run_sync")
    thread.start()
    try:
        _join(thread)
    except BaseException:
        for loop, task in running:
            with suppress(RuntimeError):  # The loop has just ended by itself.
                loop.call_soon_threadsafe(task.cancel if task else loop.stop)
        thread.join()
        raise
    if errors:
        raise errors[0]
    return outcome[0]


def _in_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _join(thread: threading.Thread) -> None:
    """Wait for the thread. Raises KeyboardInterrupt at Ctrl-C, which asyncio's runner makes a cancellation of the task
    that waits here and so could never learn of it."""
    here = asyncio.current_task()
    before = here.cancelling() if here else 0
    while thread.is_alive():
        thread.join(JOIN_SECONDS)
        if here and here.cancelling() > before:
            raise KeyboardInterrupt

"""Work that must not stop the event loop, and that nothing may overtake."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

import anyio

T = TypeVar("T")


async def in_thread(function: Callable[[], T]) -> T:
    """The function's value. A cancellation waits for the thread: nothing else may touch its session before."""
    work = asyncio.get_running_loop().run_in_executor(None, function)
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        with anyio.CancelScope(shield=True):
            while not work.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([work])
        work.exception()
        raise

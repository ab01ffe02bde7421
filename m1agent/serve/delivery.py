"""How an answer goes out: whole or as server-sent events, and no further once the client has left."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing

import anyio
import anyio.lowlevel
from starlette.types import Receive, Send

from m1agent.serve.refused import Refused
from m1agent.serve.wire_out import failure

KEEP_ALIVE_SECONDS = 15.0
KEEP_ALIVE = b": still here\n\n"
DONE = b"data: [DONE]\n\n"


async def while_connected(receive: Receive, work: Callable[[], Awaitable[None]]) -> bool:
    """Do the work, or as much of it as is done when the client leaves; whether it stayed."""
    stayed = True
    async with anyio.create_task_group() as group:

        async def watch() -> None:
            nonlocal stayed
            while (await receive())["type"] != "http.disconnect":
                pass
            stayed = False
            group.cancel_scope.cancel()

        group.start_soon(watch)
        await work()
        group.cancel_scope.cancel()
    return stayed


async def send_json(send: Send, body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
    """A whole answer."""
    await _start(send, status, "application/json", {"Content-Length": str(len(body)), **(headers or {})})
    await send({"type": "http.response.body", "body": body})


async def send_refused(send: Send, refused: Refused) -> None:
    """An error as the whole answer."""
    await send_json(send, failure(refused.body), refused.status, refused.headers)


class EventStream:
    """An answer as server-sent events. While nothing is written, comments keep it from being taken for dead."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._started = False
        self._written = False

    async def deliver(self, chunks: AsyncGenerator[bytes], refusal: Callable[[Exception], Refused]) -> int:
        """Send each chunk as an event, and the end; returns the status.

        An error before anything was sent has a status of its own; a later one is an event, and the last.
        """
        status = 200
        async with anyio.create_task_group() as group, aclosing(chunks):
            group.start_soon(self._beat)
            try:
                async for chunk in chunks:
                    await self._event(b"data: " + chunk + b"\n\n")
            except Exception as error:
                status = await self._fail(refusal(error))
            else:
                await self._event(DONE, last=True)
            group.cancel_scope.cancel()
        return status

    async def _event(self, data: bytes, *, last: bool = False) -> None:
        self._written = True
        if not self._started:
            self._started = True
            await _start(self._send, 200, "text/event-stream; charset=utf-8", {"X-Accel-Buffering": "no"})
        await self._send({"type": "http.response.body", "body": data, "more_body": not last})
        # Sending to a client that has left returns at once: a model that is never waited for would not learn of it.
        await anyio.lowlevel.checkpoint()

    async def _fail(self, refused: Refused) -> int:
        if self._started:
            await self._event(b"data: " + failure(refused.body) + b"\n\n", last=True)
        else:
            self._started = True
            await send_refused(self._send, refused)
        return refused.status

    async def _beat(self) -> None:
        while True:
            self._written = False
            await anyio.sleep(KEEP_ALIVE_SECONDS)
            if not self._written:
                await self._event(KEEP_ALIVE)


async def _start(send: Send, status: int, kind: str, headers: dict[str, str]) -> None:
    given = {"Content-Type": kind, "Cache-Control": "no-store", **headers}
    pairs = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in given.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})

"""uvicorn's HTTP protocol, for clients that are not to be waited for.

uvicorn bounds the time between two requests only. Here a client that connects and says nothing, or sends its request's
head byte by byte, or does not read what it asked for, is cut off.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any, cast

from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle


def bounded(header_seconds: float, write_seconds: float, connections: int) -> Any:
    """The protocol class with these bounds, for `uvicorn.Config(http=...)`."""
    return partial(BoundedProtocol, header_seconds=header_seconds, write_seconds=write_seconds, connections=connections)


class BoundedProtocol(H11Protocol):
    """HTTP/1.1 by h11, with bounds on how long a request's head may take and a client not read, and on connections."""

    def __init__(self, *args: Any, header_seconds: float, write_seconds: float, connections: int, **named: Any) -> None:
        super().__init__(*args, **named)
        self._most = connections
        self._header_seconds = header_seconds
        self._write_seconds = write_seconds
        self._head: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._most:
            transport.abort()
            return
        self._head = self.loop.call_later(self._header_seconds, self._cut)

    def data_received(self, data: bytes) -> None:
        if self._head is None and self._between:
            self._head = self.loop.call_later(self._header_seconds, self._cut)
        super().data_received(data)
        if not self._between:
            self._head = _stopped(self._head)

    def on_response_complete(self) -> None:
        """The next request's head is not late before it begins."""
        super().on_response_complete()
        self._head = _stopped(self._head)

    def connection_lost(self, exc: Exception | None) -> None:
        self._head, self._unread = _stopped(self._head), _stopped(self._unread)
        super().connection_lost(exc)
        self._unset_keepalive_if_required()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(self._write_seconds, self._cut)

    def resume_writing(self) -> None:
        self._unread = _stopped(self._unread)
        super().resume_writing()

    @property
    def _between(self) -> bool:
        """Whether no request's head is complete that is still to be answered."""
        cycle = cast("RequestResponseCycle | None", self.cycle)  # None before the first request.
        return cycle is None or cycle.response_complete

    def _cut(self) -> None:
        self.transport.abort()


def _stopped(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()

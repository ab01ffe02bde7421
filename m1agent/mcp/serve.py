"""Running an MCP server of ours: over this process's stdin and stdout, or over HTTP."""

from __future__ import annotations

import functools
import logging
import os
import socket
import sys
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

from m1agent.threads import in_thread

if TYPE_CHECKING:
    from mcp.server import Server

log = logging.getLogger("m1agent.mcp")
CHUNK = 65536
CLOSE_SECONDS = 3
PATH = "/mcp"


async def serve_stdio(server: Server[Any]) -> None:
    """Serve one client over stdin and stdout until it closes stdin.

    What tools print goes to stderr meanwhile. Cancelling it does not wait for stdin.
    """
    try:
        async with _stdio() as (read, write):
            try:
                await server.run(read, write, server.create_initialization_options())
            finally:
                sys.stdout.flush()  # What was printed must not follow once stdout is the client's again.
    except* BrokenPipeError:
        log.debug("the client is gone")


async def serve_http(server: Server[Any], host: str, port: int, ready: Callable[[str], None] | None = None) -> None:
    """Serve clients over streamable HTTP until cancelled, or until SIGINT or SIGTERM.

    `port` 0 takes a free one; `ready` is told the address once connections are accepted. On a loopback address only
    requests that name a loopback host are answered. There is no authentication: put a proxy before a public address.

    Raises:
        OSError: the address cannot be bound.
    """
    import uvicorn

    with _listening(host, port) as listener:
        app = server.streamable_http_app(host=host, streamable_http_path=PATH)
        config = uvicorn.Config(app, log_config=None, log_level="warning", timeout_graceful_shutdown=CLOSE_SECONDS)
        if ready is not None:
            ready(f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}{PATH}")
        await uvicorn.Server(config).serve(sockets=[listener])


@contextmanager
def _listening(host: str, port: int) -> Generator[socket.socket]:
    """A listening socket: connections are queued from here on, before the server takes them."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family) as listener:
        yield listener


@asynccontextmanager
async def _stdio() -> AsyncGenerator[tuple[Any, Any]]:
    from mcp.server.stdio import stdio_server

    if sys.platform == "win32":
        async with stdio_server() as streams:
            yield streams
        return
    with _private_stdin() as descriptor:
        lines: Any = _Lines(descriptor)
        async with stdio_server(stdin=lines) as streams:
            yield streams


@contextmanager
def _private_stdin() -> Generator[int]:
    """Stdin for ourselves alone: what tools start must not read the client's messages."""
    descriptor, nothing = os.dup(0), os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    try:
        yield descriptor
    finally:
        os.dup2(descriptor, 0)  # `descriptor` stays open: a thread may still be reading it.


class _Lines:
    """The lines of a descriptor, read in a daemon thread: the mcp package's reader holds up the exit until EOF."""

    def __init__(self, descriptor: int) -> None:
        self._read = functools.partial(os.read, descriptor, CHUNK)
        self._parts: list[bytes] = []
        self._lines: list[bytes] = []

    def __aiter__(self) -> _Lines:
        return self

    async def __anext__(self) -> str:
        while not self._lines:
            chunk = await in_thread(self._read)
            if not chunk:
                raise StopAsyncIteration
            first, *others = chunk.split(b"\n")
            self._parts.append(first)
            if others:
                *whole, rest = others
                self._lines = [*reversed(whole), b"".join(self._parts)]
                self._parts = [rest]
        return self._lines.pop().decode("utf-8", "replace")

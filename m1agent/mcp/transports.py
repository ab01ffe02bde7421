"""The way to a server: a child process, HTTP, or a call within this process."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, cast

from m1agent.mcp.client_side import ClientSide
from m1agent.mcp.clock import Clock
from m1agent.mcp.config import HttpServer, InProcessServer, ServerConfig, StdioServer
from m1agent.mcp.faults import http_status
from m1agent.mcp.oauth import login
from m1agent.mcp.stdio import ChildLog, stdio_transport
from m1agent.mcp.wire import Wire, watched

if TYPE_CHECKING:
    from mcp import Client

    from m1agent.mcp.wire import Transport

READ_SECONDS = 300.0
LARGEST_EVENT = 64 * 1024 * 1024


@asynccontextmanager
async def connected(
    config: ServerConfig, side: ClientSide, clock: Clock, wire: Wire, options: dict[str, Any]
) -> AsyncGenerator[Client]:
    """A connected client of the server, made with these options; `wire` sees what it lists."""
    from mcp import Client

    if isinstance(config, InProcessServer):
        async with Client(config.server, cache=None, **options) as client:
            yield client
    else:
        async with (
            _transport(config, side, clock, wire) as transport,
            Client(watched(transport, wire, clock), cache=None, **options) as client,
        ):
            yield client


@asynccontextmanager
async def _transport(
    config: StdioServer | HttpServer, side: ClientSide, clock: Clock, wire: Wire
) -> AsyncGenerator[Transport]:
    """The transport of this configuration, not yet entered."""
    async with AsyncExitStack() as stack:
        if isinstance(config, HttpServer):
            yield await _http(config, side, clock, wire, stack)
            return
        child = stack.enter_context(ChildLog(config))
        try:
            yield _child(config, child)
        except Exception as error:
            if tail := child.tail():
                raise ConnectionError(f"{unwrap(error)}; its last words: {tail}") from error
            raise


async def _http(config: HttpServer, side: ClientSide, clock: Clock, wire: Wire, stack: AsyncExitStack) -> Transport:
    import httpx2
    from mcp.client.streamable_http import streamable_http_client

    async def note(response: httpx2.Response) -> None:
        if response.is_error:
            wire.status = http_status(response.status_code)

    auth = None
    if config.oauth is not None:
        auth = await stack.enter_async_context(login(config, config.oauth, clock, side.open_url))
    timeout = httpx2.Timeout(config.connect_seconds, read=max(READ_SECONDS, config.call_seconds))
    client = httpx2.AsyncClient(
        headers=dict(config.headers), timeout=timeout, auth=auth, event_hooks={"response": [note]}
    )
    http = await stack.enter_async_context(client)
    return streamable_http_client(config.url, http_client=http, max_sse_event_size=LARGEST_EVENT)


def _child(server: StdioServer, child: ChildLog) -> Transport:
    if sys.platform != "win32":
        return stdio_transport(server, child)
    from mcp.client.stdio import StdioServerParameters, stdio_client

    parameters = StdioServerParameters(
        command=server.command, args=list(server.args), env=dict(server.env), cwd=server.cwd
    )
    return stdio_client(parameters, errlog=child.text())


def unwrap(error: BaseException) -> Exception:
    """The first real error inside exception groups."""
    while isinstance(error, BaseExceptionGroup):
        error = cast("BaseExceptionGroup[BaseException]", error).exceptions[0]
    return error if isinstance(error, Exception) else ConnectionError(str(error))

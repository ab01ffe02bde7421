"""One MCP server: one task owns its connection from beginning to end, and any task may call its tools.

The mcp client's scopes must be left in the task that entered them; the owner task does both and waits in between.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

from m1agent.errors import ToolDefinitionError, ToolError
from m1agent.mcp.config import HttpServer, ServerConfig, StdioServer
from m1agent.mcp.naming import tool_name
from m1agent.mcp.render import render
from m1agent.mcp.stdio import ChildLog, stdio_transport
from m1agent.mcp.wire import BadTool, ListedTool, Wire, watched
from m1agent.tools import Tool

if TYPE_CHECKING:
    from mcp import Client
    from mcp_types import CallToolResult

    from m1agent.mcp.wire import Transport

log = logging.getLogger("m1agent.mcp")
PAGES = 100
CLOSE_GRACE = 8.0
HIDDEN = "***"


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """How a server stands. `reason` says why it failed; `left_out` lists tools that cannot be used, and why."""

    name: str
    state: Literal["closed", "ready", "failed"]
    reason: str = ""
    protocol: str = ""
    tools: tuple[str, ...] = ()
    left_out: tuple[BadTool, ...] = ()


class McpServer:
    """A server of this configuration. `connect` first; its faults are reported in `status`, never raised."""

    def __init__(self, config: ServerConfig) -> None:
        self.config = config
        self.status = ServerStatus(config.name, "closed")
        self.tools: tuple[Tool, ...] = ()
        self._client: Client | None = None
        self._wire = Wire()
        self._owner: asyncio.Task[None] | None = None
        self._stop = asyncio.Event()
        self._connecting = asyncio.Lock()
        self._generation = 0
        self._legacy = False

    async def connect(self) -> ServerStatus:
        """Connect and list the tools, within the configuration's deadline."""
        try:
            await self._open()
        except Exception as error:
            self._fail(self._why(error))
            return self.status
        made = [self._tool(listed) for listed in self._wire.tools.values()]
        self.tools = tuple(tool for tool in made if isinstance(tool, Tool))
        bad = (*self._wire.bad.values(), *(tool for tool in made if isinstance(tool, BadTool)))
        for tool in bad:
            log.warning("MCP server '%s': tool '%s' is left out: %s", self.config.name, tool.name, tool.reason)
        assert self._client is not None
        names = tuple(tool.name for tool in self.tools)
        self.status = ServerStatus(self.config.name, "ready", "", self._client.protocol_version, names, bad)
        return self.status

    async def call(self, name: str, arguments: dict[str, Any]) -> str:
        """Call one of the server's tools. Raises ToolError with what the model is told when it fails."""
        generation, client, lost = self._generation, self._client, self._wire.closed
        if client is None or lost:
            client = await self._reconnect(generation)
        listed = self._wire.tools[name]
        try:
            result = await self._request(client, name, arguments)
        except ConnectionError:
            client = await self._reconnect(generation if not lost else self._generation)
            if not listed.read_only:
                raise ToolError(
                    f"The server '{self.config.name}' was lost during this call and is connected again. "
                    "Whether the call took effect is not known."
                ) from None
            try:
                result = await self._request(client, name, arguments)
            except ConnectionError:
                raise ToolError(f"The server '{self.config.name}' was lost again during this call.") from None
        text = render(result, structured=listed.has_output_schema)
        if result.is_error:
            raise ToolError(self._redacted(text))
        return text

    async def aclose(self) -> None:
        """Disconnect; a child process and its descendants are gone afterwards. Calling it again does nothing."""
        await self._close()
        self.status = ServerStatus(self.config.name, "closed")

    async def _request(self, client: Client, name: str, arguments: dict[str, Any]) -> CallToolResult:
        from mcp import MCPError
        from mcp_types import CONNECTION_CLOSED

        seconds = self.config.call_seconds
        try:
            async with asyncio.timeout(seconds):
                return await client.call_tool(name, arguments)
        except TimeoutError:
            raise ToolError(f"The server '{self.config.name}' did not answer within {seconds:g} seconds.") from None
        except MCPError as error:
            if self._wire.closed or error.code == CONNECTION_CLOSED or "Session terminated" in error.message:
                raise ConnectionError(error.message) from error
            raise ToolError(f"The server '{self.config.name}' refused: {self._redacted(error.message)}") from error
        except Exception as error:
            if self._wire.closed:
                raise ConnectionError(str(error)) from error
            raise ToolError(f"The server '{self.config.name}' failed: {self._why(error)}") from error

    async def _reconnect(self, generation: int) -> Client:
        """The client of a newer connection than `generation`; one of several waiting calls makes it."""
        async with self._connecting:
            if self._generation == generation or self._client is None:
                await self._close()
                try:
                    await self._open()
                except Exception as error:
                    self._fail(self._why(error))
                    raise ToolError(f"The server '{self.config.name}' is gone: {self.status.reason}") from error
            assert self._client is not None
            return self._client

    async def _open(self) -> None:
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[Client] = loop.create_future()
        self._stop, self._wire = asyncio.Event(), Wire()
        self._owner = loop.create_task(self._own(ready, self._stop, self._wire), name=f"MCP server {self.config.name}")
        try:
            async with asyncio.timeout(self.config.connect_seconds):
                self._client = await asyncio.shield(ready)
        except TimeoutError:
            await self._close(at_once=True)
            raise TimeoutError(f"it did not answer within {self.config.connect_seconds:g} seconds") from None
        except BaseException:
            await self._close(at_once=True)
            raise
        self._generation += 1
        self._legacy = not ready.result().protocol_version.startswith("2026")

    async def _own(self, ready: asyncio.Future[Client], stop: asyncio.Event, wire: Wire) -> None:
        from mcp import Client

        try:
            async with (
                self._transport() as transport,
                Client(watched(transport, wire), mode="legacy" if self._legacy else "auto", cache=None) as client,
            ):
                await _list_tools(client)
                if not ready.done():
                    ready.set_result(client)
                await stop.wait()
        except BaseException as error:
            if not ready.done():
                ready.set_exception(unwrap(error) if isinstance(error, Exception) else ConnectionError("cancelled"))
                ready.exception()
            if not isinstance(error, Exception):
                raise
            log.debug("MCP server '%s' closed with %s", self.config.name, self._why(error))

    async def _close(self, *, at_once: bool = False) -> None:
        owner, self._owner, self._client = self._owner, None, None
        if owner is None:
            return
        self._stop.set()
        if at_once:
            owner.cancel()
        done, _ = await asyncio.wait([owner], timeout=CLOSE_GRACE)
        if not done:
            owner.cancel()
            await asyncio.wait([owner], timeout=CLOSE_GRACE)

    @asynccontextmanager
    async def _transport(self) -> AsyncGenerator[Transport]:
        """The transport of this configuration, not yet entered."""
        async with AsyncExitStack() as stack:
            if isinstance(self.config, HttpServer):
                import httpx2
                from mcp.client.streamable_http import streamable_http_client

                timeout = httpx2.Timeout(self.config.connect_seconds, read=max(300.0, self.config.call_seconds))
                client = httpx2.AsyncClient(headers=dict(self.config.headers), timeout=timeout)
                http = await stack.enter_async_context(client)
                yield streamable_http_client(self.config.url, http_client=http)
            else:
                child = stack.enter_context(ChildLog(self.config))
                try:
                    yield _child_transport(self.config, child)
                except Exception as error:
                    if tail := child.tail():
                        raise ConnectionError(f"{unwrap(error)}; its last words: {tail}") from error
                    raise

    def _tool(self, listed: ListedTool) -> Tool | BadTool:
        async def handler(**arguments: Any) -> str:
            return await self.call(listed.name, arguments)

        name = tool_name(self.config.name, listed.name)
        try:
            return Tool.from_schema(name, listed.description, listed.schema, handler)
        except ToolDefinitionError as error:
            return BadTool(listed.name, str(error))

    def _fail(self, reason: str) -> None:
        self.status = ServerStatus(self.config.name, "failed", reason)
        log.warning("MCP server '%s' is left out: %s", self.config.name, reason)

    def _why(self, error: Exception) -> str:
        cause = unwrap(error)
        if isinstance(cause, FileNotFoundError) and isinstance(self.config, StdioServer):
            what = "program" if cause.filename == self.config.command else "path"
            return self._redacted(f"the {what} '{cause.filename}' was not found")
        # Hidden before it is cut: half a secret is no longer found.
        text = self._redacted(str(cause).strip()) or type(cause).__name__
        return text.splitlines()[0][:300]

    def _redacted(self, text: str) -> str:
        lines = {part.strip() for secret in self.config.secrets for part in (secret, *secret.splitlines())}
        for secret in sorted(lines, key=len, reverse=True):
            if len(secret) > 3:
                text = text.replace(secret, HIDDEN)
        return text


async def _list_tools(client: Client) -> None:
    """Walk the pages; what matters is seen on the wire."""
    cursor: str | None = None
    for _ in range(PAGES):
        page = await client.list_tools(cursor=cursor)
        cursor = page.next_cursor
        if cursor is None:
            return


def _child_transport(server: StdioServer, child: ChildLog) -> Transport:
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

"""All MCP servers of an agent: connected together, each on its own terms."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from m1agent.errors import McpError
from m1agent.mcp.client_side import ClientSide
from m1agent.mcp.config import ServerConfig
from m1agent.mcp.resources import Prompt, Resource, attached
from m1agent.mcp.server import McpServer, ServerStatus
from m1agent.messages import Message, ToolOutput, UserMessage
from m1agent.problems import close_match
from m1agent.tools import Tool

log = logging.getLogger("m1agent.mcp")


class McpHub:
    """Servers in the order of their configurations; a failing one is in `status` and costs the others nothing.

    `client_side` is what the servers may use of this side.
    """

    def __init__(self, configs: Sequence[ServerConfig], client_side: ClientSide | None = None) -> None:
        self.servers = tuple(McpServer(config, client_side) for config in configs)
        self.loop: asyncio.AbstractEventLoop | None = None

    async def connect(self) -> None:
        """Connect all servers at the same time. A cancellation disconnects them again.

        Raises:
            McpError: a required server failed; all are disconnected again.
        """
        self.loop = asyncio.get_running_loop()
        try:
            await asyncio.gather(*(server.connect() for server in self.servers))
            for server in self.servers:
                if server.config.required and server.status.state != "ready":
                    raise McpError(f"the MCP server '{server.config.name}' is required: {server.status.reason}")
        except BaseException:
            await self.aclose()
            raise

    @property
    def status(self) -> tuple[ServerStatus, ...]:
        """What became of each server, in their order."""
        return tuple(server.status for server in self.servers)

    @property
    def tools(self) -> tuple[Tool, ...]:
        """The tools of all connected servers."""
        return tuple(tool for server in self.servers for tool in server.tools)

    @property
    def changed(self) -> bool:
        """Whether a server said that its tools are others now; `refresh` finds out."""
        return any(server.changed for server in self.servers)

    async def refresh(self) -> bool:
        """List again the tools of servers that said they changed; whether `tools` are others now.

        Tools keep their order, new ones come after the others of their server. One that is gone answers with an error
        where it is still called.
        """
        return any(await asyncio.gather(*(server.refresh() for server in self.servers if server.changed)))

    async def resources(self) -> tuple[Resource, ...]:
        """The resources of all servers, and templates of some. A failing server is logged and left out."""
        found = await asyncio.gather(*(server.resources() for server in self._ready), return_exceptions=True)
        return tuple(item for items in found for item in _unless_failed(items))

    async def prompts(self) -> tuple[Prompt, ...]:
        """The prompts of all servers. A failing server is logged and left out."""
        found = await asyncio.gather(*(server.prompts() for server in self._ready), return_exceptions=True)
        return tuple(item for items in found for item in _unless_failed(items))

    async def read(self, uri: str, server: str | None = None) -> ToolOutput:
        """What a resource holds: its text, and its bytes as parts.

        Without `server`, the first server is asked that lists the resource, else each in turn.

        Raises:
            McpError: no server can read it.
        """
        if server is not None:
            return await self._server(server).read(uri)
        listed = [item.server for item in await self.resources() if item.uri == uri]
        asked = [self._server(listed[0])] if listed else list(self._ready)
        refusals: list[str] = []
        for one in asked:
            try:
                return await one.read(uri)
            except McpError as error:
                refusals.append(str(error))
        raise McpError(f"no server can read the resource {uri}: {' '.join(refusals) or 'none is connected'}")

    async def attach(self, uri: str, server: str | None = None) -> UserMessage:
        """A resource's text as a message of a prompt. Raises McpError like `read`."""
        return attached(uri, (await self.read(uri, server)).content)

    async def prompt(self, server: str, name: str, arguments: Mapping[str, Any] | None = None) -> tuple[Message, ...]:
        """The messages of a server's prompt, filled in.

        Raises:
            McpError: there is no such server or prompt, or an argument is missing.
        """
        return await self._server(server).prompt(name, arguments or {})

    async def aclose(self) -> None:
        """Disconnect all servers. Calling it again does nothing."""
        await asyncio.gather(*(server.aclose() for server in self.servers))

    @property
    def _ready(self) -> tuple[McpServer, ...]:
        return tuple(server for server in self.servers if server.status.state == "ready")

    def _server(self, name: str) -> McpServer:
        names = {server.config.name: server for server in self.servers}
        if name not in names:
            raise McpError(f"there is no MCP server '{name}'.{close_match(name, names)} Servers: {', '.join(names)}")
        return names[name]


def _unless_failed(items: Any) -> Sequence[Any]:
    if isinstance(items, McpError):
        log.warning("%s", items)
        return ()
    if isinstance(items, BaseException):
        raise items
    return items

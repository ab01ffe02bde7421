"""All MCP servers of an agent: connected together, each on its own terms."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from m1agent.mcp.config import ServerConfig
from m1agent.mcp.server import McpServer, ServerStatus
from m1agent.tools import Tool


class McpHub:
    """Servers in the order of their configurations; a failing one is in `status` and costs the others nothing."""

    def __init__(self, configs: Sequence[ServerConfig]) -> None:
        self.servers = tuple(McpServer(config) for config in configs)
        self.loop: asyncio.AbstractEventLoop | None = None

    async def connect(self) -> None:
        """Connect all servers at the same time. A cancellation disconnects them again."""
        self.loop = asyncio.get_running_loop()
        try:
            await asyncio.gather(*(server.connect() for server in self.servers))
        except BaseException:
            await self.aclose()
            raise

    @property
    def status(self) -> tuple[ServerStatus, ...]:
        return tuple(server.status for server in self.servers)

    @property
    def tools(self) -> tuple[Tool, ...]:
        """The tools of all connected servers."""
        return tuple(tool for server in self.servers for tool in server.tools)

    async def aclose(self) -> None:
        """Disconnect all servers. Calling it again does nothing."""
        await asyncio.gather(*(server.aclose() for server in self.servers))

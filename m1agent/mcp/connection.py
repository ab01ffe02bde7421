"""One connection to a server: one task owns it from beginning to end, any task may send its requests.

The mcp client's scopes must be left in the task that entered them; the owner task does both and waits in between.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import anyio

from m1agent.mcp import eras
from m1agent.mcp.answers import Answers
from m1agent.mcp.client_side import ClientSide
from m1agent.mcp.clock import Clock
from m1agent.mcp.config import InProcessServer, ServerConfig
from m1agent.mcp.redaction import Redactor, hidden_in_logs
from m1agent.mcp.transports import connected, unwrap
from m1agent.mcp.wire import BadTool, Wire

if TYPE_CHECKING:
    from mcp import Client
    from mcp.client.session import IncomingMessage

log = logging.getLogger("m1agent.mcp")
PAGES = 100
CLOSE_GRACE = 8.0
LISTENS, LISTEN_SECONDS = 5, 10.0


class Connection:
    """A connection of this configuration. `open` first; afterwards it cannot be opened again.

    `wire.tools` are the tools as last listed, `changed` whether the server has said since that they are others.
    """

    def __init__(self, config: ServerConfig, side: ClientSide, redact: Redactor) -> None:
        self.clock = Clock()
        self.answers = Answers(config, side, redact, self.clock)
        self.wire = Wire()
        self.changed = False
        self._config = config
        self._side = side
        self._redact = redact
        self._client: Client | None = None
        self._owner: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()

    @property
    def client(self) -> Client:
        """The client of the open connection."""
        assert self._client is not None, "open the connection first"
        return self._client

    @property
    def lost(self) -> bool:
        """Whether the other side has gone."""
        return self._owner is None or self._owner.done() or self.wire.closed

    @property
    def elsewhere(self) -> bool:
        """Whether it lives in an event loop other than the running one, where it cannot be used."""
        ended = self._owner is None or self._owner.done() or self._loop.is_closed()
        return not ended and self._loop is not asyncio.get_running_loop()

    async def open(self) -> None:
        """Connect and list the tools. Raises what goes wrong, TimeoutError when it takes too long."""
        legacy = eras.is_legacy(self._config)
        try:
            await self._begin(legacy=legacy)
        except TimeoutError:
            raise
        except Exception:
            if not legacy:
                raise
            # It may have been replaced by a newer one that no longer knows the older handshake.
            eras.remember(self._config, legacy=False)
            self.wire = Wire()
            await self._begin(legacy=False)
        eras.remember(self._config, legacy=not is_modern(self.client))

    async def list_tools(self) -> None:
        """Walk the pages; what matters is seen on the wire. Where that fails, `changed` stays."""
        self.changed = False  # Before asking: the server may say so again meanwhile.
        try:
            await _list_tools(self.client, self.wire, seen=not isinstance(self._config, InProcessServer))
        except BaseException:
            self.changed = True
            raise

    async def close(self, *, at_once: bool = False) -> None:
        """Disconnect; a child process and its descendants are gone afterwards."""
        owner, self._owner = self._owner, None
        if owner is None:
            return
        self._stop.set()
        if at_once:
            owner.cancel()
        done, _ = await asyncio.wait([owner], timeout=CLOSE_GRACE)
        if not done:
            owner.cancel()
            await asyncio.wait([owner], timeout=CLOSE_GRACE)

    async def _begin(self, *, legacy: bool) -> None:
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[Client] = loop.create_future()
        self._stop = asyncio.Event()
        self._owner = loop.create_task(self._own(ready, legacy), name=f"MCP server {self._config.name}")
        try:
            async with self.clock.limit(self._config.connect_seconds):
                self._client = await asyncio.shield(ready)
        except TimeoutError:
            await self.close(at_once=True)
            raise TimeoutError(f"it did not answer within {self._config.connect_seconds:g} seconds") from None
        except BaseException:
            await self.close(at_once=True)
            raise

    async def _own(self, ready: asyncio.Future[Client], legacy: bool) -> None:
        options: dict[str, Any] = {
            "mode": "legacy" if legacy else "auto",
            "message_handler": self._heard,
            **self.answers.options(),
        }
        try:
            with hidden_in_logs(self._redact):
                async with connected(self._config, self._side, self.clock, self.wire, options) as client:
                    await _list_tools(client, self.wire, seen=not isinstance(self._config, InProcessServer))
                    if not ready.done():
                        ready.set_result(client)
                    await self._stay(client)
        except BaseException as error:
            if not ready.done():
                ready.set_exception(unwrap(error) if isinstance(error, Exception) else ConnectionError("cancelled"))
                ready.exception()
            if not isinstance(error, Exception):
                raise
            log.debug("MCP server '%s' closed with %s", self._config.name, self._redact(str(unwrap(error))))

    async def _stay(self, client: Client) -> None:
        async with anyio.create_task_group() as tasks:
            if is_modern(client) and _tells_of_changes(client):
                tasks.start_soon(self._listen, client)
            await self._stop.wait()
            tasks.cancel_scope.cancel()

    async def _listen(self, client: Client) -> None:
        """Keep a stream of changes open; what comes on it is heard like the notifications of older servers."""
        from mcp import MCPError
        from mcp.client.subscriptions import SubscriptionLost

        loop, tries = asyncio.get_running_loop(), 0
        while tries < LISTENS:
            began = loop.time()
            try:
                async with client.listen(tools_list_changed=True) as changes:
                    async for _ in changes:
                        pass
                return
            except SubscriptionLost:
                # What was said meanwhile is lost, so the list may be another.
                self.changed = True
                tries = tries + 1 if loop.time() - began < LISTEN_SECONDS else 0
            except MCPError as error:
                log.debug("MCP server '%s' tells of no changes: %s", self._config.name, self._redact(str(error)))
                return

    async def _heard(self, message: IncomingMessage) -> None:
        from mcp_types import ToolListChangedNotification

        if isinstance(message, ToolListChangedNotification):
            self.changed = True


async def _list_tools(client: Client, wire: Wire, *, seen: bool) -> None:
    cursor: str | None = None
    if not seen:
        wire.begin()
    for _ in range(PAGES):
        page = await client.list_tools(cursor=cursor)
        if not seen:
            wire.repair(
                {"tools": [tool.model_dump(mode="json", by_alias=True, exclude_none=True) for tool in page.tools]}
            )
        cursor = page.next_cursor
        if cursor is None:
            return
    wire.bad["*"] = BadTool("*", f"the list goes on after {PAGES} pages; what follows is not read")


def is_modern(client: Client) -> bool:
    """Whether the connection has no handshake: protocol versions from 2026 on."""
    from mcp_types.version import MODERN_PROTOCOL_VERSIONS

    return client.protocol_version in MODERN_PROTOCOL_VERSIONS


def _tells_of_changes(client: Client) -> bool:
    tools = client.server_capabilities.tools
    return tools is not None and bool(tools.list_changed)

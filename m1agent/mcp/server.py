"""One MCP server: its tools, resources and prompts, over connections that come and go."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from m1agent.context import Context
from m1agent.errors import McpError, ToolDefinitionError, ToolError
from m1agent.mcp.client_side import ClientSide
from m1agent.mcp.config import HttpServer, ServerConfig, StdioServer
from m1agent.mcp.connection import PAGES, Connection
from m1agent.mcp.faults import UNREADABLE, explained
from m1agent.mcp.naming import tool_name
from m1agent.mcp.redaction import Redactor
from m1agent.mcp.render import render, render_contents
from m1agent.mcp.resources import NO_ARGUMENTS, READ_SCHEMA, Prompt, Resource, prompt, prompt_messages, resource, texts
from m1agent.mcp.transports import unwrap
from m1agent.mcp.wire import BadTool, ListedTool
from m1agent.messages import Message, ToolCall, ToolOutput
from m1agent.tools import Hints, Tool

if TYPE_CHECKING:
    from mcp import Client
    from mcp.shared.dispatcher import ProgressFnT
    from mcp_types import CallToolResult

log = logging.getLogger("m1agent.mcp")
T = TypeVar("T")
MOST_TOOLS = 1000
LIST_SECONDS = 5.0
ENDED = ("Connection closed", "SSE stream ", "Session terminated")
# What the client says of a 404, or the server with it: it was started anew, or has forgotten us.
NO_SESSION = re.compile(r"\bsession (?:terminated|not found|expired)|\bno valid session\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """How a server stands. `reason` says why it failed; `left_out` lists tools that cannot be used, and why.

    `added` and `gone` are tools that came and went since the server was first connected.
    """

    name: str
    state: Literal["closed", "ready", "failed"]
    reason: str = ""
    protocol: str = ""
    tools: tuple[str, ...] = ()
    left_out: tuple[BadTool, ...] = ()
    added: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()


class Lost(Exception):
    """The connection ended while a request was under way. `refused` says that the request was certainly not served."""

    def __init__(self, *, refused: bool = False) -> None:
        self.refused = refused
        super().__init__()


class McpServer:
    """A server of this configuration. `connect` first; its faults are reported in `status`, never raised.

    A lost connection is made anew by the next request. `tools` keep their order for as long as they exist.
    """

    def __init__(self, config: ServerConfig, side: ClientSide | None = None) -> None:
        self.config = config
        self.status = ServerStatus(config.name, "closed")
        self.tools: tuple[Tool, ...] = ()
        self._side = side or ClientSide()
        self._redact = Redactor(config.secrets)
        self._hide = Redactor(config.credentials)
        self._connection: Connection | None = None
        self._connecting = asyncio.Lock()
        self._listing = asyncio.Lock()
        self._listed: dict[str, ListedTool] = {}
        self._made: dict[str, Tool | BadTool] = {}
        self._first: frozenset[str] | None = None
        self._taken = True

    @property
    def changed(self) -> bool:
        """Whether the tools may be others than `tools` says; `refresh` finds out."""
        return not self._taken or (self._connection is not None and self._connection.changed)

    async def connect(self) -> ServerStatus:
        """Connect and list the tools, within the configuration's deadline."""
        try:
            await self._open()
        except Exception as error:
            self._fail(self._why(error))
            return self.status
        self._take()
        return self.status

    async def refresh(self) -> bool:
        """List the tools again if the server said that they changed; whether they did.

        After `LIST_SECONDS` without an answer the tools stay as they were, until the next time.
        """
        async with self._listing:
            return await self._list_again()

    async def _list_again(self) -> bool:
        if not self.changed or self._connection is None or self._connection.lost:
            return False
        before = [tool.spec for tool in self.tools]
        if self._connection.changed:
            try:
                async with asyncio.timeout(LIST_SECONDS):
                    await self._ask(lambda connection: connection.list_tools(), safe=True)
            except (McpError, TimeoutError) as error:
                why = str(error) or f"no answer within {LIST_SECONDS:g} seconds"
                log.warning("MCP server '%s': its tools could not be listed again: %s", self.config.name, why)
                return False
        self._take()
        return before != [tool.spec for tool in self.tools]

    async def call(self, name: str, arguments: dict[str, Any], context: Context[Any] | None = None) -> ToolOutput:
        """Call one of the server's tools. Raises ToolError with what the model is told when it fails."""
        listed = self._listed.get(name)
        if listed is None:
            raise ToolError(f"The server '{self.config.name}' no longer has the tool '{name}'.")
        about: Context[Any] = context or Context(None, ToolCall("", name, arguments))
        safe = listed.hints.read_only is True or listed.hints.idempotent is True

        async def send(connection: Connection) -> CallToolResult:
            with connection.answers.running.call(about):
                return await connection.client.call_tool(name, arguments, progress_callback=_progress(about))

        try:
            result = await self._ask(send, safe=safe)
        except McpError as error:
            raise ToolError(str(error)) from error
        output = render(result, structured=listed.has_output_schema)
        if result.is_error:
            raise ToolError(self._redact(output.content))
        return replace(output, content=self._hide(output.content))

    async def resources(self) -> tuple[Resource, ...]:
        """What can be read, then the templates. Raises McpError."""

        async def listed(client: Client) -> list[Any]:
            if client.server_capabilities.resources is None:
                return []
            found = await _pages(client.list_resources, lambda page: page.resources)
            return [*found, *await _pages(client.list_resource_templates, lambda page: page.resource_templates)]

        items = await self._ask(lambda connection: listed(connection.client), safe=True)
        return tuple(resource(self.config.name, item) for item in items)

    async def read(self, uri: str) -> ToolOutput:
        """A resource's text, and its bytes as parts. Raises McpError."""
        found = await self._ask(lambda connection: connection.client.read_resource(uri), safe=True)
        output = render_contents(found.contents)
        return replace(output, content=self._hide(output.content))

    async def prompts(self) -> tuple[Prompt, ...]:
        """The prompts on offer. Raises McpError."""

        async def listed(client: Client) -> list[Any]:
            if client.server_capabilities.prompts is None:
                return []
            return await _pages(client.list_prompts, lambda page: page.prompts)

        items = await self._ask(lambda connection: listed(connection.client), safe=True)
        return tuple(prompt(self.config.name, item) for item in items)

    async def prompt(self, name: str, arguments: Mapping[str, Any]) -> tuple[Message, ...]:
        """A prompt's messages. Raises McpError."""
        given = texts(arguments)
        result = await self._ask(lambda connection: connection.client.get_prompt(name, given), safe=True)
        return prompt_messages(result)

    async def aclose(self) -> None:
        """Disconnect; a child process and its descendants are gone afterwards. Calling it again does nothing.

        Raises McpError in an event loop other than the one it was connected in.
        """
        await self._close()
        self.status = ServerStatus(self.config.name, "closed")

    # Requests

    async def _ask(self, send: Callable[[Connection], Awaitable[T]], *, safe: bool) -> T:
        """The answer to a request; a lost connection is made anew, and what is `safe` to repeat is sent again.

        Raises McpError.
        """
        self._check_loop()
        connection = self._connection
        if connection is None or connection.lost:
            connection = await self._reconnect(connection)
        try:
            return await self._send(connection, send)
        except Lost as lost:
            connection = await self._reconnect(connection)
            if not safe and not lost.refused:
                raise McpError(
                    f"The server '{self.config.name}' was lost during this call and is connected again. "
                    "Whether the call took effect is not known."
                ) from None
        try:
            return await self._send(connection, send)
        except Lost:
            raise McpError(f"The server '{self.config.name}' was lost again during this call.") from None

    async def _send(self, connection: Connection, send: Callable[[Connection], Awaitable[T]]) -> T:
        from mcp import MCPError
        from mcp_types import CONNECTION_CLOSED

        seconds = self.config.call_seconds
        try:
            async with connection.clock.limit(seconds):
                return await send(connection)
        except TimeoutError:
            raise McpError(f"The server '{self.config.name}' did not answer within {seconds:g} seconds.") from None
        except MCPError as error:
            if isinstance(self.config, HttpServer) and NO_SESSION.search(error.message):
                raise Lost(refused=True) from error
            # Servers use the same code for errors of their own.
            if connection.lost or (error.code == CONNECTION_CLOSED and error.message.startswith(ENDED)):
                raise Lost from error
            how = "failed" if error.message.startswith(UNREADABLE) else "refused"
            raise McpError(f"The server '{self.config.name}' {how}: {self._redact(explained(error))}") from error
        except Exception as error:
            if connection.lost:
                raise Lost from error
            raise McpError(f"The server '{self.config.name}' failed: {self._why(error)}") from error

    async def _reconnect(self, old: Connection | None) -> Connection:
        """A newer connection than `old`; one of several waiting requests makes it. Raises McpError."""
        async with self._connecting:
            if self._connection is None or self._connection is old:
                await self._close()
                try:
                    await self._open()
                except Exception as error:
                    self._fail(self._why(error))
                    raise McpError(f"The server '{self.config.name}' is gone: {self.status.reason}") from error
                self.status = replace(self.status, state="ready", reason="")
            assert self._connection is not None
            return self._connection

    async def _open(self) -> None:
        connection = Connection(self.config, self._side, self._redact)
        await connection.open()
        self._connection, self._taken = connection, False

    def _check_loop(self) -> None:
        if self._connection is not None and self._connection.elsewhere:
            raise McpError(
                f"The server '{self.config.name}' was connected in another event loop; use and close it there, "
                "or connect it in this one as well."
            )

    async def _close(self) -> None:
        self._check_loop()
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    # Tools

    def _take(self) -> None:
        """Make tools of what the connection lists now."""
        connection = self._connection
        assert connection is not None
        listed = {name: one for name, one in connection.wire.tools.items() if self.config.uses(name)}
        beyond = len(listed) - MOST_TOOLS
        listed = dict(islice(listed.items(), MOST_TOOLS))
        kept = [name for name in self._listed if name in listed]
        ordered = {name: listed[name] for name in [*kept, *(name for name in listed if name not in self._listed)]}
        self._made = {
            name: self._made[name] if self._listed.get(name) == one and name in self._made else self._tool(one)
            for name, one in ordered.items()
        }
        self._listed, self._taken = ordered, True
        own = [tool for tool in self._made.values() if isinstance(tool, Tool)]
        taken = {tool.name for tool in own}
        self.tools = (*own, *(tool for tool in self._resource_tools() if tool.name not in taken))
        bad = (*connection.wire.bad.values(), *(tool for tool in self._made.values() if isinstance(tool, BadTool)))
        bad = [bad for bad in bad if self.config.uses(bad.name)]
        if beyond > 0:
            told = f"{beyond} tools beyond the first {MOST_TOOLS}: choose with the patterns of tools and exclude_tools"
            bad.append(BadTool("*", told))
        self._report(connection, tuple(bad))

    def _report(self, connection: Connection, bad: tuple[BadTool, ...]) -> None:
        for tool in bad:
            if tool not in self.status.left_out:
                log.warning("MCP server '%s': tool '%s' is left out: %s", self.config.name, tool.name, tool.reason)
        names = tuple(tool.name for tool in self.tools)
        self._first = frozenset(names) if self._first is None else self._first
        self.status = ServerStatus(
            self.config.name,
            "ready",
            "",
            connection.client.protocol_version,
            names,
            bad,
            tuple(name for name in names if name not in self._first),
            tuple(sorted(self._first - set(names))),
        )

    def _tool(self, listed: ListedTool) -> Tool | BadTool:
        async def handler(context: Context[Any], /, **arguments: Any) -> ToolOutput:
            return await self.call(listed.name, arguments, context)

        name = tool_name(self.config.name, listed.name)
        approval = False if self.config.approves(listed.name) else None
        try:
            made = Tool.from_schema(
                name,
                listed.description,
                listed.schema,
                handler,
                takes_context=True,
                hints=listed.hints,
                approval=approval,
            )
        except ToolDefinitionError as error:
            return BadTool(listed.name, str(error))
        return replace(made, available=lambda: listed.name in self._listed)

    def _resource_tools(self) -> tuple[Tool, ...]:
        """The tools with which the model lists and reads resources, where the configuration asks for them."""
        if not self.config.resources:
            return ()

        async def list_resources() -> str:
            return "\n".join(item.line() for item in await self._told(self.resources())) or "There are no resources."

        async def read_resource(uri: str) -> ToolOutput:
            return await self._told(self.read(uri))

        about, hints = f"of the server '{self.config.name}'", Hints(read_only=True)
        named = [tool_name(self.config.name, name) for name in ("list_resources", "read_resource")]
        return (
            Tool.from_schema(named[0], f"List the resources {about}.", NO_ARGUMENTS, list_resources, hints=hints),
            Tool.from_schema(named[1], f"Read a resource {about}.", READ_SCHEMA, read_resource, hints=hints),
        )

    async def _told(self, answer: Awaitable[T]) -> T:
        try:
            return await answer
        except McpError as error:
            raise ToolError(str(error)) from error

    # Failures

    def _fail(self, reason: str) -> None:
        self.status = replace(self.status, state="failed", reason=reason)
        log.warning("MCP server '%s' is left out: %s", self.config.name, reason)

    def _why(self, error: Exception) -> str:
        cause = unwrap(error)
        if isinstance(cause, FileNotFoundError) and isinstance(self.config, StdioServer):
            what = "program" if cause.filename == self.config.command else "path"
            return self._redact(f"the {what} '{cause.filename}' was not found")
        # Hidden before it is cut: half a secret is no longer found.
        text = self._redact(explained(cause))
        return text.splitlines()[0][:300]


def _progress(context: Context[Any]) -> ProgressFnT:
    async def tell(progress: float, total: float | None, message: str | None) -> None:
        fraction = min(1.0, max(0.0, progress / total)) if total else None
        context.progress(message or "", fraction)

    return tell


async def _pages(ask: Callable[..., Awaitable[Any]], items: Callable[[Any], list[Any]]) -> list[Any]:
    found: list[Any] = []
    cursor: str | None = None
    for _ in range(PAGES):
        page = await ask(cursor=cursor)
        found += items(page)
        cursor = page.next_cursor
        if cursor is None:
            break
    return found

"""Between a transport and the mcp client: what one bad server does must not cost its good tools, or ten seconds.

`tools/list` and `tools/call` answers are repaired in flight, because the client refuses a whole page for one tool it
cannot read, and a whole result for one block. A server that ignores `server/discover` is told for, after
`PROBE_SECONDS`, that it has no such method, so that the client goes on with the older handshake.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeAlias, cast

import anyio
from anyio.abc import TaskGroup

from m1agent.mcp.blocks import OLDER, repair_result
from m1agent.mcp.clock import Clock
from m1agent.messages import JsonSchema
from m1agent.tools import Hints

if TYPE_CHECKING:
    from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
    from mcp.shared._stream_protocols import ReadStream, WriteStream
    from mcp.shared.message import SessionMessage
    from mcp_types import ErrorData

    Item: TypeAlias = SessionMessage | Exception
    Transport: TypeAlias = AbstractAsyncContextManager[tuple[ReadStream[Item], WriteStream[SessionMessage]]]

PROBE_SECONDS = 3.0
METHOD_NOT_FOUND = -32601
UNEXPLAINED = "Server returned an error response"
DEEPEST = 150


@dataclass(frozen=True, slots=True)
class ListedTool:
    """A tool as its server lists it, as far as it can be used."""

    name: str
    description: str
    schema: JsonSchema
    has_output_schema: bool
    hints: Hints


@dataclass(frozen=True, slots=True)
class BadTool:
    """A tool that is left out, and why."""

    name: str
    reason: str


@dataclass(slots=True)
class Wire:
    """What was seen of one connection. `status` is the last HTTP status that refused a request."""

    tools: dict[str, ListedTool] = field(default_factory=dict[str, ListedTool])
    bad: dict[str, BadTool] = field(default_factory=dict[str, BadTool])
    closed: bool = False
    status: str = ""

    def begin(self) -> None:
        """A new listing: what an earlier one held no longer counts."""
        self.tools, self.bad = {}, {}

    def repair(self, result: dict[str, Any]) -> None:
        """Keep of a `tools/list` result what the client will accept, and remember the rest."""
        listed: Any = result.get("tools")
        if not isinstance(listed, list):
            return
        kept: list[dict[str, Any]] = []
        for index, entry in enumerate(cast("list[Any]", listed)):
            read = _read_tool(entry, index)
            if isinstance(read, ListedTool) and read.name in self.tools:
                read = BadTool(read.name, "listed twice; the first one is used")
            if isinstance(read, BadTool):
                self.bad[read.name] = read
                continue
            self.tools[read.name] = read
            kept.append({"name": read.name, "description": read.description, "inputSchema": read.schema})
        result["tools"] = kept


def _read_tool(entry: Any, index: int) -> ListedTool | BadTool:
    if not isinstance(entry, dict):
        return BadTool(f"#{index}", f"no object but {type(entry).__name__}")
    tool = cast("dict[str, Any]", entry)
    name, schema = tool.get("name"), tool.get("inputSchema")
    if not isinstance(name, str) or not name:
        return BadTool(f"#{index}", "it has no name")
    if not isinstance(schema, dict):
        return BadTool(name, f"its inputSchema is no object but {type(schema).__name__}")
    given = cast("JsonSchema", schema)
    if _deeper_than(given, DEEPEST):
        return BadTool(name, "its inputSchema is nested too deeply")
    if given.get("type", "object") != "object":
        return BadTool(name, f"its inputSchema is of type {given['type']!r}, not object")
    if odd := _malformed(given):
        return BadTool(name, f"its inputSchema is malformed: {odd}")
    if _needs_a_task(tool.get("execution")):
        return BadTool(name, "it must be run as a task, which is not supported; its server would refuse every call")
    description = tool.get("description")
    return ListedTool(
        name,
        description if isinstance(description, str) else "",
        given if "type" in given else {"type": "object", **given},
        isinstance(tool.get("outputSchema"), dict),
        _hints(tool.get("annotations")),
    )


def _needs_a_task(execution: Any) -> bool:
    return isinstance(execution, dict) and cast("dict[str, Any]", execution).get("taskSupport") == "required"


def _hints(annotations: Any) -> Hints:
    given = cast("dict[str, Any]", annotations) if isinstance(annotations, dict) else {}
    said = [given.get(f"{name}Hint") for name in ("readOnly", "destructive", "idempotent", "openWorld")]
    return Hints(*(value if isinstance(value, bool) else None for value in said))


def _malformed(schema: JsonSchema) -> str:
    """What of a schema the client would refuse, and with it the server's whole list of tools."""
    properties, required = schema.get("properties", {}), schema.get("required", [])
    if not isinstance(properties, dict):
        return "properties must be an object"
    for key, part in cast("dict[str, Any]", properties).items():
        if not isinstance(part, dict | bool):
            return f"property '{key}' must be a schema, not {type(part).__name__}"
    if not isinstance(required, list) or not all(isinstance(key, str) for key in cast("list[Any]", required)):
        return "required must be a list of names"
    return "" if isinstance(schema.get("$schema", ""), str) else "$schema must be text"


def _deeper_than(value: Any, levels: int) -> bool:
    """Whether objects and arrays lie deeper in each other: the client refuses the whole list for one that is."""
    layer: list[Any] = [value]
    for _ in range(levels):
        layer = [inner for outer in layer for inner in _inside(outer)]
        if not layer:
            return False
    return True


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return cast("dict[str, Any]", value).values()
    return cast("list[Any]", value) if isinstance(value, list) else ()


@asynccontextmanager
async def watched(
    transport: Transport, wire: Wire, clock: Clock
) -> AsyncGenerator[tuple[MemoryObjectReceiveStream[Item], WriteStream[SessionMessage]]]:
    """The streams of `transport`, with `wire` looking on and repairing."""
    async with transport as (read, write):
        forward, incoming = anyio.create_memory_object_stream["Item"](0)
        with forward, incoming:
            async with anyio.create_task_group() as tasks:
                outgoing = _Outgoing(write, wire, clock, forward, tasks)
                tasks.start_soon(_pump, read, outgoing)
                try:
                    yield incoming, outgoing
                finally:
                    tasks.cancel_scope.cancel()


async def _pump(read: ReadStream[Item], outgoing: _Outgoing) -> None:
    from mcp.shared.message import SessionMessage
    from mcp_types import JSONRPCError, JSONRPCResponse

    try:
        async for item in read:
            if isinstance(item, SessionMessage) and isinstance(item.message, JSONRPCResponse):
                outgoing.answered(item.message.id, item.message.result)
            elif isinstance(item, SessionMessage) and isinstance(item.message, JSONRPCError):
                outgoing.refused(item.message.id, item.message.error)
            await outgoing.forward.send(item)
    except (anyio.BrokenResourceError, anyio.ClosedResourceError):
        pass
    finally:
        outgoing.wire.closed = True
        outgoing.forward.close()


class _Outgoing:
    """The client's way out; remembers which requests' answers matter."""

    def __init__(
        self,
        write: WriteStream[SessionMessage],
        wire: Wire,
        clock: Clock,
        forward: MemoryObjectSendStream[Item],
        tasks: TaskGroup,
    ) -> None:
        self.wire = wire
        self._clock = clock
        self.forward = forward
        self._write = write
        self._tasks = tasks
        self._listings: set[object] = set()
        self._calls: dict[object, str] = {}
        self._probes: dict[object, anyio.CancelScope] = {}

    async def send(self, item: SessionMessage, /) -> None:
        from mcp_types import PROTOCOL_VERSION_META_KEY, JSONRPCRequest

        if isinstance(item.message, JSONRPCRequest):
            if item.message.method == "tools/list":
                if not (item.message.params or {}).get("cursor"):
                    self.wire.begin()
                    self._listings.clear()  # A late answer to a listing that was given up is none of this one.
                self._listings.add(item.message.id)
            elif item.message.method == "tools/call":
                about: dict[str, Any] = (item.message.params or {}).get("_meta") or {}
                self._calls[item.message.id] = about.get(PROTOCOL_VERSION_META_KEY, OLDER)
            elif item.message.method == "server/discover":
                self._tasks.start_soon(self._give_up, item.message.id)
        await self._write.send(item)

    def answered(self, answer: Any, result: dict[str, Any]) -> None:
        from mcp.shared.dispatcher import coerce_request_id

        # The client takes "7" for 7 as well: there are servers that answer so.
        request = coerce_request_id(answer)
        if request in self._listings:
            self._listings.discard(request)
            self.wire.repair(result)
        if version := self._calls.pop(request, ""):
            repair_result(result, version)
        if request in self._probes:
            self._probes[request].cancel()

    def refused(self, answer: Any, error: ErrorData) -> None:
        """The client keeps the HTTP status to itself."""
        from mcp.shared.dispatcher import coerce_request_id

        self._calls.pop(None if answer is None else coerce_request_id(answer), None)
        if error.message == UNEXPLAINED and self.wire.status:
            error.message = self.wire.status

    async def _give_up(self, request: Any) -> None:
        from mcp.shared.message import SessionMessage
        from mcp_types import ErrorData, JSONRPCError

        with anyio.CancelScope() as scope:
            self._probes[request] = scope
            with suppress(TimeoutError):
                async with self._clock.limit(PROBE_SECONDS):
                    await anyio.sleep_forever()
            error = ErrorData(code=METHOD_NOT_FOUND, message="no answer to server/discover")
            try:
                await self.forward.send(SessionMessage(JSONRPCError(jsonrpc="2.0", id=request, error=error)))
            except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                return

    async def aclose(self) -> None:
        await self._write.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        await self.aclose()

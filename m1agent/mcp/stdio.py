"""The stdio transport: a server as a child process in its own process group, newline-delimited JSON-RPC on its pipes.

The mcp package's own transport leaves grandchildren alive when the child exits by itself, joins long lines in
quadratic time, and logs a traceback for every line that is not JSON-RPC. On Windows it is used as it is.
"""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import tempfile
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Self, TypeAlias, cast

import anyio
from anyio.abc import Process

from m1agent.mcp.config import StdioServer
from m1agent.mcp.faults import explained
from m1agent.mcp.watchdog import ends_with_us
from m1agent.messages import whole_text

if TYPE_CHECKING:
    from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
    from mcp.shared.message import SessionMessage

    Incoming: TypeAlias = MemoryObjectReceiveStream[SessionMessage | Exception]
    Outgoing: TypeAlias = MemoryObjectSendStream[SessionMessage]

STDIN_GRACE = 2.0
TERM_GRACE = 2.0
POLL = 0.01
EXIT_POLL = 0.25
DRAIN = 0.2
TAIL = 2000


class ChildLog:
    """Where a child's stderr goes, and its last lines."""

    def __init__(self, server: StdioServer) -> None:
        self.file: IO[bytes] = open(server.log, "a+b") if server.log else tempfile.TemporaryFile()

    def tail(self) -> str:
        """The last non-empty line the child wrote."""
        size = self.file.seek(0, os.SEEK_END)
        self.file.seek(max(0, size - TAIL))
        lines = self.file.read().decode("utf-8", "replace").strip().splitlines()
        return lines[-1].strip() if lines else ""

    def text(self) -> IO[str]:
        """The same file, for writers of text."""
        return io.TextIOWrapper(self.file, "utf-8", "replace", write_through=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.file.close()


@asynccontextmanager
async def stdio_transport(server: StdioServer, log: ChildLog) -> AsyncGenerator[tuple[Incoming, Outgoing]]:
    """Start the child and yield its streams; on leaving, the child and all its descendants are gone. They also end
    with this process, however that ends.

    Raises OSError when the program cannot be started.
    """
    from mcp.client.stdio import get_default_environment

    process = await anyio.open_process(
        [server.command, *server.args],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log.file,
        env=get_default_environment() | dict(server.env),
        cwd=server.cwd,
        start_new_session=True,
    )
    received, incoming = anyio.create_memory_object_stream["SessionMessage | Exception"](0)
    outgoing, sent = anyio.create_memory_object_stream["SessionMessage"](0)
    watchdog = ends_with_us(process.pid, stdin_grace=STDIN_GRACE, term_grace=TERM_GRACE)
    with received, incoming, outgoing, sent, watchdog:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_read, process, received)
            tasks.start_soon(_write, process, sent, received)
            tasks.start_soon(_watch, process, received)
            try:
                yield incoming, outgoing
            finally:
                with anyio.CancelScope(shield=True):
                    incoming.close()
                    outgoing.close()
                    await _stop(process)
                tasks.cancel_scope.cancel()


async def _read(process: Process, received: MemoryObjectSendStream[SessionMessage | Exception]) -> None:
    assert process.stdout
    parts: list[bytes] = []
    with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError, ConnectionError):
        async with received:
            async for chunk in process.stdout:
                *complete, rest = chunk.split(b"\n")
                for line in complete:
                    parts.append(line)
                    whole, parts = b"".join(parts), []
                    # A banner or a stray print is no message; the server may be fine all the same.
                    with suppress(ValueError, RecursionError):
                        await received.send(_message(whole))
                parts.append(rest)


def _message(line: bytes) -> SessionMessage:
    """The message a line holds. Raises ValueError when it holds none."""
    from mcp.shared.message import SessionMessage
    from mcp_types import jsonrpc_message_adapter

    try:
        return SessionMessage(jsonrpc_message_adapter.validate_json(line, by_name=False))
    except ValueError:
        # pydantic refuses JSON of more than 200 levels, and lone surrogates, which Python servers write for file names
        # that are no UTF-8: with the whole line, and its request would wait for ever.
        given: Any = json.loads(whole_text(json.dumps(json.loads(line), ensure_ascii=False)))
    try:
        return SessionMessage(jsonrpc_message_adapter.validate_python(given, by_name=False))
    except ValueError:
        if (answer := _no_answer(given)) is None:
            raise
        return answer


def _no_answer(given: Any) -> SessionMessage | None:
    """An error for the request that this answers with what is no valid answer, or None where it answers none."""
    from mcp.shared.message import SessionMessage
    from mcp_types import INTERNAL_ERROR, ErrorData, JSONRPCError, JSONRPCResponse
    from pydantic import ValidationError

    message = cast("dict[str, Any]", given) if isinstance(given, dict) else {}
    request: Any = message.get("id")
    if message.get("jsonrpc") != "2.0" or "method" in message or type(request) not in (int, str):
        return None
    try:
        (JSONRPCResponse if "result" in message else JSONRPCError).model_validate(message, by_name=False)
    except ValidationError as error:
        told = ErrorData(code=INTERNAL_ERROR, message=explained(error))
        return SessionMessage(JSONRPCError(jsonrpc="2.0", id=request, error=told))
    return None


async def _write(
    process: Process,
    sent: MemoryObjectReceiveStream[SessionMessage],
    received: MemoryObjectSendStream[SessionMessage | Exception],
) -> None:
    assert process.stdin
    try:
        async for message in sent:
            line = message.message.model_dump_json(by_alias=True, exclude_unset=True)
            await process.stdin.send(line.encode() + b"\n")
    except (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
        # Requests that wait for an answer must learn that none will come.
        received.close()


async def _watch(process: Process, received: MemoryObjectSendStream[SessionMessage | Exception]) -> None:
    """Close the stream when the child is gone: a grandchild may hold its stdout open, and reading would never end."""
    await _exited(process)
    await anyio.sleep(DRAIN)  # What it said last is still being read.
    received.close()


async def _exited(process: Process) -> None:
    if not hasattr(os, "pidfd_open"):
        await _until(lambda: process.returncode is not None, EXIT_POLL)
        return
    with suppress(ProcessLookupError):
        handle = os.pidfd_open(process.pid)
        try:
            await anyio.wait_readable(handle)
        finally:
            os.close(handle)


async def _stop(process: Process) -> None:
    """Close stdin, wait, then end the whole group: its members may outlive the child."""
    assert process.stdin
    with suppress(OSError, anyio.BrokenResourceError, anyio.ClosedResourceError):
        await process.stdin.aclose()
    await _wait_exit(process, STDIN_GRACE)
    if _signal_group(process.pid, signal.SIGTERM):
        with anyio.move_on_after(TERM_GRACE):
            await _until(lambda: process.returncode is not None and not _runs(process.pid))
        _signal_group(process.pid, signal.SIGKILL)
    await _wait_exit(process, TERM_GRACE)
    # `Process.aclose` waits for the pipes, which a daemon that left the group may hold open for ever; only the
    # transport can let go of them, and nothing public leads to it.
    transport: Any = getattr(getattr(process, "_process", None), "_transport", None)
    if transport is not None:
        transport.close()


async def _wait_exit(process: Process, seconds: float) -> None:
    # `Process.wait` also waits for the pipes, which a grandchild may hold open.
    with anyio.move_on_after(seconds):
        await _until(lambda: process.returncode is not None)


async def _until(condition: Callable[[], bool], every: float = POLL) -> None:
    while not condition():  # noqa: ASYNC110 (a process group has no event to wait for)
        await anyio.sleep(every)


def _runs(group: int) -> bool:
    """Whether the process group has a member that is more than a zombie: the first process of a container may take
    seconds to collect those."""
    if not _signal_group(group, 0):
        return False
    states = [_state(folder) for folder in Path("/proc").glob("[0-9]*")]
    return not states or any(found == str(group) and state != "Z" for state, found in states)


def _state(folder: Path) -> tuple[str, str]:
    """A process's state and group as Linux tells them; empty where it is gone."""
    try:
        state, _, group, *_ = (folder / "stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return "", ""
    return state, group


def _signal_group(group: int, number: int) -> bool:
    """Whether the process group still has members; they get the signal."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True

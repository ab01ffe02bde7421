"""Two hundred connections, half of them to servers that are killed: nothing is left of them, here or in a process."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest

from m1agent.mcp.config import StdioServer
from m1agent.mcp.hub import McpHub

PROGRAM = Path(__file__).parent / "programs" / "small.py"
CYCLES = 200

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts what Linux shows in /proc"),
]


@dataclass(frozen=True, slots=True)
class Held:
    """What this process holds."""

    files: int
    threads: int
    tasks: int
    children: frozenset[int]


def held(others: frozenset[threading.Thread]) -> Held:
    """`others`: threads that were there before, of other tests, which may end meanwhile."""
    gc.collect()
    for thread in threading.enumerate():
        if thread.name.startswith("waitpid"):  # asyncio's, which has told of the end of a process and ends itself.
            thread.join()
    children = frozenset(
        int(pid) for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()
    )
    threads = len(set(threading.enumerate()) - others)
    return Held(len(os.listdir("/proc/self/fd")), threads, len(asyncio.all_tasks()), children)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def cycle(number: int) -> list[int]:
    """Connect and close, or connect and be killed; with a grandchild, and with a call after the end, in some."""
    hub = McpHub([StdioServer("small", sys.executable, ("-IS", str(PROGRAM)))])
    await hub.connect()
    try:
        assert hub.status[0].state == "ready", hub.status[0].reason
        tools = {tool.name: tool for tool in hub.tools}
        pids = [int(await tools["small__pid"].call({}))]
        if number % 4 >= 2:
            pids.append(int(await tools["small__spawn"].call({})))
        if number % 2:
            os.kill(pids[0], signal.SIGKILL)
        if number % 20 == 1:
            pids.append(await connected_again(hub, pids[0]))
    finally:
        await hub.aclose()
    return pids


async def connected_again(hub: McpHub, before: int) -> int:
    tool = next(tool for tool in hub.tools if tool.name == "small__pid")
    try:
        now = int(await tool.call({}))
    except Exception as error:
        assert "connected again" in str(error)
        now = int(await tool.call({}))
    assert now != before
    return now


def test_two_hundred_connections_leave_nothing_behind() -> None:
    others = frozenset(threading.enumerate()) - {threading.current_thread()}

    async def go() -> tuple[Held, Held, list[int]]:
        for number in range(4):
            await cycle(number)
        before = held(others)
        pids = [pid for number in range(CYCLES) for pid in await cycle(number)]
        return before, held(others), pids

    before, after, pids = asyncio.run(go())
    assert after == before
    assert len(set(pids)) >= CYCLES * 3 // 2
    assert [pid for pid in pids if is_running(pid)] == []

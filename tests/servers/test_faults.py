"""Servers and agents that are killed, frozen or hang: what was finished is kept, the conversation stays valid, and the
next run goes on. Nothing outlives the agent it belongs to."""

from __future__ import annotations

import asyncio
import json
import os
import random
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from m1agent import Agent, Conversation
from m1agent.mcp.config import StdioServer
from m1agent.messages import AssistantMessage, Message, ToolCall, ToolMessage
from m1agent.models.scripted import ScriptedModel
from m1agent.result import RunResult
from m1agent.store import ConversationStore
from m1agent.tools import tool

PROGRAMS = Path(__file__).parent / "programs"
GONE_SECONDS = 30.0

pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="watches processes by Linux's pidfd")


def small(name: str = "small", **options: Any) -> StdioServer:
    return StdioServer(name, sys.executable, ("-IS", str(PROGRAMS / "small.py")), **options)


def calls(*made: tuple[str, dict[str, Any]]) -> AssistantMessage:
    return AssistantMessage(calls=tuple(ToolCall("x", *call) for call in made))


def said(result: RunResult) -> list[str]:
    return [record.result.content for record in result.calls]


def check(messages: Sequence[Message]) -> None:
    """Every call has its result, in order, and nothing has a result that was not called."""
    for index, message in enumerate(messages):
        if isinstance(message, AssistantMessage) and message.calls:
            after = messages[index + 1]
            assert isinstance(after, ToolMessage)
            assert [result.call_id for result in after.results] == [call.id for call in message.calls]
        if isinstance(message, ToolMessage):
            before = messages[index - 1]
            assert isinstance(before, AssistantMessage) and before.calls


def wait_until_gone(pids: Sequence[int]) -> list[int]:
    """The processes that still run after `GONE_SECONDS`."""
    handles = {}
    for pid in pids:
        try:
            handles[os.pidfd_open(pid)] = pid
        except ProcessLookupError:
            continue
    try:
        return [pid for handle, pid in handles.items() if not select.select([handle], [], [], GONE_SECONDS)[0]]
    finally:
        for handle in handles:
            os.close(handle)


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    return path


def test_a_server_killed_in_a_call_costs_that_call_alone(pipe: Path) -> None:
    """A process it started holds its pipes open, so they do not tell of its end."""

    @tool
    def kill() -> str:
        """Kill the server as soon as it is busy."""
        os.kill(int(pipe.read_text()), signal.SIGKILL)
        return "killed"

    async def go() -> None:
        spawn, hang = ("small__spawn", {}), ("small__hang", {"file": str(pipe)})
        first = calls(hang, ("other__echo", {"text": "kept"}), ("kill", {}))
        model = ScriptedModel([calls(spawn), first, "One.", calls(("small__pid", {})), "Two."])
        talk = Conversation()
        async with Agent(model, [kill], mcp=[small(), small("other")]) as agent:
            one = await agent.run("1", conversation=talk)
            grandchild, lost, kept, killed = said(one)
            assert "was lost during this call and is connected again" in lost and one.calls[1].result.is_error
            assert (kept, killed, one.output) == ("kept", "killed", "One.")
            check(talk.messages)
            two = await agent.run("2", conversation=talk)
            assert (two.stop, two.output) == ("done", "Two.") and not two.calls[0].result.is_error
            check(talk.messages)
        assert wait_until_gone([int(grandchild), int(said(two)[0])]) == []

    asyncio.run(go())


def test_a_hung_tool_is_ended_by_its_deadline_and_its_siblings_are_kept(pipe: Path) -> None:
    @tool
    def watch() -> str:
        """Wait until the tool hangs."""
        return pipe.read_text()

    async def go() -> None:
        first = calls(("small__hang", {"file": str(pipe)}), ("watch", {}), ("small__echo", {"text": "kept"}))
        model = ScriptedModel([first, "One.", calls(("small__pid", {})), "Two."])
        talk = Conversation()
        async with Agent(model, [watch], mcp=[small(call_seconds=1.0)]) as agent:
            one = await agent.run("1", conversation=talk)
            hung, pid, kept = said(one)
            assert "did not answer within 1 seconds" in hung and one.calls[0].result.is_error
            assert (kept, one.output) == ("kept", "One.")
            two = await agent.run("2", conversation=talk)
            assert said(two) == [pid] and two.output == "Two."
            check(talk.messages)

    asyncio.run(go())


@pytest.mark.slow
def test_a_frozen_server_is_left_in_time_and_ended(pipe: Path) -> None:
    @tool
    def freeze() -> str:
        """Stop the server's process."""
        pid = pipe.read_text()
        os.kill(int(pid), signal.SIGSTOP)
        return pid

    async def go() -> None:
        first = calls(("small__hang", {"file": str(pipe)}), ("freeze", {}))
        second = calls(("small__echo", {"text": "lost"}), ("other__echo", {"text": "kept"}))
        model = ScriptedModel([first, "One.", second, "Two."])
        talk = Conversation()
        async with Agent(model, [freeze], mcp=[small(call_seconds=1.0), small("other")]) as agent:
            one = await agent.run("1", conversation=talk)
            two = await agent.run("2", conversation=talk)
            lost, kept = said(two)
            assert "did not answer within 1 seconds" in lost and (kept, two.output) == ("kept", "Two.")
            check(talk.messages)
        assert wait_until_gone([int(said(one)[1])]) == []

    asyncio.run(go())


def working(tmp_path: Path, first: list[Any], servers: Sequence[StdioServer]) -> tuple[Path, subprocess.Popen[str]]:
    """An agent at work in a process of its own, and the store that holds its conversation."""
    store, configuration = tmp_path / "talks.db", tmp_path / "servers.json"
    known = {
        server.name: {"command": server.command, "args": list(server.args), "env": dict(server.env)}
        for server in servers
    }
    configuration.write_text(json.dumps({"first": first, "mcpServers": known}))
    with ConversationStore(store) as opened:
        opened.create("work")
    arguments = [sys.executable, str(PROGRAMS / "working.py"), str(store), str(configuration)]
    return store, subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)


def kill_when(process: subprocess.Popen[str], told: Callable[[list[str]], bool]) -> list[int]:
    """Kill the agent when it has told these events; the servers that it had started, and what those had."""
    assert process.stdout
    events: list[str] = []
    with process:
        for line in process.stdout:
            events.append(line.strip())
            if told(events):
                break
        found = descendants(process.pid)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    return found


def descendants(pid: int) -> list[int]:
    """Without the shells that watch over the servers."""
    folders = Path(f"/proc/{pid}/task").iterdir()
    children = [int(child) for folder in folders for child in (folder / "children").read_text().split()]
    servers = [child for child in children if Path(f"/proc/{child}/comm").read_text().strip() != "sh"]
    return [*servers, *(found for server in servers for found in descendants(server))]


def go_on(store: Path) -> None:
    with ConversationStore(store) as opened:
        talk = opened.open("work")
        check(talk.messages)
        before = len(talk)
        model = ScriptedModel([calls(("small__echo", {"text": "again"})), "Done."])
        result = Agent(model, mcp=[small()]).run_sync("Go on.", conversation=talk)
        assert (result.stop, said(result), result.output) == ("done", ["again"], "Done.")
        check(talk.messages)
        assert len(opened.open("work")) == before + 4


@pytest.mark.parametrize("seed", range(4))
def test_an_agent_killed_at_a_random_step_leaves_a_valid_conversation(tmp_path: Path, seed: int) -> None:
    lines = random.Random(seed).randrange(1, 200)
    store, process = working(tmp_path, [["small__pid", {}]], [small(), small("other")])
    children = kill_when(process, lambda events: len(events) == lines)
    assert len(children) == 2
    assert wait_until_gone(children) == []
    go_on(store)


@pytest.mark.slow
def test_no_official_server_outlives_a_killed_agent(
    tmp_path: Path,
    node_server: Callable[..., StdioServer],
    minimax: Callable[..., StdioServer],
    git_server: StdioServer,
    time_server: StdioServer,
    fetch_server: StdioServer,
) -> None:
    """One of them is in the middle of a call that takes an hour, one has a child of its own."""
    minimax_env = {"MINIMAX_API_KEY": "unused", "MINIMAX_API_HOST": "http://127.0.0.1:9"}
    servers = [
        small(),
        git_server,
        time_server,
        fetch_server,
        node_server("filesystem", str(tmp_path)),
        node_server("everything", "stdio"),
        node_server("memory", MEMORY_FILE_PATH=str(tmp_path / "memory.jsonl")),
        node_server("sequential-thinking"),
        minimax("0.0.19", **minimax_env),
    ]
    hour = ["everything__trigger-long-running-operation", {"duration": 3600, "steps": 2}]
    store, process = working(tmp_path, [hour, ["small__spawn", {}]], servers)
    children = kill_when(process, lambda events: events.count("ToolFinished") == 3)
    assert len(children) == len(servers) + 1
    assert wait_until_gone(children) == []
    go_on(store)

"""What servers do wrong, by accident or on purpose, with real child processes: the agent goes on."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from m1agent.agent import Agent
from m1agent.errors import InvalidArguments, ToolError
from m1agent.mcp import eras
from m1agent.mcp.client_side import ClientSide, LogMessage
from m1agent.mcp.config import HttpServer, StdioServer
from m1agent.mcp.hub import McpHub
from m1agent.messages import AssistantMessage, ToolCall
from m1agent.models.scripted import ScriptedModel
from m1agent.tools import Tool

T = TypeVar("T")
SERVERS = Path(__file__).parent / "servers"


def faulty(**options: Any) -> StdioServer:
    return StdioServer("bad", sys.executable, (str(SERVERS / "faulty.py"),), **options)


def with_tools(
    use: Callable[[McpHub, dict[str, Tool]], Awaitable[T]], config: StdioServer, side: ClientSide | None = None
) -> T:
    async def go() -> T:
        hub = McpHub([config], side)
        await hub.connect()
        assert hub.status[0].state == "ready", hub.status
        try:
            return await use(hub, {tool.name.removeprefix("bad__").replace("-x20-", " "): tool for tool in hub.tools})
        finally:
            await hub.aclose()
            assert asyncio.all_tasks() == {asyncio.current_task()}

    return asyncio.run(go())


def test_a_flood_of_notifications() -> None:
    heard: list[LogMessage] = []

    async def use(hub: McpHub, tools: dict[str, Tool]) -> None:
        names = [tool.name for tool in hub.tools]
        assert await tools["flood"].call({}) == "flooded"
        assert 50 < len(heard) < 2500
        while not hub.changed:  # noqa: ASYNC110 (a notification comes by itself)
            await asyncio.sleep(0)
        assert not await hub.refresh() and [tool.name for tool in hub.tools] == names
        assert (await tools["pid"].call({})).isdigit()

    with_tools(use, faulty(), ClientSide(on_log=heard.append))


def test_runs_that_list_changed_tools_at_the_same_time() -> None:
    async def use(hub: McpHub, tools: dict[str, Tool]) -> None:
        before = hub.status[0]
        flood = asyncio.create_task(tools["flood"].call({}))

        async def refresh() -> None:
            while not flood.done():
                await hub.refresh()
                await asyncio.sleep(0)

        await asyncio.gather(*(refresh() for _ in range(5)))
        assert await flood == "flooded" and hub.status[0] == before

    with_tools(use, faulty())


def test_lines_that_are_no_messages(caplog: pytest.LogCaptureFixture) -> None:
    async def use(_: McpHub, tools: dict[str, Tool]) -> None:
        assert await tools["garbage"].call({}) == "after the garbage"
        assert (await tools["pid"].call({})).isdigit()

    with_tools(use, faulty())


@pytest.mark.parametrize(
    ("name", "told"), [("no list", "failed"), ("number", "failed: its answer"), ("torn", "within 2 sec")]
)
def test_answers_that_are_none(name: str, told: str) -> None:
    async def use(_: McpHub, tools: dict[str, Tool]) -> None:
        with pytest.raises(ToolError, match=f"The server 'bad' .*({told})") as error:
            await tools[name].call({})
        assert len(str(error.value)) < 400
        assert (await tools["pid"].call({})).isdigit()

    with_tools(use, faulty(call_seconds=2.0))


def test_a_refusal_is_no_lost_connection() -> None:
    async def use(_: McpHub, tools: dict[str, Tool]) -> None:
        before = await tools["pid"].call({})
        with pytest.raises(ToolError, match=r"^The server 'bad' refused: the disk is full$"):
            await tools["refuse"].call({})
        assert await tools["pid"].call({}) == before

    with_tools(use, faulty())


def test_an_answer_that_cannot_be_read_says_where() -> None:
    async def use(_: McpHub, tools: dict[str, Tool]) -> None:
        with pytest.raises(ToolError, match="its answer is no valid CallToolResult: content: Input should be a valid"):
            await tools["no list"].call({})

    with_tools(use, faulty())


LISTING = """
import json, sys
for line in sys.stdin:
    message = json.loads(line)
    method, answer = message["method"], {"jsonrpc": "2.0", "id": %(id)s}
    if method == "initialize":
        known = {"protocolVersion": "2025-06-18", "capabilities": {"tools": {}}}
        answer["result"] = {**known, "serverInfo": {"name": "listing", "version": "0"}}
    elif method == "tools/list":
        page = int(message.get("params", {}).get("cursor", 0))
        names = [f"tool {page} {n}" for n in range(%(tools)d)]
        answer["result"] = {"tools": [{"name": name, "inputSchema": {}} for name in names]}
        if page + 1 < %(pages)d:
            answer["result"]["nextCursor"] = str(page + 1)
    else:
        answer["error"] = {"code": -32601, "message": "unknown method"}
    if "id" in message:
        print(json.dumps(answer), flush=True)
"""


@pytest.mark.parametrize(
    ("id", "tools", "pages", "listed", "left_out"),
    [
        ("str(message.get('id'))", 1, 1, 1, ()),
        ("message.get('id')", 1, 103, 100, ("the list goes on after 100 pages",)),
        ("message.get('id')", 1003, 1, 1000, ("3 tools beyond the first 1000",)),
    ],
)
def test_lists_that_are_odd_or_long(id: str, tools: int, pages: int, listed: int, left_out: tuple[str, ...]) -> None:
    async def use(hub: McpHub, _: dict[str, Tool]) -> None:
        status = hub.status[0]
        assert len(status.tools) == listed and status.tools[0] == "bad__tool-x20-0-x20-0"
        assert len(status.left_out) == len(left_out)
        assert all(found.reason.startswith(told) for found, told in zip(status.left_out, left_out, strict=True))

    program = LISTING % {"id": id, "tools": tools, "pages": pages}
    with_tools(use, StdioServer("bad", sys.executable, ("-c", program)))


def test_requests_for_what_was_not_offered() -> None:
    async def use(_: McpHub, tools: dict[str, Tool]) -> list[Any]:
        assert await tools["ask"].call({}) == "asked"
        while len(told := json.loads(await tools["asked"].call({}))) < 4:
            pass
        return told

    answers = {answer["id"].removeprefix("ask "): answer for answer in with_tools(use, faulty())}
    assert "result" in answers["ping"]
    refused = ("sampling/createMessage", "elicitation/create", "roots/list")
    assert all("error" in answers[method] for method in refused)


def test_five_megabytes() -> None:
    async def use(_: McpHub, tools: dict[str, Tool]) -> None:
        assert len(await tools["big"].call({})) == 5_000_000

    with_tools(use, faulty())


def test_of_five_megabytes_an_agent_shows_little_and_loses_nothing() -> None:
    big = AssistantMessage(calls=(ToolCall("x", "bad__big", {}),))
    result = Agent(ScriptedModel([big, "big"]), mcp=[faulty()]).run_sync("go")
    text = result.calls[0].result.content
    assert result.stop == "done" and len(text) < 25_000 and "of 5000000 characters left out" in text


def test_deep_schemas_and_results() -> None:
    async def use(hub: McpHub, tools: dict[str, Tool]) -> None:
        left_out = {bad.name: bad.reason for bad in hub.status[0].left_out}
        assert set(left_out) == {"deep"} and "nested too deeply" in left_out["deep"]
        nested: Any = 7
        for _ in range(40):
            nested = {"a": nested}
        with pytest.raises(InvalidArguments, match="expected string"):
            await tools["abyss"].call(nested)
        assert (await tools["deep result"].call({})).startswith('{"type": "object", "properties": {')

    with_tools(use, faulty())


def test_a_slow_pattern() -> None:
    async def use(_: McpHub, tools: dict[str, Tool]) -> None:
        with pytest.raises(InvalidArguments, match="could not be checked within"):
            await tools["slow"].call({"a": "a" * 60 + "!"})

    with_tools(use, faulty())


def test_a_hung_tool_costs_no_other_call() -> None:
    async def use(_: McpHub, tools: dict[str, Tool]) -> None:
        hung = asyncio.create_task(tools["hang"].call({}))
        pids = await asyncio.gather(*(tools["pid"].call({}) for _ in range(20)))
        assert len(set(pids)) == 1 and not hung.done()
        with pytest.raises(ToolError, match="did not answer within 3 seconds"):
            await hung
        assert await tools["pid"].call({}) == pids[0]

    with_tools(use, faulty(call_seconds=3.0))


def test_a_server_killed_in_the_middle_of_calls() -> None:
    async def use(_: McpHub, tools: dict[str, Tool]) -> None:
        hung = [asyncio.create_task(tools[name].call({})) for name in ("hang", "hang", "hang safely")]
        await asyncio.sleep(0)
        before = await tools["pid"].call({})
        os.kill(int(before), signal.SIGKILL)
        for lost in await asyncio.gather(*hung[:2], return_exceptions=True):
            assert isinstance(lost, ToolError) and "Whether the call took effect is not known" in str(lost)
        with pytest.raises(ToolError, match="did not answer within 3 seconds"):
            await hung[2]
        assert await tools["pid"].call({}) != before

    with_tools(use, faulty(call_seconds=3.0))


def test_a_server_known_to_be_older_is_not_asked_for_the_newer_protocol(tmp_path: Path) -> None:
    """One that keeps silent about methods it does not know costs three seconds, once in a process."""
    script = tmp_path / "silent.py"
    seen = tmp_path / "seen"
    text = (SERVERS / "faulty.py").read_text().replace('elif "id" in message:', "elif False:")
    marked = text.replace(
        "    method = ", f"    print(message.get('method'), file=open({str(seen)!r}, 'a'))\n    method = "
    )
    script.write_text(marked)
    config = StdioServer("bad", sys.executable, (str(script),))

    async def use(_: McpHub, tools: dict[str, Tool]) -> None:
        await tools["pid"].call({})

    for _ in range(2):
        with_tools(use, config)
    assert seen.read_text().split().count("server/discover") == 1
    assert eras.is_legacy(config)


def test_a_server_that_has_become_newer_is_found_out() -> None:
    """What was remembered is an older server; the one that answers now knows no handshake."""
    config = StdioServer("bad", sys.executable, ("-c", MODERN_ONLY))
    eras.remember(config, legacy=True)

    async def use(hub: McpHub, tools: dict[str, Tool]) -> str:
        assert await tools["hello"].call({}) == "hi"
        return hub.status[0].protocol

    assert with_tools(use, config).startswith("2026") and not eras.is_legacy(config)


MODERN_ONLY = """
import json, sys
for line in sys.stdin:
    message = json.loads(line)
    method, answer = message["method"], {"jsonrpc": "2.0", "id": message.get("id")}
    fresh = {"resultType": "complete", "ttlMs": 0, "cacheScope": "private"}
    if method == "server/discover":
        answer["result"] = {"supportedVersions": ["2026-07-28"], "capabilities": {"tools": {}}, **fresh}
    elif method == "tools/list":
        answer["result"] = {"tools": [{"name": "hello", "inputSchema": {"type": "object"}}], **fresh}
    elif method == "tools/call":
        answer["result"] = {"content": [{"type": "text", "text": "hi"}], "resultType": "complete"}
    else:
        answer["error"] = {"code": -32601, "message": "unknown method"}
    if "id" in message:
        print(json.dumps(answer), flush=True)
"""


@pytest.fixture
def full_over_http() -> Iterator[int]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, str(SERVERS / "full.py"), str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield port
    finally:
        process.kill()
        process.wait()


async def _until_listening(port: int) -> None:
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.05)
        else:
            writer.close()
            return


def test_addresses_are_logged_without_their_secrets(full_over_http: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    url = f"http://user:pass-w0rd@127.0.0.1:{full_over_http}/mcp?key=k3y-in-query"

    async def go() -> None:
        await asyncio.wait_for(_until_listening(full_over_http), 120)
        hub = McpHub([HttpServer("web", url, {"Authorization": "Bearer t0ken-in-header"})])
        await hub.connect()
        assert hub.status[0].state == "ready", hub.status
        await hub.servers[0].call("work", {})
        await hub.aclose()

    asyncio.run(go())
    lines = "\n".join(caplog.messages)
    assert "HTTP Request: POST" in lines and "key=***" in lines
    assert not any(secret in lines + caplog.text for secret in ("k3y-in-query", "pass-w0rd", "t0ken-in-header"))


def test_changes_are_heard_over_http(full_over_http: int) -> None:
    async def go() -> None:
        await asyncio.wait_for(_until_listening(full_over_http), 120)
        hub = McpHub([HttpServer("web", f"http://127.0.0.1:{full_over_http}/mcp")])
        await hub.connect()
        await hub.servers[0].call("change", {})
        while not hub.changed:  # noqa: ASYNC110 (a notification comes by itself)
            await asyncio.sleep(0.01)
        assert await hub.refresh() and hub.status[0].gone == ("web__doomed",)
        await hub.aclose()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(go())


def test_a_server_that_was_started_anew_and_knows_no_session() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, str(SERVERS / "full.py"), str(port)]

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    async def go() -> None:
        process = start()
        try:
            await asyncio.wait_for(_until_listening(port), 120)
            config = HttpServer("web", f"http://127.0.0.1:{port}/mcp")
            eras.remember(config, legacy=True)
            hub = McpHub([config])
            await hub.connect()
            process.kill()
            process.wait()
            process = start()
            await asyncio.wait_for(_until_listening(port), 120)
            assert "worked" in (await hub.servers[0].call("work", {})).content
            await hub.aclose()
        finally:
            process.kill()
            process.wait()

    asyncio.run(go())


@pytest.mark.parametrize(
    "status", ["200 OK", "401 Unauthorized", "404 Not Found", "500 Internal Server Error", "301 Moved Permanently"]
)
def test_a_web_server_that_is_no_mcp_server(status: str, caplog: pytest.LogCaptureFixture) -> None:
    page = b"<html>hello</html>"
    head = f"HTTP/1.1 {status}\r\nContent-Type: text/html\r\nLocation: http://127.0.0.1:9/\r\n"
    answer = f"{head}Content-Length: {len(page)}\r\nConnection: close\r\n\r\n".encode() + page

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    async def go() -> str:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        hub = McpHub([HttpServer("web", f"http://127.0.0.1:{port}/mcp", connect_seconds=10.0)])
        await hub.connect()
        await hub.aclose()
        server.close()
        await server.wait_closed()
        return hub.servers[0].status.state

    assert asyncio.run(go()) == "closed"
    told = {"401": 'HTTP 401 Unauthorized; check its "headers", or', "500": "HTTP 500 Internal Server Error"}
    assert f"MCP server 'web' is left out: {told.get(status[:3], '')}" in caplog.text

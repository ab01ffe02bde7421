"""Real MCP servers over stdio and HTTP, good and bad: what one does wrong costs no other, and nothing stays behind."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from m1agent.agent import Agent
from m1agent.errors import InvalidArguments, McpError, ToolError
from m1agent.mcp.config import HttpServer, StdioServer
from m1agent.mcp.hub import McpHub
from m1agent.mcp.server import McpServer
from m1agent.messages import AssistantMessage, ToolCall
from m1agent.models.scripted import ScriptedModel
from m1agent.tools import Tool

T = TypeVar("T")

GOOD = '''
import asyncio, os, subprocess, sys
from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import ToolAnnotations
mcp = MCPServer("good", log_level="ERROR")

@mcp.tool()
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b

@mcp.tool()
def echo(text: str) -> str:
    return text

@mcp.tool()
def refuse() -> str:
    raise ToolError("not today")

@mcp.tool()
async def sleep(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "slept"

@mcp.tool(annotations=ToolAnnotations(read_only_hint=True))
def pid() -> int:
    return os.getpid()

@mcp.tool()
def blurt() -> str:
    raise ToolError(os.environ["GIVEN"] + " is wrong")

@mcp.tool()
def die() -> str:
    os._exit(3)

@mcp.tool(annotations=ToolAnnotations(read_only_hint=True))
def die_once(marker: str) -> str:
    if not os.path.exists(marker):
        open(marker, "w").close()
        os._exit(3)
    return "alive"

@mcp.tool()
def spawn() -> int:
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]).pid

@mcp.tool()
def environment(name: str) -> str:
    return os.environ.get(name, "unset")

if len(sys.argv) > 1:
    mcp.run("streamable-http", host="127.0.0.1", port=int(sys.argv[1]))
else:
    mcp.run()
'''

# A server of 2024: prints a banner, ignores methods it does not know, dies in its second call, has broken tools.
BAD = """
import json, sys
print("Welcome to the bad server!", flush=True)
print("starting up", file=sys.stderr, flush=True)
text = {"type": "string"}
TOOLS = [
    {"name": "empty", "inputSchema": {}},
    {"name": "boolean", "inputSchema": True},
    {"inputSchema": {"type": "object"}},
    "no tool",
    {"name": "missing"},
    {"name": "listy", "inputSchema": {"type": "array"}},
    {"name": "empty", "inputSchema": {"type": "object"}},
    {"name": "broken", "inputSchema": {"type": "object", "properties": {"a": {"type": "strin"}}}},
    {"name": "odd properties", "inputSchema": {"type": "object", "properties": [1]}},
    {"name": "odd property", "inputSchema": {"type": "object", "properties": {"a": None}}},
    {"name": "odd required", "inputSchema": {"type": "object", "required": True}},
    {"name": "odd dialect", "inputSchema": {"type": "object", "$schema": 7}},
    {"name": "lone", "description": "\\ud800", "inputSchema": {"type": "object"}},
    {"name": "bad name! é", "description": None, "inputSchema": {"type": "object", "properties": {"from": text}},
     "outputSchema": "nonsense", "annotations": 7},
    {"name": "tree", "inputSchema": {"type": "object", "$defs": {"t": {"type": "object", "properties": {
        "next": {"$ref": "#/$defs/t"}}}}, "properties": {"t": {"$ref": "#/$defs/t"}, "any": True}}},
    {"name": "big", "inputSchema": {"type": "object", "properties": {}}, "outputSchema": {"type": "object"}},
]
calls = 0
for line in sys.stdin:
    message = json.loads(line)
    method = message.get("method")
    if method == "initialize":
        result = {"protocolVersion": "2024-11-05", "capabilities": {"tools": {}},
                  "serverInfo": {"name": "bad", "version": "0"}}
    elif method == "tools/list":
        result = {"tools": TOOLS}
    elif method == "tools/call":
        calls += 1
        if calls == 2:
            sys.exit(1)
        given = message["params"].get("arguments")
        size = 5_000_000 if message["params"]["name"] == "big" else 0
        result = {"content": [{"type": "text", "text": json.dumps(given) + "x" * size},
                              {"type": "image", "data": "AAAA", "mimeType": "image/png"}]}
    else:
        continue
    print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}), flush=True)
"""


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("servers")
    for name, text in (("good", GOOD), ("bad", BAD), ("silent", "import time; time.sleep(60)")):
        (folder / f"{name}.py").write_text(text)
    (folder / "crash.py").write_text("import sys; sys.exit('no such database: s3cret-token')")
    return folder


def stdio(scripts: Path, name: str, **options: Any) -> StdioServer:
    return StdioServer(options.pop("called", name), sys.executable, (str(scripts / f"{name}.py"),), **options)


def with_hub(use: Callable[[McpHub, dict[str, Tool]], Awaitable[T]], *configs: StdioServer | HttpServer) -> T:
    async def go() -> T:
        hub = McpHub(configs)
        await hub.connect()
        try:
            return await use(hub, {tool.name: tool for tool in hub.tools})
        finally:
            await hub.aclose()
            assert asyncio.all_tasks() == {asyncio.current_task()}

    return asyncio.run(go())


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_a_good_server_over_stdio(scripts: Path) -> None:
    async def use(hub: McpHub, tools: dict[str, Tool]) -> None:
        assert hub.status[0].state == "ready" and hub.status[0].protocol
        assert await tools["good__add"].call({"a": 1, "b": 2}) == '{"result": 3}'
        assert await tools["good__add"].call({"a": "1", "b": 2}) == '{"result": 3}'
        with pytest.raises(InvalidArguments, match="b: missing"):
            await tools["good__add"].call({"a": 1})
        with pytest.raises(ToolError, match="not today"):
            await tools["good__refuse"].call({})
        assert "given-secret" in await tools["good__environment"].call({"name": "GIVEN"})
        with pytest.raises(ToolError, match=r"\*\*\* is wrong") as told:
            await tools["good__blurt"].call({})
        assert "given-secret" not in str(told.value)
        assert "unset" in await tools["good__environment"].call({"name": "LEAKED"})
        started = time.perf_counter()
        await asyncio.gather(*(tools["good__sleep"].call({"seconds": 0.3}) for _ in range(8)))
        assert time.perf_counter() - started < 2

    os.environ["LEAKED"] = "yes"
    try:
        with_hub(use, stdio(scripts, "good", env={"GIVEN": "given-secret"}))
    finally:
        del os.environ["LEAKED"]


def test_bad_tools_are_left_out_and_their_siblings_work(scripts: Path) -> None:
    async def use(hub: McpHub, tools: dict[str, Tool]) -> None:
        status = hub.status[0]
        assert status.state == "ready" and status.protocol == "2024-11-05"
        assert set(tools) == {"bad__empty", "bad__bad-x20-name-x21--x20--xe9-", "bad__tree", "bad__big", "bad__lone"}
        assert {bad.name for bad in status.left_out} >= {"boolean", "missing", "listy", "broken", "empty", "#2", "#3"}
        odd = {bad.name for bad in status.left_out if "malformed" in bad.reason}
        assert odd == {"odd properties", "odd property", "odd required", "odd dialect"}
        text = await tools["bad__bad-x20-name-x21--x20--xe9-"].call({"from": "here"})
        assert text == '{"from": "here"}\n[image image/png, 3 bytes]'
        with pytest.raises(ToolError, match="lost during this call and is connected again"):
            await tools["bad__empty"].call({})
        big = await tools["bad__big"].call({})
        assert big.startswith("{}xxx") and len(big) > 5_000_000

    started = time.perf_counter()
    with_hub(use, stdio(scripts, "bad"))
    assert time.perf_counter() - started < 12


def test_failing_servers_are_reported_and_cost_the_others_nothing(scripts: Path) -> None:
    async def use(hub: McpHub, tools: dict[str, Tool]) -> dict[str, str]:
        assert await tools["good__add"].call({"a": 1, "b": 2}) == '{"result": 3}'
        assert {status.state for status in hub.status[1:]} == {"failed"}
        return {status.name: status.reason for status in hub.status}

    started = time.perf_counter()
    reasons = with_hub(
        use,
        stdio(scripts, "good"),
        stdio(scripts, "silent", connect_seconds=1.0),
        stdio(scripts, "crash", env={"TOKEN": "s3cret-token"}),
        StdioServer("absent", "/no/such/program"),
        HttpServer("nobody", "http://127.0.0.1:9/mcp", {"Authorization": "Bearer s3cret-token"}, connect_seconds=5.0),
    )
    assert time.perf_counter() - started < 20
    assert "did not answer within 1 seconds" in reasons["silent"]
    assert "no such database: ***" in reasons["crash"]
    assert "'/no/such/program' was not found" in reasons["absent"]
    assert reasons["nobody"] and "s3cret" not in str(reasons)


def test_no_part_of_a_secret_is_told(scripts: Path) -> None:
    secret = "first-line-of-the-key\nsecond-line-of-the-key"
    words = {"one": "x" * 290 + "first-line-of-the-key", "two": "the key is\nsecond-line-of-the-key"}

    async def use(hub: McpHub, tools: dict[str, Tool]) -> None:
        assert len(hub.status) == 2 and all("words" in status.reason for status in hub.status)
        assert "line" not in "".join(status.reason for status in hub.status)

    crash = ("-c", "import os, sys; sys.exit(os.environ['WORDS'])")
    with_hub(use, *(StdioServer(n, sys.executable, crash, {"WORDS": w, "KEY": secret}) for n, w in words.items()))


def test_a_missing_folder_is_not_told_as_a_missing_program() -> None:
    async def use(hub: McpHub, tools: dict[str, Tool]) -> None:
        assert [status.reason for status in hub.status] == [
            f"the path '/no/such{end}' was not found" for end in ("", "/x")
        ]

    program = (sys.executable, ("-c", ""))
    with_hub(use, StdioServer("a", *program, cwd="/no/such"), StdioServer("b", *program, log="/no/such/x"))


def test_a_server_that_dies_is_connected_again(scripts: Path, tmp_path: Path) -> None:
    async def use(hub: McpHub, tools: dict[str, Tool]) -> None:
        before = await tools["good__pid"].call({})
        with pytest.raises(ToolError, match="Whether the call took effect is not known"):
            await tools["good__die"].call({})
        after = await tools["good__pid"].call({})
        assert after != before
        assert "alive" in await tools["good__die_once"].call({"marker": str(tmp_path / "marker")})
        results = await asyncio.gather(*(tools["good__die"].call({}) for _ in range(3)), return_exceptions=True)
        assert all(isinstance(result, ToolError) for result in results)
        assert "3" in await tools["good__add"].call({"a": 1, "b": 2})

    with_hub(use, stdio(scripts, "good"))


def test_children_and_grandchildren_are_gone_on_close(scripts: Path) -> None:
    async def use(_: McpHub, tools: dict[str, Tool]) -> list[int]:
        found = [await tools[f"good__{name}"].call({}) for name in ("pid", "spawn")]
        return [int("".join(filter(str.isdigit, text))) for text in found]

    pids = with_hub(use, stdio(scripts, "good"))
    assert len(pids) == 2 and not any(map(is_running, pids))


def test_a_call_has_a_deadline_and_the_server_survives_it(scripts: Path) -> None:
    async def use(_: McpHub, tools: dict[str, Tool]) -> None:
        with pytest.raises(ToolError, match=r"did not answer within 0\.3 seconds"):
            await tools["good__sleep"].call({"seconds": 30})
        assert "hi" in await tools["good__echo"].call({"text": "hi"})

    with_hub(use, stdio(scripts, "good", call_seconds=0.3))


def test_two_servers_may_have_a_tool_of_one_name(scripts: Path) -> None:
    async def use(_: McpHub, tools: dict[str, Tool]) -> None:
        assert {"one__add", "two__add"} <= set(tools)

    with_hub(use, stdio(scripts, "good", called="one"), stdio(scripts, "good", called="two"))


def test_another_event_loop_is_told_so(scripts: Path) -> None:
    async def go() -> int:
        hub = McpHub([stdio(scripts, "good")])
        await hub.connect()
        tool = next(tool for tool in hub.tools if tool.name == "good__pid")

        def elsewhere() -> None:
            with pytest.raises(ToolError, match="The server 'good' was connected in another event loop"):
                asyncio.run(tool.call({}))
            with pytest.raises(McpError, match="use and close it there"):
                asyncio.run(hub.aclose())

        await asyncio.to_thread(elsewhere)
        pid = int("".join(filter(str.isdigit, await tool.call({}))))
        await hub.aclose()
        return pid

    assert not is_running(asyncio.run(go()))


def test_cancelling_while_connecting_leaves_nothing(scripts: Path) -> None:
    async def go() -> None:
        server = McpServer(stdio(scripts, "silent"))
        task = asyncio.create_task(server.connect())
        await asyncio.sleep(0.5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await server.aclose()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(go())


@pytest.fixture
def http_server(scripts: Path) -> Iterator[HttpServer]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, str(scripts / "good.py"), str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 120
        while not _listens(port):
            assert process.poll() is None and time.monotonic() < deadline, "the server did not start"
            time.sleep(0.1)
        yield HttpServer("web", f"http://127.0.0.1:{port}/mcp", {"Authorization": "Bearer s3cret"})
    finally:
        process.kill()
        process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_a_server_over_http(http_server: HttpServer) -> None:
    async def use(hub: McpHub, tools: dict[str, Tool]) -> None:
        assert hub.status[0].state == "ready"
        assert await tools["web__add"].call({"a": 1, "b": 2}) == '{"result": 3}'
        with pytest.raises(ToolError, match=r"gone|lost|failed"):
            await tools["web__die"].call({})
        with pytest.raises(ToolError, match=r"gone|lost|failed"):
            await tools["web__add"].call({"a": 1, "b": 2})

    with_hub(use, http_server)


def test_the_time_server_through_an_agent() -> None:
    config = StdioServer("time", sys.executable, ("-m", "mcp_server_time", "--local-timezone", "UTC"))
    call = ToolCall("call_1", "time__get_current_time", {"timezone": "Asia/Tokyo"})
    model = ScriptedModel([AssistantMessage(calls=(call,)), "It is late."])
    agent = Agent(model, mcp=[config])
    result = agent.run_sync("What time is it in Tokyo?")
    assert result.stop == "done" and not result.calls[0].result.is_error
    assert '"timezone": "Asia/Tokyo"' in result.calls[0].result.content
    assert agent.servers[0].state == "ready"


def test_a_sync_agent_keeps_its_servers_until_it_is_left(scripts: Path) -> None:
    pid = AssistantMessage(calls=(ToolCall("x", "good__pid", {}),))
    with Agent(ScriptedModel([pid, "a", pid, "b"]), mcp=[stdio(scripts, "good")]) as agent:
        first, second = agent.run_sync("1"), agent.run_sync("2")
    pids = [int("".join(filter(str.isdigit, run.calls[0].result.content))) for run in (first, second)]
    assert pids[0] == pids[1] and not is_running(pids[0])


def test_an_async_agent_keeps_its_servers_and_a_reader_may_leave(scripts: Path) -> None:
    async def go() -> None:
        pid = AssistantMessage(calls=(ToolCall("x", "good__pid", {}),))
        async with Agent(ScriptedModel([pid, "a", pid, "b", pid]), mcp=[stdio(scripts, "good")]) as agent:
            first, second = await agent.run("1"), await agent.run("2")
            assert first.calls[0].result.content == second.calls[0].result.content
            async for _ in agent.stream("3"):
                break
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(go())

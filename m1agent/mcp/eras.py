"""Which servers answered with the older handshake, so that the next connection need not ask for the newer one first.

A server that ignores methods it does not know costs every first question three seconds.
"""

from __future__ import annotations

from m1agent.mcp.config import HttpServer, InProcessServer, ServerConfig, StdioServer

_legacy: set[tuple[str, ...]] = set()


def is_legacy(config: ServerConfig) -> bool:
    """Whether this server, by its program or address, was last seen with the older handshake in this process."""
    return _identity(config) in _legacy


def remember(config: ServerConfig, *, legacy: bool) -> None:
    """Note what the server spoke."""
    if isinstance(config, InProcessServer):
        return
    (_legacy.add if legacy else _legacy.discard)(_identity(config))


def _identity(config: ServerConfig) -> tuple[str, ...]:
    match config:
        case StdioServer():
            return ("stdio", config.command, *config.args, str(config.cwd or ""))
        case HttpServer():
            return ("http", config.url)
        case InProcessServer():
            return ("here", str(id(config.server)))

"""Which MCP servers to use: dataclasses, or the usual `{"mcpServers": {…}}` JSON as a file or a dict.

Values may name environment variables as `${NAME}` or `${NAME:-default}`. What comes from `env` and `headers` is secret:
no repr, status or error shows it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, cast

from m1agent.errors import McpError

VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?::-(?P<default>[^}]*))?\}")
CONNECT_SECONDS = 30.0
CALL_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class StdioServer:
    """A server that runs as a child process and speaks over its stdin and stdout.

    The child sees only PATH, HOME and their like from this environment, and what `env` adds. Its stderr goes to `log`,
    or to a temporary file. `connect_seconds` and `call_seconds` bound connecting and each call.
    """

    name: str
    command: str
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    cwd: str | Path | None = None
    log: str | Path | None = None
    connect_seconds: float = CONNECT_SECONDS
    call_seconds: float = CALL_SECONDS

    def __post_init__(self) -> None:
        _check(self.name, self.connect_seconds, self.call_seconds)

    @property
    def secrets(self) -> tuple[str, ...]:
        """What must not be shown."""
        return tuple(self.env.values())


@dataclass(frozen=True, slots=True)
class HttpServer:
    """A server reached over streamable HTTP. `headers` go with every request."""

    name: str
    url: str = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    connect_seconds: float = CONNECT_SECONDS
    call_seconds: float = CALL_SECONDS

    def __post_init__(self) -> None:
        _check(self.name, self.connect_seconds, self.call_seconds)
        if not self.url.startswith(("http://", "https://")):
            raise McpError(f"server '{self.name}': url must begin with http:// or https://")

    @property
    def secrets(self) -> tuple[str, ...]:
        """What must not be shown: header values, their bare tokens, and what a URL carries besides its address."""
        tokens = [part for value in self.headers.values() for part in (value, *value.split())]
        return (*tokens, *re.findall(r"//([^/@]+)@", self.url), *re.findall(r"=([^&#]+)", self.url.partition("?")[2]))


ServerConfig: TypeAlias = StdioServer | HttpServer


def load_servers(source: str | Path | Mapping[str, Any]) -> tuple[ServerConfig, ...]:
    """Servers from a JSON file, or from a dict of the same form; the order is kept.

    A server has `command` (with `args`, `env`, `cwd`) or `url` (with `headers`), and optionally `connect_seconds`,
    `call_seconds`, and `disabled`.

    Raises:
        McpError: the file cannot be read or is not of that form, or a variable is not set; the text says where.
    """
    where, document = ("the configuration", source) if isinstance(source, Mapping) else _read(Path(source))
    servers: Any = document.get("mcpServers", document.get("servers"))
    if not isinstance(servers, Mapping):
        raise McpError(f'{where} has no "mcpServers" object')
    named = cast("Mapping[str, Any]", servers)
    return tuple(_parse(name, entry) for name, entry in named.items() if not _is_disabled(entry))


def as_servers(
    source: str | Path | Mapping[str, Any] | ServerConfig | Sequence[ServerConfig],
) -> tuple[ServerConfig, ...]:
    """Server configurations of whatever names them. Raises McpError, also when two have the same name."""
    if isinstance(source, StdioServer | HttpServer):
        return (source,)
    if isinstance(source, str | Path | Mapping):
        return load_servers(source)
    if not all(isinstance(server, StdioServer | HttpServer) for server in cast("Sequence[object]", source)):
        raise McpError('a list of MCP servers holds StdioServer and HttpServer; a dict is {"mcpServers": {name: ...}}')
    names = [server.name for server in source]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise McpError(f"two MCP servers are called '{twice}'; give one another name")
    return tuple(source)


def expand(text: str, where: str) -> str:
    """`text` with `${NAME}` and `${NAME:-default}` replaced from the environment. Raises McpError for one not set."""

    def value(match: re.Match[str]) -> str:
        default: str | None = match.group("default")
        found = os.environ.get(match["name"]) or default
        found = os.environ.get(match["name"]) if found is None else found
        if found is None:
            raise McpError(f"{where}: the environment variable {match['name']} is not set")
        return found

    return VARIABLE.sub(value, text)


def _read(path: Path) -> tuple[str, Mapping[str, Any]]:
    try:
        document: Any = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise McpError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise McpError(f"{path}: no valid JSON ({error})") from None
    if not isinstance(document, dict):
        raise McpError(f"{path}: expected a JSON object")
    return str(path), cast("Mapping[str, Any]", document)


def _is_disabled(entry: Any) -> bool:
    return isinstance(entry, dict) and cast("dict[str, Any]", entry).get("disabled") is True


def _parse(name: str, entry: Any) -> ServerConfig:
    where = f"server '{name}'"
    if not isinstance(entry, dict):
        raise McpError(f"{where}: expected an object")
    given = cast("dict[str, Any]", entry)
    connect = _seconds(given, "connect_seconds", CONNECT_SECONDS, where)
    call = _seconds(given, "call_seconds", CALL_SECONDS, where)
    if "command" in given:
        return StdioServer(
            name,
            _text(given["command"], f"{where}, command"),
            _items(given.get("args", []), f"{where}, args"),
            _texts(given.get("env", {}), f"{where}, env"),
            _text(given["cwd"], f"{where}, cwd") if given.get("cwd") else None,
            connect_seconds=connect,
            call_seconds=call,
        )
    if "url" in given:
        headers = _texts(given.get("headers", {}), f"{where}, headers")
        return HttpServer(name, _text(given["url"], f"{where}, url"), headers, connect, call)
    raise McpError(f'{where}: needs "command" (a program to start) or "url" (an address)')


def _seconds(given: Mapping[str, Any], key: str, default: float, where: str) -> float:
    value = given.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise McpError(f"{where}, {key}: expected a number of seconds")
    return float(value)


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise McpError(f"{where}: expected text, got {type(value).__name__}")
    return expand(value, where)


def _items(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list | tuple):
        raise McpError(f'{where}: expected a list of texts such as ["-m", "server"], got {type(value).__name__}')
    return tuple(_text(item, where) for item in cast("Sequence[Any]", value))


def _texts(value: Any, where: str) -> dict[str, str]:
    if not isinstance(value, dict):
        raise McpError(f"{where}: expected an object of texts")
    return {name: _text(item, f"{where}.{name}") for name, item in cast("dict[str, Any]", value).items()}


def _check(name: str, *seconds: float) -> None:
    if not name:
        raise McpError("an MCP server needs a name")
    if any(not value > 0 for value in seconds):
        raise McpError(f"server '{name}': connect_seconds and call_seconds must be above 0")

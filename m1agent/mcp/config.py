"""Which MCP servers to use: dataclasses, or the usual `{"mcpServers": {…}}` JSON as a file or a dict.

Values may name environment variables as `${NAME}` or `${NAME:-default}`. What comes from `env` and `headers` is secret,
and so is what a variable put into `args` or into the path of a `url`: no repr, status, log or error shows it.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast
from urllib.parse import unquote, unquote_plus

from m1agent.errors import McpError
from m1agent.mcp import checks
from m1agent.mcp.reading import Entry, read_document, variables

if TYPE_CHECKING:
    from mcp.server import MCPServer

CONNECT_SECONDS = 30.0
CALL_SECONDS = 60.0
LOGIN_SECONDS = 300.0
CREDENTIAL = re.compile(r"KEY|TOKEN|SECRET|PASS|CREDENTIAL|AUTH(?:$|_|ORIZ)", re.IGNORECASE)
FIELDS = (
    *("type", "transport", "command", "args", "env", "cwd", "log", "url", "headers", "oauth", "disabled"),
    *("connect_seconds", "call_seconds", "timeout", "required", "resources", "sampling"),
    *("tools", "exclude_tools", "excludeTools", "approve", "auto_approve", "autoApprove"),
)
OAUTH_FIELDS = ("client_name", "scopes", "redirect_port", "storage", "seconds")
HTTP_NAMES = ("http", "streamable-http", "streamable_http", "streamablehttp")


@dataclass(frozen=True, slots=True)
class Server:
    """What every kind of server may be told.

    `connect_seconds` and `call_seconds` bound connecting and each call; while the server waits for a person or for the
    agent's model, that time is not counted. `tools`, `exclude_tools` and `approve` are patterns such as `read_*` on the
    server's own names of its tools: the ones to use, the ones not to use, the ones that need no approval. A `required`
    server that fails is an error. `resources` adds two tools with which the model lists and reads the server's
    resources. `sampling` lets the server ask the agent's model. `variables` are the environment variables whose values
    are in `args` or `url`; a configuration that is read fills them in.
    """

    name: str
    _: KW_ONLY
    connect_seconds: float = CONNECT_SECONDS
    call_seconds: float = CALL_SECONDS
    tools: tuple[str, ...] = ("*",)
    exclude_tools: tuple[str, ...] = ()
    approve: tuple[str, ...] = ()
    required: bool = False
    resources: bool = False
    sampling: bool = True
    variables: Mapping[str, str] = field(default_factory=dict[str, str], repr=False, compare=False)

    def __post_init__(self) -> None:
        checks.texts("an MCP server", self, "name")
        if not self.name:
            raise McpError("an MCP server needs a name")
        where = f"server '{self.name}'"
        checks.numbers(where, self, "connect_seconds", "call_seconds")
        if any(not value > 0 for value in (self.connect_seconds, self.call_seconds)):
            raise McpError(f"{where}: connect_seconds and call_seconds must be above 0")
        checks.lists(where, self, "tools", "exclude_tools", "approve", of="patterns")
        checks.flags(where, self, "required", "resources", "sampling")
        checks.mappings(where, self, "variables")

    @property
    def secrets(self) -> tuple[str, ...]:
        """What must not be shown."""
        return ()

    @property
    def credentials(self) -> tuple[str, ...]:
        """Secrets that open something. Results hide these alone; others, such as a folder, they may need to name."""
        return self.secrets

    def uses(self, tool: str) -> bool:
        """Whether a tool of this name is to be used."""
        return _matches(tool, self.tools) and not _matches(tool, self.exclude_tools)

    def approves(self, tool: str) -> bool:
        """Whether a tool of this name needs no approval."""
        return _matches(tool, self.approve)


@dataclass(frozen=True, slots=True)
class StdioServer(Server):
    """A server that runs as a child process and speaks over its stdin and stdout.

    The child sees only PATH, HOME and their like from this environment, and what `env` adds. Its stderr goes to `log`,
    or to a temporary file.
    """

    command: str
    args: tuple[str, ...] = field(default=(), repr=False)
    env: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    cwd: str | Path | None = None
    log: str | Path | None = None

    def __post_init__(self) -> None:
        Server.__post_init__(self)
        where = f"server '{self.name}'"
        checks.texts(where, self, "command")
        if not self.command.strip():
            raise McpError(f"{where}, command: expected a program to start, not an empty text")
        checks.lists(where, self, "args", of="texts")
        checks.mappings(where, self, "env")
        checks.paths(where, self, "cwd", "log")

    def __repr__(self) -> str:
        shown = {one.name: getattr(self, one.name) for one in fields(self) if one.repr}
        shown["args"] = tuple(map(self._named, self.args))
        return f"StdioServer({', '.join(f'{name}={value!r}' for name, value in shown.items())})"

    def _named(self, arg: str) -> str:
        """An argument with variables in the place of their values."""
        for name, value in self.variables.items():
            arg = arg.replace(value, f"${{{name}}}")
        return arg

    @property
    def secrets(self) -> tuple[str, ...]:
        return (*self.env.values(), *self.variables.values())

    @property
    def credentials(self) -> tuple[str, ...]:
        named = (*self.env.items(), *self.variables.items())
        return tuple(value for name, value in named if CREDENTIAL.search(name))


@dataclass(frozen=True, slots=True)
class OAuth:
    """How to log in at a server that asks for it: in the browser, the answer coming back to this machine.

    Tokens and the client's registration are kept in the file `storage`, readable by its owner alone (by default one for
    each server below `~/.local/state/m1agent`). `redirect_port` 0 takes a free port, and then the registered one again.
    `seconds` bounds the wait for the person.
    """

    client_name: str = "m1agent"
    scopes: tuple[str, ...] = ()
    redirect_port: int = 0
    storage: str | Path | None = None
    seconds: float = LOGIN_SECONDS

    def __post_init__(self) -> None:
        checks.texts("oauth", self, "client_name")
        checks.lists("oauth", self, "scopes", of="texts")
        checks.whole_numbers("oauth", self, "redirect_port")
        checks.paths("oauth", self, "storage")
        checks.numbers("oauth", self, "seconds")
        if not 0 <= self.redirect_port < 65536:
            raise McpError(f"oauth, redirect_port: expected a port, or 0 for a free one, not {self.redirect_port}")
        if not self.seconds > 0:
            raise McpError("oauth, seconds: must be above 0")


@dataclass(frozen=True, slots=True)
class HttpServer(Server):
    """A server reached over streamable HTTP. `headers` go with every request; `oauth` logs in where it is asked for."""

    url: str = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    oauth: OAuth | None = None

    def __post_init__(self) -> None:
        Server.__post_init__(self)
        where = f"server '{self.name}'"
        checks.texts(where, self, "url")
        checks.mappings(where, self, "headers")
        if not isinstance(cast("object", self.oauth), OAuth | None):
            raise McpError(f"{where}, oauth: expected an OAuth, not {type(self.oauth).__name__}")
        if not re.match(r"https?://[^/?#]", self.url, re.IGNORECASE):
            raise McpError(f"{where}: url must begin with http:// or https:// and name a host")

    @property
    def secrets(self) -> tuple[str, ...]:
        """Header values, their bare tokens, what a URL carries besides its address, and variables in its path."""
        tokens = [part for value in self.headers.values() for part in (value, *value.split())]
        found = [*re.findall(r"//([^/@]+)@", self.url), *re.findall(r"=([^&#]+)", self.url.partition("?")[2])]
        passwords = [login.partition(":")[2] for login in found[:1] if "@" in self.url]
        plain = [unquote_plus(text) for text in (*found, *passwords)]
        basic = [b64encode(login.encode()).decode() for login in plain if ":" in login]
        return (*tokens, *found, *passwords, *plain, *basic, *_in_path(self.url, self.variables.values()))


@dataclass(frozen=True, slots=True)
class InProcessServer(Server):
    """A server of this program: an `mcp.server.MCPServer`, called without a process or a socket between."""

    server: MCPServer = field(repr=False)


ServerConfig: TypeAlias = StdioServer | HttpServer | InProcessServer
KINDS = (StdioServer, HttpServer, InProcessServer)


def load_servers(source: str | Path | Mapping[str, Any]) -> tuple[ServerConfig, ...]:
    """Servers from a JSON file, or from a dict of the same form; the order is kept.

    A server has `command` (with `args`, `env`, `cwd`, `log`) or `url` (with `headers`, `oauth`). Optional for both:
    `type` or `transport` (`stdio`, `http`), `connect_seconds`, `timeout` or `call_seconds`, `tools`, `exclude_tools`,
    `approve` or `auto_approve`, `required`, `resources`, `sampling`, `disabled`.

    Raises:
        McpError: the file cannot be read or is not of that form, or a variable is not set; the text says where.
    """
    if isinstance(source, Mapping):
        where, document = "the configuration", source
    else:
        where, document = str(source), read_document(Path(source))
    servers: Any = document.get("mcpServers", document.get("servers"))
    if not isinstance(servers, Mapping):
        raise McpError(f'{where} has no "mcpServers" object')
    entries = [
        (name, Entry.of(entry, f"server '{name}'")) for name, entry in cast("Mapping[str, Any]", servers).items()
    ]
    return tuple(_server(name, entry) for name, entry in entries if not entry.flag("disabled"))


def as_servers(
    source: str | Path | Mapping[str, Any] | ServerConfig | Sequence[ServerConfig],
) -> tuple[ServerConfig, ...]:
    """Server configurations of whatever names them. Raises McpError, also when two have the same name."""
    if isinstance(source, KINDS):
        return (source,)
    if isinstance(source, str | Path | Mapping):
        return load_servers(source)
    if not isinstance(cast("object", source), Sequence):
        raise McpError(f"mcp: expected a file, a dict, a server or a list of servers, got {type(source).__name__}")
    if not all(isinstance(server, KINDS) for server in cast("Sequence[object]", source)):
        raise McpError(
            "a list of MCP servers holds StdioServer, HttpServer and InProcessServer; "
            'a dict is {"mcpServers": {name: ...}}'
        )
    names = [server.name for server in source]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise McpError(f"two MCP servers are called '{twice}'; give one another name")
    return tuple(source)


def _server(name: str, entry: Entry) -> ServerConfig:
    entry.only(FIELDS)
    kind = _kind(entry)
    options: dict[str, Any] = {
        "connect_seconds": entry.number("connect_seconds", default=CONNECT_SECONDS),
        "call_seconds": entry.number("call_seconds", "timeout", default=CALL_SECONDS),
        "tools": entry.items("tools") if "tools" in entry else ("*",),
        "exclude_tools": entry.items("exclude_tools", "excludeTools"),
        "approve": entry.items("approve", "auto_approve", "autoApprove"),
        "required": entry.flag("required"),
        "resources": entry.flag("resources"),
        "sampling": entry.flag("sampling", default=True),
    }
    if kind == "http":
        oauth = _oauth(Entry.of(entry.given["oauth"], f"{entry.where}, oauth")) if "oauth" in entry else None
        named = variables(entry.given.get("url"))
        url, headers = entry.text("url") or "", entry.texts("headers")
        return HttpServer(name, url, headers, oauth, variables=named, **options)
    command, args, env = entry.text("command") or "", entry.items("args"), entry.texts("env")
    named = variables(entry.given.get("args"))
    return StdioServer(name, command, args, env, entry.text("cwd"), entry.text("log"), variables=named, **options)


def _kind(entry: Entry) -> str:
    """`stdio` or `http`. Raises McpError for another transport, or one that does not go with the fields."""
    found = "stdio" if "command" in entry else "http" if "url" in entry else ""
    if not found:
        raise McpError(f'{entry.where}: needs "command" (a program to start) or "url" (an address)')
    asked = entry.text("type", "transport")
    if "command" in entry and "url" in entry:
        raise McpError(f'{entry.where}: has both "command" and "url"; give one of them')
    kind = "http" if asked and asked.lower() in HTTP_NAMES else asked or found
    if kind == "sse":
        raise McpError(
            f"{entry.where}: the transport 'sse' was removed from the protocol; "
            'use the server\'s streamable HTTP address (often /mcp) with "type": "http"'
        )
    if kind not in ("stdio", "http"):
        raise McpError(f"{entry.where}: no transport is called '{asked}'; there are stdio and http")
    if kind != found:
        needs = "command" if kind == "stdio" else "url"
        raise McpError(f'{entry.where}: a server of type "{asked}" needs "{needs}"')
    return kind


def _oauth(entry: Entry) -> OAuth:
    entry.only(OAUTH_FIELDS)
    port = entry.number("redirect_port", default=0.0)
    if not port.is_integer():
        raise McpError(f"{entry.where}, redirect_port: expected a whole number, got {port}")
    try:
        return OAuth(
            client_name=entry.text("client_name") or "m1agent",
            scopes=entry.items("scopes"),
            redirect_port=int(port),
            storage=entry.text("storage"),
            seconds=entry.number("seconds", default=LOGIN_SECONDS),
        )
    except McpError as error:
        raise McpError(f"{entry.where}, {str(error).removeprefix('oauth, ')}") from None


def _in_path(url: str, values: Iterable[str]) -> tuple[str, ...]:
    """What of these values lies in the path of a URL, also without its %-escapes; the rest is an address."""
    path = _path(url)
    found = [_path(value) if "://" in value else value.strip("/") for value in values]
    found = [part for part in found if part and part in path]
    return (*found, *map(unquote, found))


def _path(url: str) -> str:
    return re.split(r"[?#]", url.partition("://")[2].partition("/")[2])[0].strip("/")


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)

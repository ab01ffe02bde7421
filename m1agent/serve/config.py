"""What a server is told when it starts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from ipaddress import ip_address
from pathlib import Path

from m1agent.errors import ServeError

KEY_VARIABLE = "M1AGENT_API_KEY"
MEBIBYTE = 1 << 20
MOST_PORT = 65_535
MAY_BE_ZERO = frozenset({"port", "waiting", "sessions"})


@dataclass(frozen=True, slots=True)
class ServeConfig:
    """Where to listen, who may ask, and how much.

    Args:
        host, port: the address; port 0 takes a free one.
        keys: whoever shows one of these may ask; with none, everybody may.
        insecure: allow an address that others can reach without a key.
        name: what the model is called in requests; by default its own name.
        running: requests answered at a time.
        waiting: requests that wait for their turn; more are refused with 429.
        rate: requests a minute of one key, or of one address where there are no keys; None does not count.
        body_bytes: of a request at most.
        tokens: of a reply at most, whatever a request asks for; it ends with `length` there. None sets no bound.
        choices: `n` of a request at most.
        sessions: conversations kept for requests that go on with them.
        header_seconds, body_seconds, write_seconds: how long a client may take to send a request's head, its body, and
            to read what is waiting for it.
        drain_seconds: how long requests may go on after SIGTERM.

    Raises ServeError naming the field and the remedy.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    keys: tuple[str, ...] = field(default=(), repr=False)
    insecure: bool = False
    name: str | None = None
    running: int = 32
    waiting: int = 256
    rate: int | None = None
    body_bytes: int = 8 * MEBIBYTE
    tokens: int | None = None
    choices: int = 16
    sessions: int = 32
    header_seconds: float = 10.0
    body_seconds: float = 30.0
    write_seconds: float = 60.0
    drain_seconds: float = 30.0

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            least = 0 if one.name in MAY_BE_ZERO else 1 if isinstance(value, int) else 0.001
            if not value >= least:
                raise ServeError(f"{one.name} must be at least {least:g}, not {value!r}")
        if self.port > MOST_PORT:
            raise ServeError(f"port must be at most {MOST_PORT}, not {self.port}")
        if not self.keys and not self.insecure and not self.local:
            raise ServeError(
                f"{self.host} can be reached by others, and there is no API key: set {KEY_VARIABLE} or give "
                "--api-key-file, listen on 127.0.0.1, or add --insecure"
            )

    @property
    def local(self) -> bool:
        """Whether only this machine can reach the address."""
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Whether a host's name or address is this machine's own."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def read_keys(file: str | Path | None = None, environment: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """The API keys of the environment and of a file, which holds one a line; lines that begin with # are remarks.

    Raises:
        ServeError: the file cannot be read or holds no key, or a key is not printable ASCII.
    """
    found = [(environment if environment is not None else os.environ).get(KEY_VARIABLE, "").strip()]
    if file is not None:
        try:
            lines = [line.strip() for line in Path(file).read_text(encoding="utf-8").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise ServeError(f"the file of API keys cannot be read: {error}") from None
        given = [line for line in lines if line and not line.startswith("#")]
        if not given:
            raise ServeError(f"{file} holds no API key; write one a line")
        found += given
    keys = tuple(key for key in found if key)
    if any(not key.isascii() or not key.isprintable() or " " in key for key in keys):
        raise ServeError("an API key must be of printable ASCII characters, without spaces")
    return keys

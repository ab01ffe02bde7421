"""What this side offers to MCP servers: a model to ask, a person to ask, folders to work in, a place for their logs."""

from __future__ import annotations

import webbrowser
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from m1agent.messages import JsonSchema

if TYPE_CHECKING:
    from m1agent.models.base import Model


@dataclass(frozen=True, slots=True)
class Elicitation:
    """A server's question to a person: what `schema` describes, or, where `url` is set, a visit to that address.

    A schema is an object of plain values. A page's address comes from the server: show it before it is opened.
    """

    message: str
    schema: JsonSchema
    server: str
    url: str | None = None


@dataclass(frozen=True, slots=True)
class Accepted:
    """The person answered. The values are held against the schema; of a page there are none."""

    values: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True)
class Declined:
    """The person said no."""


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The person made no choice."""


Answer: TypeAlias = Accepted | Declined | Cancelled
Elicit: TypeAlias = Callable[[Elicitation], Awaitable[Answer]]


@dataclass(frozen=True, slots=True)
class LogMessage:
    """A line of a server's log, its secrets hidden. `level` is one of Python's logging levels."""

    server: str
    level: int
    text: str
    logger: str = ""


@dataclass(frozen=True, slots=True)
class ClientSide:
    """What servers may use of this side. Only what is given here is declared to them.

    Args:
        model: answers servers' sampling requests, text only, in replies of at most 1,024 tokens, at most 8 for each
            tool call and none without one.
        elicit: asks a person.
        roots: the folders and files a server may work in; told to it, not enforced.
        on_log: told every log line of a server, besides the logger `m1agent.mcp`.
        open_url: shows the page where a person logs in; the browser by default.
    """

    model: Model | None = None
    elicit: Elicit | None = None
    roots: tuple[str | Path, ...] = ()
    on_log: Callable[[LogMessage], object] | None = None
    open_url: Callable[[str], object] = webbrowser.open

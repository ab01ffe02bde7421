"""The named arguments of `Agent`, typed once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict, cast

from m1agent.problems import close_match
from m1agent.tools import Tool
from m1agent.toolset import Toolset

if TYPE_CHECKING:
    from m1agent.approval import Approval, Ask
    from m1agent.budget import ResultBudget
    from m1agent.compaction import Compaction
    from m1agent.guards import InputGuard, OutputGuard
    from m1agent.hooks import Hooks
    from m1agent.limits import Limits
    from m1agent.mcp.client_side import Elicit
    from m1agent.mcp.config import ServerConfig
    from m1agent.models.base import Settings
    from m1agent.observe import Observer

ToolLike: TypeAlias = Tool | Toolset | Callable[..., Any]


class AgentOptions(TypedDict, total=False):
    """What `Agent` takes by name beside model, tools and instructions; its docstring says what each is."""

    name: str
    limits: Limits | None
    settings: Settings | None
    mcp: str | Path | Mapping[str, Any] | ServerConfig | Sequence[ServerConfig]
    elicit: Elicit | None
    roots: Sequence[str | Path]
    approval: Approval | Ask | None
    hooks: Hooks | None
    input_guards: Sequence[InputGuard]
    output_guards: Sequence[OutputGuard]
    compaction: Compaction | None
    results: ResultBudget | None
    observers: Sequence[Observer]


def check_options(what: str, given: Mapping[str, Any], known: Any) -> None:
    """Raises TypeError for a name that `known`, a TypedDict, does not have, and for a value that cannot be meant."""
    names = tuple(known.__annotations__)
    for name, value in given.items():
        if name not in names:
            raise TypeError(f"{what} has no option '{name}'.{close_match(name, names)} Options: {', '.join(names)}.")
        kind = _kinds().get(name)
        if kind is None or (value is None and kind is not Sequence):
            continue
        if not isinstance(value, kind) or isinstance(value, str):
            wanted = {Sequence: "list", Callable: "function"}.get(kind, kind.__name__)
            raise TypeError(f"{what}: {name} must be a {wanted}, not a {type(value).__name__}")


@cache
def _kinds() -> Mapping[str, type[Any]]:
    from m1agent.budget import ResultBudget
    from m1agent.cancel import Cancel
    from m1agent.compaction import Compaction
    from m1agent.conversation import Conversation
    from m1agent.hooks import Hooks
    from m1agent.limits import Limits
    from m1agent.models.base import Settings

    return {
        "ask": cast("Any", Callable),
        "cancel": Cancel,
        "compaction": Compaction,
        "conversation": Conversation,
        "hooks": Hooks,
        "input_guards": Sequence,
        "limits": Limits,
        "observers": Sequence,
        "output_guards": Sequence,
        "results": ResultBudget,
        "roots": Sequence,
        "settings": Settings,
    }

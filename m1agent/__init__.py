"""Agents whose tool calls are valid by construction.

Nothing is imported before it is used, so `import m1agent` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from m1agent.agent import Agent
    from m1agent.conversation import Conversation
    from m1agent.errors import ToolError
    from m1agent.limits import Limits
    from m1agent.models import load_model
    from m1agent.tools import Tool, Toolset, tool

__all__ = ["Agent", "Conversation", "Limits", "Tool", "ToolError", "Toolset", "load_model", "tool"]

_HOMES = {
    "Agent": "m1agent.agent",
    "Conversation": "m1agent.conversation",
    "Limits": "m1agent.limits",
    "Tool": "m1agent.tools",
    "ToolError": "m1agent.errors",
    "Toolset": "m1agent.tools",
    "load_model": "m1agent.models",
    "tool": "m1agent.tools",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'm1agent' has no attribute '{name}'")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

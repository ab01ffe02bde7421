"""Agents whose tool calls are valid by construction.

Nothing is imported before it is used, so `import m1agent` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from m1agent.agent import Agent
    from m1agent.approval import Approval, ApprovalRequest, Denied, Rule
    from m1agent.budget import ResultBudget
    from m1agent.cancel import Cancel
    from m1agent.compaction import Compaction
    from m1agent.context import Context
    from m1agent.conversation import Conversation
    from m1agent.delegation import handoff
    from m1agent.errors import M1AgentError, ToolError
    from m1agent.guards import Block, Retry
    from m1agent.hooks import Hooks
    from m1agent.limits import Limits
    from m1agent.messages import FilePart, ImagePart, SystemMessage, ToolOutput, Usage, UserMessage
    from m1agent.models import load_model
    from m1agent.models.base import Settings
    from m1agent.prompt.envelope import Named
    from m1agent.result import RunResult
    from m1agent.store import ConversationStore
    from m1agent.tools import Hints, Tool, tool
    from m1agent.toolset import Toolset, load_toolset

__all__ = [
    "Agent",
    "Approval",
    "ApprovalRequest",
    "Block",
    "Cancel",
    "Compaction",
    "Context",
    "Conversation",
    "ConversationStore",
    "Denied",
    "FilePart",
    "Hints",
    "Hooks",
    "ImagePart",
    "Limits",
    "M1AgentError",
    "Named",
    "ResultBudget",
    "Retry",
    "Rule",
    "RunResult",
    "Settings",
    "SystemMessage",
    "Tool",
    "ToolError",
    "ToolOutput",
    "Toolset",
    "Usage",
    "UserMessage",
    "handoff",
    "load_model",
    "load_toolset",
    "tool",
]

_HOMES = {
    "Agent": "m1agent.agent",
    "Approval": "m1agent.approval",
    "ApprovalRequest": "m1agent.approval",
    "Block": "m1agent.guards",
    "Cancel": "m1agent.cancel",
    "Compaction": "m1agent.compaction",
    "Context": "m1agent.context",
    "Conversation": "m1agent.conversation",
    "ConversationStore": "m1agent.store",
    "Denied": "m1agent.approval",
    "FilePart": "m1agent.messages",
    "Hints": "m1agent.tools",
    "Hooks": "m1agent.hooks",
    "ImagePart": "m1agent.messages",
    "Limits": "m1agent.limits",
    "M1AgentError": "m1agent.errors",
    "Named": "m1agent.prompt.envelope",
    "ResultBudget": "m1agent.budget",
    "Retry": "m1agent.guards",
    "Rule": "m1agent.approval",
    "RunResult": "m1agent.result",
    "Settings": "m1agent.models.base",
    "SystemMessage": "m1agent.messages",
    "Tool": "m1agent.tools",
    "ToolError": "m1agent.errors",
    "ToolOutput": "m1agent.messages",
    "Toolset": "m1agent.toolset",
    "Usage": "m1agent.messages",
    "UserMessage": "m1agent.messages",
    "handoff": "m1agent.delegation",
    "load_model": "m1agent.models",
    "load_toolset": "m1agent.toolset",
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

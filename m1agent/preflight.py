"""What is looked at before a run begins, once its tools are known: whether rules and choices can mean anything."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any, cast

from m1agent.approval import Approval, Rule
from m1agent.problems import close_match
from m1agent.prompt.envelope import Named, ToolChoice
from m1agent.tools import Tool
from m1agent.toolset import Toolset

LOG = logging.getLogger("m1agent")
WILDCARDS = frozenset("*?[")


def check_choice(choice: ToolChoice, tools: Toolset) -> None:
    """Raises ValueError where no reply could be what was chosen."""
    if choice == "required" and not len(tools):
        raise ValueError("tool_choice='required' needs tools, and the agent has none")
    if isinstance(choice, Named) and choice.name not in tools:
        raise ValueError(f"tool_choice: {tools.unknown(choice.name)}")


def check_rules(approval: Approval, tools: Iterable[Tool], absent: Mapping[str, str]) -> None:
    """Hold rules that name a tool, and no pattern, against the tools there are: a rule with a typing error would let
    pass what it was to stop.

    Args:
        approval: whose rules.
        tools: all that may be called in the run.
        absent: beginnings of the names of tools that could not be had, with the reason; rules about these are logged.
            Without a reason, nothing is known of them.

    Raises:
        ValueError: a rule names no tool, or an argument that its tool does not have.
    """
    if not approval.rules:
        return
    known: dict[str, list[Tool]] = {}
    for tool in tools:
        known.setdefault(tool.name, []).append(tool)
    for rule in approval.rules:
        if WILDCARDS & set(rule.tools):
            continue
        if rule.tools in known:
            _check_arguments(rule, known[rule.tools])
        else:
            _check_absent(rule, known, absent)


def _check_absent(rule: Rule, known: Iterable[str], absent: Mapping[str, str]) -> None:
    reason = next((why for begin, why in absent.items() if rule.tools.startswith(begin)), None)
    if reason is None:
        raise ValueError(f"approval: {rule!r} fits no tool.{close_match(rule.tools, known)}")
    if reason:
        LOG.warning("approval: %r fits no tool now: %s", rule, reason)


def _check_arguments(rule: Rule, tools: Iterable[Tool]) -> None:
    declared = [_declared(tool) for tool in tools]
    for name in rule.arguments:
        closed = [names for names in declared if names is not None]
        if len(closed) == len(declared) and not any(name in names for names in closed):
            names = sorted({other for names in closed for other in names})
            raise ValueError(
                f"approval: {rule!r} names the argument '{name}', which {rule.tools} does not have."
                f"{close_match(name, names)} Arguments: {', '.join(names) or 'none'}."
            )


def _declared(tool: Tool) -> Iterable[str] | None:
    """The names of all arguments the tool can have; None where others are possible too."""
    schema = tool.spec.parameters
    closed = tool.parameters is not None or schema.get("additionalProperties") is False
    return tuple(cast("dict[str, Any]", schema.get("properties", {}))) if closed and not _open(schema) else None


def _open(schema: Mapping[str, Any]) -> bool:
    return any(keyword in schema for keyword in ("patternProperties", "$ref", "$dynamicRef"))

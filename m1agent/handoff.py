"""Agents that use agents: as a tool that answers, or by handing the conversation over."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from m1agent.context import Context
from m1agent.errors import ToolDefinitionError, ToolError
from m1agent.messages import ToolSpec
from m1agent.schema import canonical_json
from m1agent.tools import Tool
from m1agent.validation import ArgumentsSchema

if TYPE_CHECKING:
    from m1agent.agent import Agent

PROMPT = {
    "type": "object",
    "properties": {"prompt": {"type": "string", "description": "What to do, with everything the agent must know."}},
    "required": ["prompt"],
    "additionalProperties": False,
}
NOTHING: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, eq=False, kw_only=True)
class Handoff(Tool):
    """A tool that gives the conversation to another agent, which goes on in the same run."""

    agent: Any


def agent_tool(agent: Agent[Any, Any], name: str | None, description: str) -> Tool:
    """A tool that asks `agent` and returns its answer. Its tokens count for the run that calls it.

    Raises:
        ToolDefinitionError: the name cannot be a tool's.
    """

    async def ask(context: Context[Any], prompt: str) -> Any:
        result = await agent.run(prompt, deps=context.deps)
        context.charge(result.usage)
        if result.stop != "done":
            why = result.reason or (str(result.error) if result.error else "")
            raise ToolError(f"The agent stopped without an answer: {result.stop}{f' ({why})' if why else ''}.")
        return result.output

    return Tool.from_schema(_name(agent, name), description, PROMPT, ask, takes_context=True)


def handoff(agent: Agent[Any, Any], *, name: str | None = None, description: str = "") -> Handoff:
    """A tool that hands the conversation over to `agent`: its model, instructions and tools go on from here.

    Raises:
        ToolDefinitionError: the name cannot be a tool's.
    """
    title = name or f"transfer_to_{_name(agent, None)}"
    told = description or f"Hand the conversation over to {agent.name}."

    def transfer() -> str:
        return canonical_json({"assistant": agent.name})

    return Handoff(
        spec=ToolSpec(_name(agent, title), told, NOTHING),
        handler=transfer,
        checker=ArgumentsSchema(NOTHING),
        agent=cast("Any", agent),
    )


def _name(agent: Agent[Any, Any], given: str | None) -> str:
    name = given or re.sub(r"\W+", "_", agent.name.strip()).strip("_").lower()
    if not NAME.fullmatch(name):
        raise ToolDefinitionError(
            f"'{name}' cannot be a tool's name; give the agent a name of letters, digits, '_' and '-'"
        )
    return name

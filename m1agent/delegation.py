"""Agents that use agents: as a tool that answers, or by handing the conversation over."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from m1agent.arguments import FunctionArguments
from m1agent.cancel import Cancel
from m1agent.context import Context
from m1agent.errors import ToolDefinitionError, ToolError
from m1agent.events import ReplyFinished, RunFinished
from m1agent.messages import ToolSpec, Usage
from m1agent.schema import canonical_json
from m1agent.tools import Tool

if TYPE_CHECKING:
    from m1agent.agent import Agent
    from m1agent.result import RunResult

PROMPT = {
    "type": "object",
    "properties": {"prompt": {"type": "string", "description": "What to do, with everything the agent must know."}},
    "required": ["prompt"],
    "additionalProperties": False,
}
NOTHING: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
STOPPED = "The agent stopped without an answer"
NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, eq=False, kw_only=True)
class Handoff(Tool):
    """A tool that gives the conversation to another agent, which goes on in the same run."""

    agent: Any


def agent_tool(agent: Agent[Any, Any], name: str | None, description: str) -> Tool:
    """A tool that asks `agent` and returns its answer. It is given the deps of the run that calls it. Its tokens count
    there as they are used, and it may use no more than are left there. Calls that wait for approval are answered by
    its own `approval`, else by that of the run that calls it.

    Raises:
        ToolDefinitionError: the name cannot be a tool's.
    """

    async def ask(context: Context[Any], prompt: str) -> Any:
        result, spent = await _charged(agent, prompt, context)
        if result.stop == "done":
            return result.output
        if result.stop == "approval":
            names = ", ".join(dict.fromkeys(call.name for call in result.pending))
            raise ToolError(f"{STOPPED}: a person must approve its call of {names}, and nobody can be asked here.")
        why = result.reason or (str(result.error) if result.error else "")
        raise ToolError(f"{STOPPED}: {'tokens' if spent else result.stop}{f' ({why})' if why else ''}.")

    return Tool.from_schema(_name(agent, name), description, PROMPT, ask, takes_context=True)


async def _charged(agent: Agent[Any, Any], prompt: str, context: Context[Any]) -> tuple[RunResult[Any], bool]:
    """The agent's run, within what is left to the run that asks; and whether others used that up meanwhile."""
    left = context.left
    if left is None:
        raise ToolError("The agent was not asked: the tokens allowed in this run are used up.")
    charged, spent = Usage(), Cancel()
    options: Any = {"deps": context.deps, "limits": agent.limits & left, "ask": context.ask, "cancel": spent}
    async with aclosing(agent.stream(prompt, **options)) as stream:
        async for event in stream:
            if isinstance(event, ReplyFinished):
                context.charge(event.usage)
                charged += event.usage
                if context.left is None and event.message.calls:
                    spent.cancel()
            if isinstance(event, RunFinished):
                context.charge(event.result.usage - charged)  # Agents of its own, summaries.
                return event.result, spent.requested
    raise AssertionError("a run ends with RunFinished")


def handoff(agent: Agent[Any, Any], *, name: str | None = None, description: str = "") -> Handoff:
    """A tool that hands the conversation over to `agent`: its model, instructions, tools, approval, hooks, settings,
    budget and compaction go on from here, under the limits of the run.

    What comes out stays the business of the agent that was asked: the type of the answer and the output guards are
    its, and so its caller's types hold. Two agents may hand over to each other:
    `first.tools = Toolset("tools", [*first.tools, handoff(second)])`.

    Raises:
        ToolDefinitionError: the name cannot be a tool's.
    """
    title = name or f"transfer_to_{_name(agent, None)}"
    told = description or f"Hand the conversation over to {agent.name}."

    async def transfer(context: Context[Any]) -> str:
        agent.check_deps(context.deps)
        return canonical_json({"assistant": agent.name})

    return Handoff(
        spec=ToolSpec(_name(agent, title), told, NOTHING),
        handler=transfer,
        checker=FunctionArguments(NOTHING),
        takes_context=True,
        agent=cast("Any", agent),
    )


def reachable(agent: Agent[Any, Any]) -> Sequence[Agent[Any, Any]]:
    """The agent and all that may come to have its conversation by hand-offs, the nearest first."""
    found = [agent]
    for one in found:  # Grows while it is read.
        found += [tool.agent for tool in one.tools if isinstance(tool, Handoff) and tool.agent not in found]
    return found


def _name(agent: Agent[Any, Any], given: str | None) -> str:
    name = given or re.sub(r"\W+", "_", agent.name.strip(), flags=re.ASCII).strip("_").lower()
    if not NAME.fullmatch(name):
        raise ToolDefinitionError(
            f"'{name}' cannot be a tool's name; give the agent a name of letters, digits, '_' and '-'"
        )
    return name

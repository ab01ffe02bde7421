"""An agent: a model, its tools and its limits. It holds no conversation; each run brings its own."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import AbstractContextManager, aclosing, asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self, Unpack, cast, overload

from typing_extensions import TypeVar

from m1agent.approval import Approval, Ask
from m1agent.blocking import run_blocking
from m1agent.budget import ResultBudget, Spill
from m1agent.conversation import Conversation
from m1agent.delegation import reachable
from m1agent.events import Event, HandedOff, RunFinished
from m1agent.hooks import Hooks
from m1agent.limits import Limits
from m1agent.loop import Run
from m1agent.messages import JsonSchema, Message, Setup
from m1agent.meter import Progress
from m1agent.models import load_model
from m1agent.models.base import Model, Settings
from m1agent.options import AgentOptions, ToolLike, check_options
from m1agent.output import Output
from m1agent.plan import RunPlan
from m1agent.preflight import check_choice, check_rules
from m1agent.request import RunOptions, check_deps, read_approvals, read_choice, read_prompt
from m1agent.result import RunResult
from m1agent.tools import Tool
from m1agent.toolset import Toolset, gather_tools

if TYPE_CHECKING:
    from anyio.from_thread import BlockingPortal
    from mcp.server import Server

    from m1agent.mcp.hub import McpHub
    from m1agent.mcp.server import ServerStatus

Deps = TypeVar("Deps", default=None)
Out = TypeVar("Out", default=str)
AnyDeps = TypeVar("AnyDeps", default=None)


class Agent(Generic[Deps, Out]):
    """Answers questions with a model and tools.

        agent = Agent("m1-nano", tools=[calculate_math])
        result = agent.run_sync("What is the derivative of 3x^2 + 2x - 1?")
        print(result.output, result.stop)

    MCP servers are connected when the agent is entered (`async with agent:`, or `with agent:` for `run_sync`) and stay
    connected until it is left; without that, each run connects and disconnects them. A server that can't be reached is
    left out, and `servers` says why; one that is `required` raises McpError. What the agent loaded itself, it closes.

    Args:
        model: a `Model`, or what `load_model` takes: `"m1-nano"` or a checkpoint folder.
        tools: `Tool`s, `Toolset`s and typed functions, in the order the model is told of them.
        instructions: what outranks the user's words.
        name: what other agents and traces call it.
        output: the type of the answer (a pydantic model, or any type pydantic knows); None or `str` for text.
        deps_type: the type of `deps` that every run must be given, for tools that take a `Context`.
        limits: bounds of each run.
        settings: how replies are sampled.
        mcp: MCP servers: a JSON file or dict with `mcpServers`, one configuration, or a list of them.
        elicit: asks a person what servers want to know: given an `Elicitation`, it returns `Accepted(values)`,
            `Declined()` or `Cancelled()`.
        roots: the folders and files that servers are told to work in.
        approval: which calls wait for a human, and who is asked: an `Approval`, or a function that answers.
        hooks: functions that may change calls and results.
        input_guards: look at what a run is given, before the model does.
        output_guards: look at an answer before it is the result.
        compaction: when and how long conversations are shortened; None for never.
        results: how much of one tool result the model is shown.
        observers: are told of every run, such as `Tracing()`.

    Raises:
        ToolDefinitionError: two tools have the same name, or something cannot become a tool.
        ModelNotFound: no model goes by that name.
        McpError: the MCP configuration cannot be read.
        TypeError: `model` is no model, `output` no type of an answer, or an option is unknown or of another kind.
    """

    @overload
    def __init__(
        self,
        model: str | Path | Model,
        tools: Iterable[ToolLike] = ...,
        instructions: str = ...,
        *,
        output: None = ...,
        deps_type: type[Deps] = ...,
        **options: Unpack[AgentOptions],
    ) -> None: ...
    @overload
    def __init__(
        self,
        model: str | Path | Model,
        tools: Iterable[ToolLike] = ...,
        instructions: str = ...,
        *,
        output: type[Out],
        deps_type: type[Deps] = ...,
        **options: Unpack[AgentOptions],
    ) -> None: ...
    @overload
    def __init__(
        self: Agent[AnyDeps, Any],
        model: str | Path | Model,
        tools: Iterable[ToolLike] = ...,
        instructions: str = ...,
        *,
        output: Any,
        deps_type: type[AnyDeps] = ...,
        **options: Unpack[AgentOptions],
    ) -> None: ...
    def __init__(
        self,
        model: str | Path | Model,
        tools: Iterable[ToolLike] = (),
        instructions: str = "",
        *,
        output: Any = None,
        deps_type: Any = None,
        **options: Unpack[AgentOptions],
    ) -> None:
        from m1agent.mcp.config import as_servers

        check_options("Agent", options, AgentOptions)
        if not isinstance(model, str | Path) and not hasattr(model, "open"):
            raise TypeError(f"model={model!r} is neither a Model nor a name such as 'm1-nano'")
        self._options = options
        self._servers = as_servers(options.get("mcp", ()))
        self._owns_model = isinstance(model, str | Path)
        self._spill = Spill(options.get("results") or ResultBudget())
        self.model: Model = load_model(model) if isinstance(model, str | Path) else model
        self.tools = gather_tools(tools)
        if self._spill.budget.reader:
            self.tools = gather_tools([self.tools, self._spill.reader()])
        self.instructions = instructions
        self.name = options.get("name", "agent")
        self.limits = options.get("limits") or Limits()
        self.settings = options.get("settings") or Settings()
        self._output = None if output is None or output is str else Output(output)
        self._deps_type = deps_type
        self._approval = _approval(options.get("approval"))
        self._hub: McpHub | None = None
        self._portal: AbstractContextManager[BlockingPortal] | None = None
        self._entered_portal: BlockingPortal | None = None
        self.servers: tuple[ServerStatus, ...] = ()

    async def run(
        self, prompt: str | Sequence[Message] | None = None, **options: Unpack[RunOptions[Deps]]
    ) -> RunResult[Out]:
        """Answer `prompt`, going on with `conversation` where one is given.

        What a run can meet is in the result: `result.stop`. Arguments and errors are those of `stream`.
        """
        async with aclosing(self.stream(prompt, **options)) as stream:
            async for event in stream:
                if isinstance(event, RunFinished):
                    return event.result
        raise AssertionError("a run ends with RunFinished")

    async def stream(
        self, prompt: str | Sequence[Message] | None = None, **options: Unpack[RunOptions[Deps]]
    ) -> AsyncGenerator[Event]:
        """The events of a run as they happen; the last is `RunFinished`. Leaving early cancels the run.

        Args:
            prompt: the user's words, or messages; None goes on with the conversation as it stands. Where calls of an
                agent wait that this one had handed over to, that one goes on.
            options: see `RunOptions`: `conversation`, `deps`, `limits`, `settings`, `tool_choice`, `cancel`,
                `ask`, `approvals`.

        Raises:
            TypeError: the prompt is neither text nor messages, an option is unknown, or `deps` is of another type than
                the agent's.
            ValueError: `tool_choice` cannot be met with the agent's tools, `approvals` names a call that does not wait,
                or a rule of `approval` names a tool or an argument that is not there.
            ConversationInUse: another run is using the conversation.
        """
        check_options("run", options, RunOptions)
        conversation = options.get("conversation")
        talk = Conversation() if conversation is None else conversation
        choice = read_choice(options.get("tool_choice", "auto"))
        new, deps = read_prompt(prompt), options.get("deps")
        agent = first = self._going_on(talk)
        self.check_deps(deps)
        agent.check_deps(deps)
        answers = read_approvals(options.get("approvals"), talk)
        progress = Progress(options.get("limits") or self.limits)
        with talk.in_use():
            while True:
                async with agent._connected() as hub:
                    plan = agent._plan(hub, options, asked=self)
                    if agent is first:
                        check_choice(choice, plan.tools)
                        self._check_rules(agent, hub)
                    await talk.attach(agent.model, Setup(plan.instructions, plan.tools.specs))
                    cancel = options.get("cancel")
                    run = Run(talk, plan, progress, new=new, choice=choice, deps=deps, cancel=cancel, answers=answers)
                    async with aclosing(run.events()) as events:
                        async for event in events:
                            yield event
                if run.handed_to is None:
                    return
                first = None
                agent, new, choice, answers = run.handed_to, (), "auto", read_approvals(None, talk)
                yield HandedOff(agent.name)

    def run_sync(
        self, prompt: str | Sequence[Message] | None = None, **options: Unpack[RunOptions[Deps]]
    ) -> RunResult[Out]:
        """`run` for programs that are not async. It also works where an event loop is already running."""
        run = functools.partial(self.run, prompt, **options)
        return self._entered_portal.call(run) if self._entered_portal else run_blocking(run)

    def as_tool(self, name: str | None = None, description: str = "") -> Tool:
        """A tool that puts a question to this agent and returns its answer; its tokens count for the run that asks.

        Raises:
            ToolDefinitionError: the name cannot be a tool's.
        """
        from m1agent.delegation import agent_tool

        return agent_tool(self, name, description or f"Ask {self.name}.")

    def setup(self) -> Setup:
        """What a model reads before the first turn: instructions, and all tools connected in this event loop."""
        here = self._hub is not None and self._hub.loop is asyncio.get_running_loop()
        return Setup(self._instructions(self._output), self._all_tools(self._hub if here else None).specs)

    def check_deps(self, deps: Any) -> None:
        """Raises TypeError where `deps` is not of the agent's `deps_type`."""
        check_deps(deps, self._deps_type)

    @property
    def mcp(self) -> McpHub | None:
        """The connected MCP servers, their resources and prompts; None where the agent is not entered or has none."""
        return self._hub

    @property
    def output_schema(self) -> JsonSchema | None:
        """The JSON Schema of the answer, or None where it is text."""
        return self._output.schema if self._output is not None else None

    def as_mcp_server(self, name: str | None = None, **options: Any) -> Server[Any]:
        """An MCP server that offers this agent as a tool `ask`; `m1agent.mcp.expose.as_mcp_server` has the options."""
        from m1agent.mcp.expose import as_mcp_server

        return as_mcp_server(self, name, **options)

    async def aclose(self) -> None:
        """Disconnect the servers and close the model if the agent loaded it. Calling it again does nothing."""
        hub, self._hub = self._hub, None
        if hub is not None:
            await hub.aclose()
        if self._owns_model:
            await self.model.aclose()

    async def __aenter__(self) -> Self:
        self._hub, _ = await self._connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __enter__(self) -> Self:
        from anyio.from_thread import start_blocking_portal

        self._portal = start_blocking_portal()
        self._entered_portal = self._portal.__enter__()
        try:
            self._entered_portal.call(self.__aenter__)
        except BaseException:
            self._leave_portal()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._entered_portal is not None:
                self._entered_portal.call(self.aclose)
        finally:
            self._leave_portal()

    def _leave_portal(self) -> None:
        portal, self._portal, self._entered_portal = self._portal, None, None
        if portal is not None:
            portal.__exit__(None, None, None)

    def _all_tools(self, hub: McpHub | None) -> Toolset:
        return gather_tools([self.tools, *(hub.tools if hub else ())])

    def _instructions(self, output: Output | None) -> str:
        asked = output.instructions() if output is not None else ""
        return "\n\n".join(part for part in (self.instructions, asked) if part)

    def _plan(self, hub: McpHub | None, given: RunOptions[Any], asked: Agent[Any, Any]) -> RunPlan:
        """This agent's part in a run that `asked` was asked for: what goes in and comes out is that one's business."""
        options = self._options
        seen = tuple(asked._options.get("observers", ()))
        return RunPlan(
            model=self.model,
            tools=self._all_tools(hub),
            name=self.name,
            instructions=self._instructions(asked._output),
            settings=given.get("settings") or self.settings,
            output=asked._output,
            approval=self._approval.asking(given.get("ask")),
            hooks=options.get("hooks") or Hooks(),
            spill=self._spill,
            input_guards=asked._options.get("input_guards", ()),
            output_guards=asked._options.get("output_guards", ()),
            compaction=options.get("compaction"),
            observers=(*seen, *(one for one in options.get("observers", ()) if one not in seen)),
            refresh=functools.partial(self._refresh, hub) if hub is not None else None,
        )

    def _going_on(self, talk: Conversation) -> Agent[Any, Any]:
        """The agent whose calls wait in the conversation, if this one or those it may hand over to made them."""
        if not talk.waiting:
            return self
        team = reachable(self)
        named = [agent for agent in team if agent.name == talk.agent]
        names = {call.name for call in talk.waiting}
        able = [agent for agent in named or team if all(name in agent.tools for name in names)]
        return next(iter(able or named), self)

    def _check_rules(self, agent: Agent[Any, Any], hub: McpHub | None) -> None:
        """Raises ValueError for rules that fit no tool of a run that begins with `agent`, whose servers are `hub`."""
        team = reachable(self)
        if not any(one._approval.rules for one in team):
            return
        from m1agent.mcp.naming import server_prefix, tool_name

        status = {one.name: one for one in hub.status} if hub is not None else {}
        absent: dict[str, str] = {}
        for one in team:
            for server in one._servers:
                found = status.get(server.name) if one is agent else None
                if found is None or found.state != "ready":
                    absent[server_prefix(server.name)] = f"server '{server.name}': {found.reason}" if found else ""
                else:
                    absent |= {tool_name(server.name, bad.name): bad.reason for bad in found.left_out}
        tools = [*agent._all_tools(hub), *(tool for one in team for tool in one.tools)]
        for one in team:
            check_rules(one._approval, tools, absent)

    async def _refresh(self, hub: McpHub) -> None:
        """Hear of tools that came and went. A run keeps the tools it began with; new ones are for the next."""
        if hub.changed:
            await hub.refresh()
            self.servers = hub.status

    @asynccontextmanager
    async def _connected(self) -> AsyncGenerator[McpHub | None]:
        """The servers' hub; one that was connected for this alone is closed again."""
        hub, connected_here = await self._connect()
        try:
            yield hub
        finally:
            if connected_here and hub is not None:
                await hub.aclose()

    async def _connect(self) -> tuple[McpHub | None, bool]:
        """The servers' hub in this event loop, and whether it was connected just now."""
        if not self._servers:
            return None, False
        if self._hub is not None and self._hub.loop is asyncio.get_running_loop():
            await self._hub.refresh()
            self.servers = self._hub.status
            return self._hub, False
        from m1agent.mcp.client_side import ClientSide
        from m1agent.mcp.hub import McpHub

        side = ClientSide(self.model, self._options.get("elicit"), tuple(self._options.get("roots", ())))
        hub = McpHub(self._servers, side)
        await hub.connect()
        self.servers = hub.status
        return hub, True


def _approval(given: Any) -> Approval:
    if given is None or isinstance(given, Approval):
        return given or Approval()
    if not callable(given):
        raise TypeError(f"approval is an Approval or a function that answers, not {given!r}")
    return Approval(ask=cast("Ask", given))

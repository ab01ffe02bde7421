"""An agent: a model, its tools and its limits. It holds no conversation; each run brings its own."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, aclosing, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

from m1agent.conversation import Conversation
from m1agent.events import Event, RunFinished
from m1agent.limits import Limits
from m1agent.loop import Cancel, Run, RunResult
from m1agent.messages import AssistantMessage, Message, Setup, SystemMessage, ToolMessage, UserMessage
from m1agent.models import load_model
from m1agent.models.base import Model, Settings
from m1agent.output import Output
from m1agent.problems import shown
from m1agent.prompt.envelope import Named, ToolChoice
from m1agent.tools import Tool, Toolset, gather_tools

if TYPE_CHECKING:
    from anyio.from_thread import BlockingPortal

    from m1agent.mcp.config import ServerConfig
    from m1agent.mcp.hub import McpHub
    from m1agent.mcp.server import ServerStatus

T = TypeVar("T")
JOIN_SECONDS = 0.1


class Agent:
    """Answers questions with a model and tools.

        agent = Agent("m1-nano", tools=[calculate_math])
        result = agent.run_sync("What is the derivative of 3x^2 + 2x - 1?")
        print(result.output, result.stop)

    MCP servers are connected when the agent is entered (`async with agent:`, or `with agent:` for `run_sync`) and stay
    connected until it is left; without that, each run connects and disconnects them. A server that can't be reached is
    left out, and `servers` says why. What the agent loaded itself, it closes.

    Args:
        model: a `Model`, or what `load_model` takes: `"m1-nano"` or a checkpoint folder.
        tools: `Tool`s, `Toolset`s and typed functions, in the order the model is told of them.
        instructions: what outranks the user's words.
        output: the type of the answer (a pydantic model, or any type pydantic knows); None for text.
        limits: bounds of each run.
        settings: how replies are sampled.
        mcp: MCP servers: a JSON file or dict with `mcpServers`, one configuration, or a list of them.

    Raises:
        ToolDefinitionError: two tools have the same name, or something cannot become a tool.
        ModelNotFound: no model goes by that name.
        McpError: the MCP configuration cannot be read.
        TypeError: `model` is no model, or `output` no type of an answer.
    """

    def __init__(
        self,
        model: str | Path | Model,
        tools: Iterable[Tool | Toolset | Callable[..., Any]] = (),
        instructions: str = "",
        *,
        output: Any = None,
        limits: Limits | None = None,
        settings: Settings | None = None,
        mcp: str | Path | Mapping[str, Any] | ServerConfig | Sequence[ServerConfig] = (),
    ) -> None:
        from m1agent.mcp.config import as_servers

        if not isinstance(model, str | Path) and not hasattr(model, "open"):
            raise TypeError(f"model={model!r} is neither a Model nor a name such as 'm1-nano'")
        self._owns_model = isinstance(model, str | Path)
        self.model: Model = load_model(model) if isinstance(model, str | Path) else model
        self.tools = gather_tools(tools)
        self.instructions = instructions
        self.limits = limits or Limits()
        self.settings = settings or Settings()
        self._output = Output(output) if output is not None else None
        self._servers = as_servers(mcp)
        self._hub: McpHub | None = None
        self._portal: AbstractContextManager[BlockingPortal] | None = None
        self._entered_portal: BlockingPortal | None = None
        self.servers: tuple[ServerStatus, ...] = ()

    async def run(
        self,
        prompt: str | Sequence[Message] | None = None,
        *,
        conversation: Conversation | None = None,
        limits: Limits | None = None,
        settings: Settings | None = None,
        tool_choice: ToolChoice | Tool = "auto",
        cancel: Cancel | None = None,
    ) -> RunResult:
        """Answer `prompt`, going on with `conversation` where one is given.

        What a run can meet is in the result: `result.stop`. The arguments are those of `stream`.
        """
        stream = self.stream(
            prompt, conversation=conversation, limits=limits, settings=settings, tool_choice=tool_choice, cancel=cancel
        )
        async with aclosing(stream):
            async for event in stream:
                if isinstance(event, RunFinished):
                    return event.result
        raise AssertionError("a run ends with RunFinished")

    async def stream(
        self,
        prompt: str | Sequence[Message] | None = None,
        *,
        conversation: Conversation | None = None,
        limits: Limits | None = None,
        settings: Settings | None = None,
        tool_choice: ToolChoice | Tool = "auto",
        cancel: Cancel | None = None,
    ) -> AsyncGenerator[Event]:
        """The events of a run as they happen; the last is `RunFinished`. Leaving early cancels the run.

        Args:
            prompt: the user's words, or messages; None goes on with the conversation as it stands.
            conversation: what was said before; it is extended.
            limits, settings: instead of the agent's.
            tool_choice: what the first reply must be: `auto`, `none`, `required`, a `Named` or one of the tools.
            cancel: ends the run from outside.

        Raises:
            TypeError: the prompt is neither text nor messages.
            ValueError: `tool_choice` is none of the above.
            ConversationInUse: another run is using the conversation.
        """
        talk = Conversation() if conversation is None else conversation
        choice = _choice(tool_choice)
        new = _messages(prompt)
        with talk.in_use():
            for message in new:
                talk.append(message)
            hub, connected_here = await self._connect()
            try:
                tools = self._all_tools(hub)
                await talk.attach(self.model, Setup(self._instructions(), tools.specs))
                run = Run(
                    talk,
                    tools,
                    limits=limits or self.limits,
                    settings=settings or self.settings,
                    output=self._output,
                    choice=choice,
                    cancel=cancel,
                )
                async with aclosing(run.events()) as events:
                    async for event in events:
                        yield event
            finally:
                if connected_here and hub is not None:
                    await hub.aclose()

    def run_sync(
        self,
        prompt: str | Sequence[Message] | None = None,
        *,
        conversation: Conversation | None = None,
        limits: Limits | None = None,
        settings: Settings | None = None,
        tool_choice: ToolChoice | Tool = "auto",
        cancel: Cancel | None = None,
    ) -> RunResult:
        """`run` for programs that are not async. It also works where an event loop is already running."""
        run = functools.partial(
            self.run,
            prompt,
            conversation=conversation,
            limits=limits,
            settings=settings,
            tool_choice=tool_choice,
            cancel=cancel,
        )
        return self._entered_portal.call(run) if self._entered_portal else run_blocking(run)

    def setup(self) -> Setup:
        """What a model reads before the first turn: instructions, and all tools connected in this event loop."""
        here = self._hub is not None and self._hub.loop is asyncio.get_running_loop()
        return Setup(self._instructions(), self._all_tools(self._hub if here else None).specs)

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

    def _instructions(self) -> str:
        asked = self._output.instructions() if self._output is not None else ""
        return "\n\n".join(part for part in (self.instructions, asked) if part)

    async def _connect(self) -> tuple[McpHub | None, bool]:
        """The servers' hub in this event loop, and whether it was connected just now."""
        if not self._servers:
            return None, False
        if self._hub is not None and self._hub.loop is asyncio.get_running_loop():
            return self._hub, False
        from m1agent.mcp.hub import McpHub

        hub = McpHub(self._servers)
        await hub.connect()
        self.servers = hub.status
        return hub, True


def _messages(prompt: Any) -> Sequence[Message]:
    if isinstance(prompt, str):
        return [UserMessage(prompt)]
    if prompt is None:
        return ()
    kinds = (SystemMessage, UserMessage, AssistantMessage, ToolMessage)
    if not isinstance(prompt, Sequence) or not all(isinstance(item, kinds) for item in cast("Sequence[Any]", prompt)):
        raise TypeError(f"a prompt is text or a list of messages such as UserMessage('Hi'), not {shown(prompt)}")
    return cast("Sequence[Message]", prompt)


def _choice(given: Any) -> ToolChoice:
    if isinstance(given, Tool):
        return Named(given.name)
    if given in ("auto", "none", "required") or isinstance(given, Named):
        return given
    raise ValueError(f"tool_choice is 'auto', 'none', 'required', a tool or Named('<tool>'), not {given!r}")


def run_blocking(function: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine function to its end; in a thread of its own where an event loop runs in this one."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(function())
    outcome: list[T] = []
    errors: list[BaseException] = []
    running: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any] | None]] = []

    async def begin() -> T:
        running.append((asyncio.get_running_loop(), asyncio.current_task()))
        return await function()

    def work() -> None:
        try:
            outcome.append(asyncio.run(begin()))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work, name="m1agent run_sync")
    thread.start()
    try:
        _join(thread)
    except BaseException:
        for loop, task in running:
            with suppress(RuntimeError):  # The loop has just ended by itself.
                loop.call_soon_threadsafe(task.cancel if task else loop.stop)
        thread.join()
        raise
    if errors:
        raise errors[0]
    return outcome[0]


def _join(thread: threading.Thread) -> None:
    """Wait for the thread. Raises KeyboardInterrupt at Ctrl-C, which asyncio's runner makes a cancellation of the task
    that waits here and so could never learn of it."""
    here = asyncio.current_task()
    before = here.cancelling() if here else 0
    while thread.is_alive():
        thread.join(JOIN_SECONDS)
        if here and here.cancelling() > before:
            raise KeyboardInterrupt

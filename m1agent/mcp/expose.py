"""Our tools and agents for other programs: a Toolset or an Agent as an MCP server.

The server is the mcp package's low-level one: its MCPServer makes schemas of function signatures, masks what a tool
raises, and configures the root logger.
"""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from pydantic_core import from_json

from m1agent.approval import Approval, ApprovalRequest, Denied
from m1agent.context import Context
from m1agent.errors import ToolError
from m1agent.events import Event, RunFinished, StepStarted, ToolProgress, ToolStarted
from m1agent.messages import ImagePart, JsonSchema, Part, ToolCall, ToolOutput, whole_text
from m1agent.render import note, render_result
from m1agent.tools import Hints, Tool
from m1agent.toolset import Toolset

if TYPE_CHECKING:
    from mcp.server import Server, ServerRequestContext
    from mcp_types import (
        CallToolRequestParams,
        CallToolResult,
        ContentBlock,
        ListToolsResult,
        PaginatedRequestParams,
        ToolAnnotations,
    )
    from mcp_types import Tool as ListedTool

    from m1agent.agent import Agent
    from m1agent.loop import RunResult

log = logging.getLogger("m1agent.mcp")
ASK = "ask"
QUESTION: JsonSchema = {
    "type": "object",
    "properties": {"prompt": {"type": "string", "description": "What to ask, with everything needed to answer it."}},
    "required": ["prompt"],
    "additionalProperties": False,
}
UNASKED = "This call needs a person's approval, which this server cannot ask for."


def as_mcp_server(
    offered: Toolset | Agent[Any, Any],
    name: str | None = None,
    *,
    tools: bool = False,
    deps: Any = None,
    approval: Approval | None = None,
) -> Server[Any]:
    """An MCP server, of both protocol eras, that offers a toolset's tools, or an agent as one tool called `ask`.

    `m1agent.mcp.serve` runs it over stdio or HTTP; `mcp.Client(server)` reaches it in the same process. Each
    question is a conversation of its own; unless the agent is entered around it, each also connects its servers anew.

    Args:
        offered: the toolset or agent.
        name: what the server calls itself; by default the toolset's name, or `agent`.
        tools: beside `ask`, offer the agent's own tools.
        deps: what tools and runs find in `Context.deps`.
        approval: who may call the tools; a call that would have to be asked about, with nobody to ask, is refused.
            Without it, so is a call of a tool that was made with `approval`; one that is only hinted to be destructive
            is the client's to approve, which sees the hint.

    Raises:
        ToolDefinitionError: the agent has a tool called `ask` itself.
    """
    from mcp.server import Server

    if isinstance(offered, Toolset):
        exposed = _Exposed(offered, deps, approval)
    else:
        asked = [_ask(offered, deps), *(offered.tools if tools else ())]
        exposed = _Exposed(Toolset("agent", asked), deps, approval, offered.output_schema)
    return Server(
        name or exposed.tools.name,
        version=version("m1agent"),
        get_tool_input_schema=exposed.input_schema,
        on_list_tools=exposed.list,
        on_call_tool=exposed.call,
    )


@dataclass(frozen=True, slots=True)
class _Exposed:
    """What the server offers, and the handlers of its two requests."""

    tools: Toolset
    deps: Any = None
    approval: Approval | None = None
    answer: JsonSchema | None = None

    def input_schema(self, name: str) -> JsonSchema | None:
        found = self.tools.get(name)
        return {**found.spec.parameters, "type": "object"} if found else None

    async def list(self, _: ServerRequestContext[Any], __: PaginatedRequestParams | None) -> ListToolsResult:
        from mcp_types import ListToolsResult

        return ListToolsResult(tools=[self._listed(one) for one in self.tools])

    async def call(self, request: ServerRequestContext[Any], params: CallToolRequestParams) -> CallToolResult:
        from mcp_types import CallToolResult

        found = self.tools.get(params.name)
        if found is None:
            return CallToolResult(content=_blocks(ToolOutput(self.tools.unknown(params.name))), is_error=True)
        call = ToolCall(str(request.request_id), found.name, params.arguments or {})
        try:
            async with _progress(request) as tell:
                output = await self._run(found, call, tell)
        except ToolError as error:
            return CallToolResult(content=_blocks(ToolOutput(str(error))), is_error=True)
        except (Exception, SystemExit, KeyboardInterrupt) as error:
            log.debug("tool '%s' raised", found.name, exc_info=error)
            return CallToolResult(content=_blocks(ToolOutput(f"{type(error).__name__}: {error}")), is_error=True)
        structured = _structured(self.answer, output) if self.answer is not None and found.name == ASK else None
        return CallToolResult(content=_blocks(output), structured_content=structured)

    async def _run(self, found: Tool, call: ToolCall, tell: Callable[[str, float | None], None]) -> ToolOutput:
        if found.available is not None and not found.available():
            raise ToolError(f"{found.name} is not available now.")
        checked = found.validate(call.arguments)
        if denied := await self._denied(found, replace(call, arguments=checked.arguments)):
            raise ToolError(denied.told)
        bound = asyncio.timeout(found.timeout)
        try:
            async with bound:
                return await found.run(checked, Context(self.deps, call, on_progress=tell))
        except TimeoutError:
            if not bound.expired():
                raise
            raise ToolError(f"{found.name} did not finish within {found.timeout:g} seconds.") from None

    async def _denied(self, found: Tool, call: ToolCall) -> Denied | None:
        if self.approval is None:
            return Denied(UNASKED) if found.approval is not None and found.needs_approval(call.arguments) else None
        decision = self.approval.decide(found, call)
        if decision == "ask":
            if self.approval.ask is None:
                return Denied(UNASKED)
            return await self.approval.answer(ApprovalRequest(call, found))
        return decision if isinstance(decision, Denied) else None

    def _listed(self, one: Tool) -> ListedTool:
        from mcp_types import Tool as ListedTool

        return ListedTool(
            name=one.name,
            description=whole_text(one.spec.description),
            input_schema={**one.spec.parameters, "type": "object"},
            output_schema=_as_object(self.answer) if self.answer is not None and one.name == ASK else None,
            annotations=_annotations(one.hints),
        )


@asynccontextmanager
async def _progress(request: ServerRequestContext[Any]) -> AsyncGenerator[Callable[[str, float | None], None]]:
    """A function, for any thread, that tells the client how far a call is; all is told before this is left."""
    loop = asyncio.get_running_loop()
    said: asyncio.Queue[tuple[str, float | None] | None] = asyncio.Queue()

    async def pump() -> None:
        last, total = 0.0, None
        while (item := await said.get()) is not None:
            message, fraction = item
            # The protocol wants numbers that grow: fractions of 1 where the tool gives them, else a count.
            if fraction is not None:
                last, total = max(last if total else 0.0, fraction), 1.0
            elif total is None:
                last += 1
            await request.session.report_progress(last, total, message or None)

    def tell(message: str, fraction: float | None) -> None:
        with suppress(RuntimeError):  # A thread that outlived its call and its loop.
            loop.call_soon_threadsafe(said.put_nowait, (message, fraction))

    pumping = loop.create_task(pump(), name="MCP progress")
    try:
        yield tell
        loop.call_soon(said.put_nowait, None)  # Behind what was told: both go through the loop's queue.
        await pumping
    finally:
        pumping.cancel()


def _blocks(output: ToolOutput) -> list[ContentBlock]:
    """The text and the parts of an output; the notes that stand for parts in the text are left out."""
    from mcp_types import TextContent

    notes = {note(part) for part in output.parts}
    text = "\n".join(line for line in output.content.split("\n") if line not in notes) if notes else output.content
    texts: list[ContentBlock] = [TextContent(text=whole_text(text))] if text or not output.parts else []
    return [*texts, *map(_block, output.parts)]


def _block(part: Part) -> ContentBlock:
    from mcp_types import AudioContent, BlobResourceContents, EmbeddedResource, ImageContent

    data = base64.b64encode(part.data).decode()
    if isinstance(part, ImagePart):
        return ImageContent(data=data, mime_type=part.media_type)
    if part.media_type.startswith("audio/"):
        return AudioContent(data=data, mime_type=part.media_type)
    uri = f"m1agent:///{quote(part.name or 'file')}"
    return EmbeddedResource(resource=BlobResourceContents(uri=uri, blob=data, mime_type=part.media_type))


def _annotations(hints: Hints) -> ToolAnnotations | None:
    from mcp_types import ToolAnnotations

    if hints == Hints():
        return None
    return ToolAnnotations(
        read_only_hint=hints.read_only,
        destructive_hint=hints.destructive,
        idempotent_hint=hints.idempotent,
        open_world_hint=hints.open_world,
    )


# Agents


def _ask(agent: Agent[Any, Any], deps: Any) -> Tool:
    async def ask(context: Context[Any], prompt: str) -> ToolOutput:
        given: dict[str, Any] = {} if deps is None else {"deps": deps}
        stream: AsyncGenerator[Event] = agent.stream(prompt, **given)
        async with aclosing(stream):
            async for event in stream:
                if isinstance(event, RunFinished):
                    return _answer(event.result)
                if doing := _doing(event):
                    context.progress(doing)
        raise AssertionError("a run ends with RunFinished")

    told = f"Ask an agent{_abilities(agent)}. It answers one question at a time and remembers none."
    return Tool.from_schema(ASK, told, QUESTION, ask, takes_context=True)


def _doing(event: Event) -> str:
    match event:
        case StepStarted(step):
            return f"Step {step}"
        case ToolStarted(call):
            return f"Calling {call.name}"
        case ToolProgress(call, message) if message:
            return f"{call.name}: {message}"
        case _:
            return ""


def _abilities(agent: Agent[Any, Any]) -> str:
    names = [one.name for one in agent.tools]
    return f" that can use {', '.join(names)}" if names else ""


def _answer(result: RunResult) -> ToolOutput:
    if result.stop != "done":
        why = f": {result.error}" if result.error else ""
        raise ToolError(f"The agent stopped before an answer ({result.stop}){why}")
    return render_result(result.output)


def _structured(schema: JsonSchema, output: ToolOutput) -> Any:
    value = from_json(output.content)
    return value if _is_object(schema) else {"result": value}


def _as_object(schema: JsonSchema) -> JsonSchema:
    """The schema of an answer, in an object where it is none: the older era knows only objects."""
    if _is_object(schema):
        return schema
    inner = {key: value for key, value in schema.items() if key != "$defs"}
    definitions = {"$defs": schema["$defs"]} if "$defs" in schema else {}
    return {"type": "object", "properties": {"result": inner}, "required": ["result"], **definitions}


def _is_object(schema: JsonSchema) -> bool:
    return schema.get("type") == "object"

"""A server that uses everything of the protocol: over stdio, or over HTTP on the port given."""

from __future__ import annotations

import asyncio
import os
import sys
import warnings
from typing import Annotated, Any

from mcp.server import MCPServer
from mcp.server.mcpserver import (
    AssistantMessage,
    Audio,
    Context,
    Elicit,
    Image,
    ListRoots,
    Resolve,
    Sample,
    UserMessage,
)
from mcp.server.mcpserver.prompts.base import Message
from mcp_types import (
    BlobResourceContents,
    CallToolResult,
    CreateMessageResult,
    EmbeddedResource,
    ImageContent,
    ListRootsResult,
    ResourceLink,
    SamplingMessage,
    TextContent,
    ToolAnnotations,
)
from pydantic import BaseModel, Field

warnings.simplefilter("ignore")
mcp = MCPServer("full", log_level="CRITICAL")
cancelled = asyncio.Event()
started = asyncio.Event()


class Booking(BaseModel):
    guests: int = Field(ge=1, le=8)
    name: str = "nobody"


def ask(day: str) -> Elicit[Booking]:
    return Elicit(f"A table on {day} for how many?", Booking)


def sampled(text: str) -> Sample:
    messages = [
        SamplingMessage(role="user", content=TextContent(text="I have a text.")),
        SamplingMessage(role="assistant", content=TextContent(text="Show me.")),
        SamplingMessage(role="user", content=TextContent(text=text)),
    ]
    return Sample(messages, max_tokens=5000, system_prompt="You shorten texts.", temperature=0.5)


def roots() -> ListRoots:
    return ListRoots()


@mcp.tool()
def book(day: str, booking: Annotated[Booking, Resolve(ask)]) -> str:
    return f"{day}: {booking.guests} for {booking.name}"


@mcp.tool()
async def visit(ctx: Context[Any, Any]) -> str:
    return (await ctx.elicit_url("Please log in.", "https://example.com/login", "x1")).action


@mcp.tool()
def shorten(text: str, reply: Annotated[CreateMessageResult, Resolve(sampled)]) -> str:
    assert isinstance(reply.content, TextContent)
    return f"{reply.model}: {reply.content.text} ({reply.stop_reason})"


@mcp.tool()
def folders(found: Annotated[ListRootsResult, Resolve(roots)]) -> list[str]:
    return [str(root.uri) for root in found.roots]


@mcp.tool()
def offered(ctx: Context[Any, Any]) -> str:
    found = ctx.client_capabilities
    assert found is not None
    return " ".join(sorted(found.model_dump(exclude_none=True)))


@mcp.tool()
async def work(ctx: Context[Any, Any]) -> str:
    await ctx.report_progress(1, 4, "begun")
    await ctx.report_progress(8, 4, "beyond")
    await ctx.report_progress(2)
    return "worked"


@mcp.tool()
async def say(level: str, text: str, ctx: Context[Any, Any], times: int = 1) -> str:
    for _ in range(times):
        await ctx.log(level, text)  # type: ignore[arg-type]
    return "said"


@mcp.tool(structured_output=False)
def media() -> CallToolResult:
    blob = BlobResourceContents(uri="file:///a/table.bin", mime_type="application/x-table", blob="AAECAw==")
    return CallToolResult(
        content=[
            TextContent(text="look"),
            Image(data=b"\x89PNG", format="png").to_image_content(),
            Audio(data=b"RIFF", format="wav").to_audio_content(),
            EmbeddedResource(resource=blob),
            ResourceLink(name="far", uri="https://example.com/far"),
            ImageContent(data="no base64!", mime_type="image/gif"),
        ]
    )


@mcp.tool(structured_output=False)
def chart() -> CallToolResult:
    picture = Image(data=b"\x89PNG", format="png").to_image_content()
    return CallToolResult(content=[TextContent(text="{}"), picture], structured_content={"points": 3})


@mcp.tool()
async def wait() -> str:
    started.set()
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        cancelled.set()
        raise
    return "never"


@mcp.tool()
async def waiting() -> str:
    await started.wait()
    return "yes"


@mcp.tool()
async def was_cancelled() -> str:
    await cancelled.wait()
    return "yes"


@mcp.tool(annotations=ToolAnnotations(read_only_hint=False, destructive_hint=True, open_world_hint=True))
def delete_all() -> str:
    return "gone"


@mcp.tool(annotations=ToolAnnotations(read_only_hint=True, idempotent_hint=True))
def doomed() -> str:
    return "still here"


@mcp.tool()
async def change(ctx: Context[Any, Any]) -> str:
    """Take away one tool and bring another."""
    mcp.remove_tool("doomed")
    mcp.add_tool(lambda: "new", name="born", description="A new tool.")
    await ctx.notify_tools_changed()
    await ctx.session.send_tool_list_changed()
    return "changed"


@mcp.tool()
def die() -> str:
    os._exit(3)


@mcp.resource("notes://today", description="What is up\ntoday.", mime_type="text/plain")
def today() -> str:
    return "Water the plants."


@mcp.resource("notes://logo", mime_type="image/png")
def logo() -> bytes:
    return b"\x89PNG"


@mcp.resource("notes://day/{day}")
def day(day: str) -> str:
    return f"Nothing on {day}."


@mcp.prompt(description="Say hello.")
def greet(name: str, tone: str = "kind") -> list[Message]:
    return [UserMessage(f"Greet {name}, {tone}."), AssistantMessage("To whom?"), UserMessage(name)]


if __name__ == "__main__":
    if len(sys.argv) > 1:
        mcp.run("streamable-http", host="127.0.0.1", port=int(sys.argv[1]))
    else:
        mcp.run()

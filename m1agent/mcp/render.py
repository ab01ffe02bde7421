"""What a server's result is to the model: one text, rendered once, and the media beside it.

How much of the text a model is shown is the agent's `ResultBudget`; the bounds here only protect this process.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from m1agent.messages import FilePart, ImagePart, ToolOutput
from m1agent.render import NOTHING, note
from m1agent.schema import canonical_json

if TYPE_CHECKING:
    from mcp_types import BlobResourceContents, CallToolResult, ContentBlock, TextResourceContents

LONGEST = 10_000_000
TAIL = 2_000
LARGEST = 20 * 1024 * 1024
NAME, MEDIA_TYPE, URI = 100, 80, 500
DOCUMENTATION = re.compile(r"\n?\s*For further information visit https://errors\.pydantic\.dev/\S*")


def render(result: CallToolResult, *, structured: bool) -> ToolOutput:
    """Structured content as JSON where the tool declares it, else the text blocks.

    Images, audio and other bytes become parts, and a short note each in the text.
    """
    outputs = [render_block(block) for block in result.content]
    parts = tuple(part for output in outputs for part in output.parts)
    if structured and result.structured_content is not None and not result.is_error:
        notes = [note(part) for part in parts]
        text = "\n".join([canonical_json(result.structured_content), *notes])
    else:
        text = "\n".join(output.content for output in outputs) or NOTHING
    return ToolOutput(shorten(DOCUMENTATION.sub("", text) if result.is_error else text), parts)


def render_contents(contents: Sequence[TextResourceContents | BlobResourceContents]) -> ToolOutput:
    """A resource's contents: its texts, and the bytes that are none as parts."""
    outputs = [_contents(item) for item in contents]
    text = "\n".join(output.content for output in outputs) or NOTHING
    return ToolOutput(shorten(text), tuple(part for output in outputs for part in output.parts))


def render_block(block: ContentBlock) -> ToolOutput:
    """One block of a result or of a prompt."""
    match block.type:
        case "text":
            return ToolOutput(block.text)
        case "image":
            return _media(block.data, block.mime_type, block.type)
        case "audio":
            return _media(block.data, block.mime_type, block.type)
        case "resource_link":
            return ToolOutput(f"[resource {one_line(block.name, NAME)}: {one_line(str(block.uri), URI)}]")
        case "resource":
            return _contents(block.resource)


def one_line(text: str, longest: int) -> str:
    """What a server calls something, for a note: one line, without control characters, of at most so many."""
    line = " ".join("".join(sign if sign.isprintable() else " " for sign in text[: 4 * longest]).split())
    return line if len(line) <= longest else f"{line[: longest - 3]}..."


def shorten(text: str) -> str:
    """At most about `LONGEST` characters: the beginning and the end, and how much was left out between them."""
    if len(text) <= LONGEST:
        return text
    left_out = len(text) - LONGEST
    return f"{text[: LONGEST - TAIL]}\n[... {left_out} characters left out ...]\n{text[-TAIL:]}"


def decode(data: str) -> bytes | None:
    """The bytes of base64 text, or None where it is none or holds more than `LARGEST`."""
    if len(data) * 3 // 4 > LARGEST:
        return None
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        return None


def _contents(contents: Any) -> ToolOutput:
    text: str | None = getattr(contents, "text", None)
    if text is not None:
        return ToolOutput(text)
    name = str(contents.uri).rstrip("/").rpartition("/")[2]
    return _media(contents.blob, contents.mime_type or "application/octet-stream", "resource", name)


def _media(data: str, media_type: str, kind: str, name: str = "") -> ToolOutput:
    found, media_type, name = decode(data), one_line(media_type, MEDIA_TYPE), one_line(name, NAME)
    if found is None:
        why = "too large" if len(data) * 3 // 4 > LARGEST else "unreadable"
        return ToolOutput(f"[{kind} {media_type}, {why}]")
    part = ImagePart(found, media_type) if media_type.startswith("image/") else FilePart(found, media_type, name)
    return ToolOutput(note(part), (part,))

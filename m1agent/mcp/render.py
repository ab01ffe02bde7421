"""What a server's result is to the model: one text, rendered once, of a bounded length."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from m1agent.schema import canonical_json
from m1agent.tools import NOTHING

if TYPE_CHECKING:
    from mcp_types import CallToolResult, ContentBlock

LONGEST = 20_000
TAIL = 2_000
DOCUMENTATION = re.compile(r"\n?\s*For further information visit https://errors\.pydantic\.dev/\S*")


def render(result: CallToolResult, *, structured: bool) -> str:
    """Structured content as JSON where the tool declares it, else the text blocks; other blocks as a short note."""
    if structured and result.structured_content is not None and not result.is_error:
        text = canonical_json(result.structured_content)
    else:
        text = "\n".join(_block(block) for block in result.content) or NOTHING
    return shorten(DOCUMENTATION.sub("", text) if result.is_error else text)


def shorten(text: str) -> str:
    """At most about `LONGEST` characters: the beginning and the end, and how much was left out between them."""
    if len(text) <= LONGEST:
        return text
    left_out = len(text) - LONGEST
    return f"{text[: LONGEST - TAIL]}\n[... {left_out} characters left out ...]\n{text[-TAIL:]}"


def _block(block: ContentBlock) -> str:
    if block.type == "text":
        return block.text
    if block.type == "resource_link":
        return f"[resource {block.name}: {block.uri}]"
    if block.type == "resource":
        text: str | None = getattr(block.resource, "text", None)
        return text if text is not None else f"[resource {block.resource.uri}, binary]"
    return f"[{block.type} {block.mime_type}, {len(block.data) * 3 // 4} bytes]"

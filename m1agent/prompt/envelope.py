"""What a reply may be, as plain data: thinking, then text or an answer, or tool calls.

One definition serves the grammar that masks tokens and the parser that reads them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from m1agent.messages import JsonSchema, ToolSpec

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
CALLS_OPEN, CALLS_CLOSE = "<tool_calls>", "</tool_calls>"


@dataclass(frozen=True, slots=True)
class Named:
    """The reply must call this tool."""

    name: str


ToolChoice: TypeAlias = Literal["auto", "none", "required"] | Named


@dataclass(frozen=True, slots=True)
class Envelope:
    """What one reply may be.

    `choice` is `auto` (text, or text then calls), `none` (text only), `required` (at least one call) or `Named`.
    `answer` is the JSON Schema of the answer where that is not text. What follows the thinking is then either one JSON
    value of it or, where the choice allows them, the calls: a reply that begins with `<tool_calls>` is calls, any
    other the answer. Where calls are required it means nothing.
    """

    tools: tuple[ToolSpec, ...] = ()
    choice: ToolChoice = "auto"
    parallel: bool = True
    answer: JsonSchema | None = None

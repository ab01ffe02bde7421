"""What a conversation is made of: messages, tool calls, tool results, usage."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeAlias

JsonSchema: TypeAlias = dict[str, Any]


def whole_text(text: str) -> str:
    """`text` with U+FFFD for lone surrogates: Python strings can hold them, UTF-8 and so tokens cannot."""
    return text if text.isascii() else text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """What a model is told about a tool: its name, what it does, and the JSON Schema of its arguments."""

    name: str
    description: str
    parameters: JsonSchema


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call the model made. `problem` is set when its arguments could not be read; such a call is never run."""

    id: str
    name: str
    arguments: dict[str, Any]
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class ImagePart:
    """An image a tool returned. `media_type` is a MIME type such as `image/png`."""

    data: bytes = field(repr=False)
    media_type: str


@dataclass(frozen=True, slots=True)
class FilePart:
    """Bytes a tool returned that are no image, such as audio or a document."""

    data: bytes = field(repr=False)
    media_type: str = "application/octet-stream"
    name: str = ""


Part: TypeAlias = ImagePart | FilePart


@dataclass(frozen=True, slots=True)
class ToolOutput:
    """What a tool returns when text alone does not hold it: the text for the model, and parts beside it."""

    content: str
    parts: tuple[Part, ...] = ()


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What a call returned, as the text the model is shown; `parts` are the images and files that came with it."""

    call_id: str
    name: str
    content: str
    is_error: bool = False
    parts: tuple[Part, ...] = ()


@dataclass(frozen=True, slots=True)
class SystemMessage:
    """Instructions that outrank the user's words."""

    text: str


@dataclass(frozen=True, slots=True)
class UserMessage:
    """What the user said."""

    text: str


@dataclass(frozen=True, slots=True)
class AssistantMessage:
    """One reply of the model: its thinking, its text and its calls, in that order."""

    text: str = ""
    thinking: str = ""
    calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True, slots=True)
class ToolMessage:
    """The results of one reply's calls, in the order of the calls."""

    results: tuple[ToolResult, ...]


Message: TypeAlias = SystemMessage | UserMessage | AssistantMessage | ToolMessage


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts. `reused_tokens` were not computed again, `forced_tokens` were written by the grammar alone;
    `thinking_tokens` are those of the output that were thinking, where the model tells them apart."""

    input_tokens: int = 0
    output_tokens: int = 0
    reused_tokens: int = 0
    forced_tokens: int = 0
    thinking_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.reused_tokens + other.reused_tokens,
            self.forced_tokens + other.forced_tokens,
            self.thinking_tokens + other.thinking_tokens,
        )

    def __sub__(self, other: Usage) -> Usage:
        return Usage(
            self.input_tokens - other.input_tokens,
            self.output_tokens - other.output_tokens,
            self.reused_tokens - other.reused_tokens,
            self.forced_tokens - other.forced_tokens,
            self.thinking_tokens - other.thinking_tokens,
        )


@dataclass(frozen=True, slots=True)
class Setup:
    """What stands before the first turn: instructions and tools, fixed for the whole conversation."""

    instructions: str = ""
    tools: tuple[ToolSpec, ...] = field(default=())

"""Resources and prompts of servers, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from m1agent.mcp.render import MEDIA_TYPE, NAME, URI, one_line, render_block
from m1agent.messages import AssistantMessage, JsonSchema, Message, UserMessage

if TYPE_CHECKING:
    import mcp_types as types

LONGEST = 1000
READ_SCHEMA: JsonSchema = {
    "type": "object",
    "properties": {"uri": {"type": "string", "description": "The resource's address, as listed."}},
    "required": ["uri"],
    "additionalProperties": False,
}
NO_ARGUMENTS: JsonSchema = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True, slots=True)
class Resource:
    """Something a server lets be read. `size` is in bytes, where it is known.

    With `template`, `uri` is a pattern such as `file:///{path}` (RFC 6570), to be filled in before it is read.
    """

    server: str
    uri: str
    name: str
    description: str = ""
    media_type: str = ""
    size: int | None = None
    template: bool = False

    def line(self) -> str:
        """One line on it, for a model."""
        about = "; ".join(part for part in (self.description, one_line(self.media_type, MEDIA_TYPE)) if part)
        named = f"{one_line(self.uri, URI)} ({one_line(self.name, NAME)})"
        return f"{named}: {one_line(about, LONGEST)}" if about else named


@dataclass(frozen=True, slots=True)
class PromptArgument:
    """A text to be filled into a prompt."""

    name: str
    description: str = ""
    required: bool = False


@dataclass(frozen=True, slots=True)
class Prompt:
    """A ready-made beginning of a conversation that a server offers."""

    server: str
    name: str
    description: str = ""
    arguments: tuple[PromptArgument, ...] = ()


def resource(server: str, given: types.Resource | types.ResourceTemplate) -> Resource:
    """A listed resource, or a listed template of some."""
    uri: str | None = getattr(given, "uri_template", None)
    return Resource(
        server,
        uri if uri is not None else getattr(given, "uri", ""),
        given.name,
        given.description or "",
        given.mime_type or "",
        getattr(given, "size", None),
        uri is not None,
    )


def prompt(server: str, given: types.Prompt) -> Prompt:
    """A listed prompt."""
    arguments = [PromptArgument(one.name, one.description or "", one.required is True) for one in given.arguments or ()]
    return Prompt(server, given.name, given.description or "", tuple(arguments))


def prompt_messages(result: types.GetPromptResult) -> tuple[Message, ...]:
    """A prompt's messages; of images and the like a note."""
    return tuple(_message(message.role, message.content) for message in result.messages)


def attached(uri: str, text: str) -> UserMessage:
    """A resource's text as something the user shows the model."""
    return UserMessage(f"Resource {uri}:\n\n{text}")


def texts(arguments: Mapping[str, Any]) -> dict[str, str]:
    """Arguments of a prompt, which are texts on the wire."""
    return {name: value if isinstance(value, str) else str(value) for name, value in arguments.items()}


def _message(role: str, content: Any) -> Message:
    text = render_block(content).content
    return UserMessage(text) if role == "user" else AssistantMessage(text)

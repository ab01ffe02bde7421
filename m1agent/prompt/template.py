"""The chat format of MiniMax-M1 (its tokenizer_config template, with the quoted example the documentation shows).

A prompt is a list of `Piece`s. Only the template makes special pieces, so no text of a user, a tool or a server can
forge a turn: inside a text piece a special token's name is ordinary characters. Turns are rendered one by one and only
ever appended.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from m1agent.messages import (
    AssistantMessage,
    Message,
    Setup,
    SystemMessage,
    ToolCall,
    ToolMessage,
    UserMessage,
    whole_text,
)
from m1agent.prompt.envelope import CALLS_CLOSE, CALLS_OPEN, THINK_CLOSE, THINK_OPEN
from m1agent.schema import canonical_json, prompt_json

BEGIN_DOCUMENT = "<begin_of_document>"
BEGIN, END = "<beginning_of_sentence>", "<end_of_sentence>"

TOOLS_INTRO = "You are provided with these tools:\n<tools>\n"
TOOLS_OUTRO = (
    "</tools>\n\nIf you need to call tools, please respond with <tool_calls></tool_calls> XML tags, and provide "
    "tool-name and json-object of arguments, following the format below:\n<tool_calls>\n"
    '{"name": <tool-name-1>, "arguments": <args-json-object-1>}\n...\n</tool_calls>'
)


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of text, or one special token."""

    text: str
    special: bool = False


def render_setup(setup: Setup, system: Sequence[SystemMessage] = ()) -> list[Piece]:
    """The head of a prompt: instructions and system messages joined, then the tools, one JSON a line."""
    pieces = [Piece(BEGIN_DOCUMENT, special=True)]
    instructions = setup.instructions + "".join(message.text for message in system)
    if instructions:
        pieces += _turn("system ai_setting=assistant\n" + instructions)
    if setup.tools:
        lines = "".join(prompt_json(spec) + "\n" for spec in setup.tools)
        pieces += _turn("system tool_setting=tools\n" + TOOLS_INTRO + lines + TOOLS_OUTRO)
    return pieces


def render_message(message: Message) -> list[Piece]:
    """One turn, from its opening token to the newline after its closing token."""
    match message:
        case SystemMessage(text):
            return _turn("system ai_setting=assistant\n" + text)
        case UserMessage(text):
            return _turn("user name=user\n" + text)
        case AssistantMessage():
            return _turn("ai name=assistant\n" + reply_text(message))
        case ToolMessage(results):
            body = "".join(f"tool name: {result.name}\ntool result: {result.content}\n\n" for result in results)
            return _turn("tool name=tools\n" + body)


def render_reply(text: str) -> list[Piece]:
    """A reply as it was written, to the letter, as a turn."""
    return _turn("ai name=assistant\n" + text)


def render_reply_start() -> list[Piece]:
    """What the model continues from."""
    return [Piece(BEGIN, special=True), Piece("ai name=assistant\n")]


def reply_text(message: AssistantMessage) -> str:
    """A reply as the model writes it: thinking, text, calls."""
    thinking = f"{THINK_OPEN}\n{message.thinking}\n{THINK_CLOSE}\n" if message.thinking else ""
    return thinking + message.text + (calls_text(message.calls) if message.calls else "")


def calls_text(calls: Sequence[ToolCall]) -> str:
    """Calls as the model writes them, one JSON object a line between the tags."""
    lines = "".join(canonical_json({"name": call.name, "arguments": call.arguments}) + "\n" for call in calls)
    return f"{CALLS_OPEN}\n{lines}{CALLS_CLOSE}"


def plain_text(pieces: Sequence[Piece]) -> str:
    """The prompt as one string, for reading and for remote template checks."""
    return "".join(piece.text for piece in pieces)


def _turn(text: str) -> list[Piece]:
    return [Piece(BEGIN, special=True), Piece(whole_text(text)), Piece(END, special=True), Piece("\n")]

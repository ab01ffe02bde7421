"""Making room in a long conversation: the older part becomes a summary, as an event everybody can see.

This is the one thing that changes what was said. The model's state is computed anew after it, which `Compacted` and
`Conversation.rebuilds` show.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from m1agent.events import ReplyFinished
from m1agent.hooks import settled
from m1agent.messages import AssistantMessage, Message, Setup, SystemMessage, ToolMessage, Usage, UserMessage
from m1agent.prompt.envelope import Envelope

if TYPE_CHECKING:
    from m1agent.models.base import Model, Settings

Summarise: TypeAlias = Callable[[Sequence[Message]], "str | Awaitable[str]"]
INSTRUCTIONS = (
    "Summarise the conversation below so that it can go on without it: what the user wants, what was decided, what was "
    "found, exact names and numbers, and what is still open. Answer with the summary alone."
)
INTRODUCTION = "Summary of the conversation so far:\n"
SHOWN = 4000


@dataclass(frozen=True, slots=True)
class Compaction:
    """When and how a conversation is shortened.

    `above`: tokens of a prompt and its reply above which it happens before the next step. `keep`: the last messages
    that stay as they are, at least. `summarise`: writes the summary of the others; the agent's own model when None.
    """

    above: int
    keep: int = 6
    summarise: Summarise | None = None

    def __post_init__(self) -> None:
        if self.above < 1 or self.keep < 1:
            raise ValueError("Compaction.above and Compaction.keep must be at least 1")

    def due(self, usage: Usage) -> bool:
        """Whether a reply of this usage is the last before a compaction."""
        return usage.input_tokens + usage.output_tokens > self.above


def split(messages: Sequence[Message], keep: int) -> tuple[Sequence[Message], Sequence[Message], Sequence[Message]]:
    """System messages at the head, the older part, and the part that stays; no call is parted from its result."""
    head = next((i for i, one in enumerate(messages) if not isinstance(one, SystemMessage)), len(messages))
    cut = max(head, len(messages) - keep)
    while cut > head and isinstance(messages[cut], ToolMessage):
        cut -= 1
    return messages[:head], messages[head:cut], messages[cut:]


async def summary_of(
    compaction: Compaction, older: Sequence[Message], model: Model, settings: Settings
) -> tuple[str, Usage]:
    """The summary, and what it cost."""
    if compaction.summarise is not None:
        return await settled(compaction.summarise(older)), Usage()
    thread = model.open(Setup(INSTRUCTIONS))
    try:
        stream = cast("Any", thread.respond([UserMessage(as_text(older))], Envelope((), "none"), settings))
        async with aclosing(stream):
            async for event in stream:
                if isinstance(event, ReplyFinished):
                    return event.message.text.strip(), event.usage
    finally:
        await thread.aclose()
    return "", Usage()


def as_text(messages: Sequence[Message]) -> str:
    """Messages for a reader: who said what, which calls were made, what they brought."""
    return "\n".join(line for message in messages for line in _lines(message))


def _lines(message: Message) -> list[str]:
    match message:
        case SystemMessage(text):
            return [f"system: {_cut(text)}"]
        case UserMessage(text):
            return [f"user: {_cut(text)}"]
        case AssistantMessage(text=text, calls=calls):
            said = [f"assistant: {_cut(text)}"] if text else []
            return said + [f"assistant calls {call.name} with {_cut(str(call.arguments))}" for call in calls]
        case ToolMessage(results):
            return [f"{result.name} returned: {_cut(result.content)}" for result in results]


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]} [...]"

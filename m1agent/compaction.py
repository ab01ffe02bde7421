"""Making room in a long conversation: the older part becomes a summary, as an event everybody can see.

This is the one thing that changes what was said. The model's state is computed anew after it, which `Compacted` and
`Conversation.rebuilds` show.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from m1agent.errors import ModelError
from m1agent.events import Compacted, ReplyFinished
from m1agent.hooks import settled
from m1agent.messages import AssistantMessage, Message, Setup, SystemMessage, ToolMessage, Usage, UserMessage
from m1agent.problems import shown
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
GROWTH = 4


@dataclass(frozen=True, slots=True)
class Compaction:
    """When and how a conversation is shortened.

    `above`: tokens of a prompt and its reply above which it happens before the next step; after a compaction not before
    the conversation has grown again by a quarter of that, however long the rest of it is. `keep`: the last messages
    that stay as they are, at least; system messages always stay. `summarise`: writes the summary of the others, sync
    or async; the agent's own model when None.
    """

    above: int
    keep: int = 6
    summarise: Summarise | None = None

    def __post_init__(self) -> None:
        if self.above < 1 or self.keep < 1:
            raise ValueError("Compaction.above and Compaction.keep must be at least 1")

    def due(self, tokens: int, shortest: int) -> bool:
        """Whether a conversation is too long: of so many tokens now, and so many after the last compaction."""
        return tokens > self.above and tokens - shortest >= self.above // GROWTH


@dataclass(frozen=True, slots=True)
class Shortened:
    """A conversation after its compaction, and what the summary cost."""

    messages: Sequence[Message]
    event: Compacted
    usage: Usage


async def shortened(
    compaction: Compaction, messages: Sequence[Message], model: Model, settings: Settings
) -> Shortened | None:
    """The conversation with a summary in the place of its older part; None where all of it is to stay.

    Raises:
        ModelError: no summary could be written; the text says why.
    """
    system, older, kept = split(messages, compaction.keep)
    if not older:
        return None
    try:
        summary, usage = await _summary(compaction, older, model, settings)
    except Exception as error:
        why = str(error) if isinstance(error, ModelError) else f"{type(error).__name__}: {error}"
        raise ModelError(f"the conversation could not be summarised: {why}") from error
    after = [*system, UserMessage(INTRODUCTION + summary), *kept]
    return Shortened(after, Compacted(len(messages), len(after), summary), usage)


def split(messages: Sequence[Message], keep: int) -> tuple[Sequence[Message], Sequence[Message], Sequence[Message]]:
    """System messages of the older part, its other messages, and the part that stays; no call leaves its result."""
    cut = max(0, len(messages) - keep)
    while cut > 0 and isinstance(messages[cut], ToolMessage):
        cut -= 1
    system = [message for message in messages[:cut] if isinstance(message, SystemMessage)]
    older = [message for message in messages[:cut] if not isinstance(message, SystemMessage)]
    return system, older, messages[cut:]


async def _summary(
    compaction: Compaction, older: Sequence[Message], model: Model, settings: Settings
) -> tuple[str, Usage]:
    if compaction.summarise is None:
        text, usage = await _asked(older, model, settings)
    else:
        text, usage = await settled(compaction.summarise(older)), Usage()
    given: Any = text
    if not isinstance(given, str) or not given.strip():
        raise ModelError(f"the summary is {shown(given)}")
    return text.strip(), usage


async def _asked(older: Sequence[Message], model: Model, settings: Settings) -> tuple[str, Usage]:
    thread = model.open(Setup(INSTRUCTIONS))
    try:
        stream = cast("Any", thread.respond([UserMessage(as_text(older))], Envelope((), "none"), settings))
        async with aclosing(stream):
            async for event in stream:
                if isinstance(event, ReplyFinished):
                    return event.message.text, event.usage
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

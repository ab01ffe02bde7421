"""A reply that is still being said."""

from __future__ import annotations

from m1agent.events import CallReady, ModelEvent, TextDelta, ThinkingDelta
from m1agent.messages import AssistantMessage, ToolCall


class PartialReply:
    """What a reply has said so far."""

    def __init__(self) -> None:
        self._thinking: list[str] = []
        self._text: list[str] = []
        self._calls: list[ToolCall] = []

    def add(self, event: ModelEvent) -> None:
        """Take in one more event of the reply."""
        match event:
            case ThinkingDelta(text):
                self._thinking.append(text)
            case TextDelta(text):
                self._text.append(text)
            case CallReady(_, call):
                self._calls.append(call)
            case _:
                pass

    def message(self) -> AssistantMessage:
        """The reply as it stands; a call that was not complete is not in it."""
        return AssistantMessage("".join(self._text), "".join(self._thinking), tuple(self._calls))

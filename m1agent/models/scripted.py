"""A model that says what a test tells it to: no weights, no randomness, everything else as with a real one.

model = ScriptedModel(['<tool_calls>\\n{"name": "add", "arguments": {"a": 1, "b": 2}}\\n</tool_calls>', "It is 3."])
result = Agent(model, tools=[add]).run_sync("1 + 2?")
model.assert_complete()
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import anyio.lowlevel

from m1agent.errors import ModelError
from m1agent.events import ModelEvent, ReplyFinished
from m1agent.messages import AssistantMessage, Message, Setup, Usage
from m1agent.models.base import Settings
from m1agent.models.turns import CLOSE, last_call, opening, question
from m1agent.partial import PartialReply
from m1agent.prompt.envelope import Envelope
from m1agent.prompt.reply import ReplyParser
from m1agent.prompt.template import BEGIN, BEGIN_DOCUMENT, END, Piece, reply_text

Said: TypeAlias = str | AssistantMessage | Exception | Sequence[ModelEvent | Exception]
Reply: TypeAlias = Said | Callable[[tuple[Message, ...]], Said | Awaitable[Said]]
SPECIAL = {token: 256 + index for index, token in enumerate((BEGIN_DOCUMENT, BEGIN, END))}


@dataclass(frozen=True, slots=True)
class Request:
    """What the model was asked: the conversation so far, what the reply may be, and how to sample it."""

    messages: tuple[Message, ...]
    envelope: Envelope
    settings: Settings


class ScriptedModel:
    """Replies with the given script, one entry for each reply, in order, whichever thread asks.

    A reply is a text as the model would write it (with `<think>` and `<tool_calls>`), an `AssistantMessage`, an
    exception to raise, a list of events (and exceptions), or a function of the messages that returns, or is awaited
    for, any of these. Token ids are the bytes of the prompt, one id for each special token; `requests` records what was
    asked. `chunk` is how many characters arrive at once.
    """

    def __init__(self, replies: Iterable[Reply], *, name: str = "scripted", chunk: int = 16) -> None:
        if chunk < 1:
            raise ValueError(f"chunk must be at least 1, not {chunk}")
        self._replies = deque(replies)
        self._name = name
        self.chunk = chunk
        self.requests: list[Request] = []
        self.open_threads = 0

    @property
    def name(self) -> str:
        return self._name

    def open(self, setup: Setup, history: Sequence[Message] = ()) -> ScriptedThread:
        return ScriptedThread(self, history, _tokens(opening(setup, history)))

    def next_reply(self, request: Request) -> Reply:
        """The next entry of the script. Raises ModelError when none is left."""
        self.requests.append(request)
        if not self._replies:
            raise ModelError(f"the script has no reply left for request {len(self.requests)}")
        return self._replies.popleft()

    def extend(self, replies: Iterable[Reply]) -> None:
        """Add to the end of the script."""
        self._replies.extend(replies)

    def clear(self) -> None:
        """Forget what is left of the script."""
        self._replies.clear()

    def assert_complete(self) -> None:
        """Raises AssertionError when replies are left over."""
        assert not self._replies, f"{len(self._replies)} scripted replies were never asked for: {list(self._replies)!r}"

    async def aclose(self) -> None:
        """Nothing to free."""


class ScriptedThread:
    """One conversation with a `ScriptedModel`."""

    def __init__(self, model: ScriptedModel, history: Sequence[Message], ids: Iterable[int]) -> None:
        self._model = model
        self._messages = list(history)
        self._ids = list(ids)
        self._calls = last_call(history)
        self._cut = False
        self._begun = False
        self._closed = False
        model.open_threads += 1

    @property
    def ids(self) -> tuple[int, ...]:
        return tuple(self._ids)

    async def respond(
        self, new: Sequence[Message], envelope: Envelope, settings: Settings
    ) -> AsyncGenerator[ModelEvent]:
        known, self._begun = len(self._ids) if self._begun else 0, True
        self._ids += _tokens([*(CLOSE if self._cut else ()), *question(new)])
        self._messages += new
        self._calls = max(self._calls, last_call(new))
        self._cut = True
        asked = len(self._ids)
        reply = self._model.next_reply(Request(tuple(self._messages), envelope, settings))
        if callable(reply):
            made = reply(tuple(self._messages))
            reply = await made if inspect.isawaitable(made) else made
        await anyio.lowlevel.checkpoint()
        if isinstance(reply, Exception):
            raise reply
        if isinstance(reply, AssistantMessage):
            reply = reply_text(reply)
        for event in self._said(reply, envelope) if isinstance(reply, str) else self._told(reply):
            if isinstance(event, ReplyFinished):
                usage = Usage(asked, len(self._ids) - asked, reused_tokens=known)
                self._finish(event.message)
                event = ReplyFinished(event.message, usage, event.stop)
            yield event

    def _said(self, text: str, envelope: Envelope) -> Iterator[ModelEvent]:
        parser = ReplyParser(envelope, first_call=self._calls + 1)
        for start in range(0, len(text), self._model.chunk):
            part = text[start : start + self._model.chunk]
            self._ids += part.encode()
            yield from parser.feed(part)
        events, message = parser.finish()
        yield from events
        yield ReplyFinished(message, Usage())

    def _told(self, reply: Sequence[ModelEvent | Exception]) -> Iterator[ModelEvent]:
        seen: list[ModelEvent] = []
        for event in reply:
            if isinstance(event, Exception):
                raise event
            seen.append(event)
            if isinstance(event, ReplyFinished):
                self._ids += reply_text(event.message).encode()
            yield event
        if not seen or not isinstance(seen[-1], ReplyFinished):
            partial = PartialReply()
            for event in seen:
                partial.add(event)
            message = partial.message()
            self._ids += reply_text(message).encode()
            yield ReplyFinished(message, Usage())

    def _finish(self, message: AssistantMessage) -> None:
        self._ids += _tokens(CLOSE)
        self._cut = False
        self._calls += len(message.calls)
        self._messages.append(message)

    def mark(self) -> tuple[int, int, int, bool]:
        return len(self._messages), len(self._ids), self._calls, self._cut

    async def rewind(self, mark: Any) -> bool:
        messages, ids, self._calls, self._cut = mark
        del self._messages[messages:], self._ids[ids:]
        return True

    def fork(self) -> ScriptedThread:
        twin = ScriptedThread(self._model, self._messages, self._ids)
        twin._calls, twin._cut, twin._begun = self._calls, self._cut, self._begun
        return twin

    async def aclose(self) -> None:
        self._model.open_threads -= not self._closed
        self._closed = True


def _tokens(pieces: Iterable[Piece]) -> list[int]:
    ids: list[int] = []
    for piece in pieces:
        ids += [SPECIAL[piece.text]] if piece.special else piece.text.encode()
    return ids

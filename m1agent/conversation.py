"""A conversation: the messages so far and the model's thread that holds them as tokens. Both only grow."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Iterable, Sequence
from contextlib import aclosing, contextmanager
from typing import cast

from m1agent.errors import ConversationInUse
from m1agent.events import ModelEvent, ReplyFinished
from m1agent.messages import AssistantMessage, Message, Setup, ToolMessage, ToolResult
from m1agent.models.base import Model, Settings, Thread
from m1agent.prompt.envelope import Envelope

NOT_RUN = "This call was not run: the run was stopped before it."


class Conversation:
    """Messages in order, kept in memory. Pass it to `Agent.run` again to go on where it ended.

    The history is valid after every run, however it ended: each call has a result. One run at a time may use it;
    `fork` gives a second conversation with the same past.
    """

    def __init__(self, messages: Iterable[Message] = ()) -> None:
        self._messages = list(messages)
        self._thread: Thread | None = None
        self._model: Model | None = None
        self._setup: Setup | None = None
        self._held = 0
        self._in_use = False
        self.rebuilds = 0

    @property
    def messages(self) -> tuple[Message, ...]:
        return tuple(self._messages)

    @property
    def ids(self) -> tuple[int, ...] | None:
        """Token ids the model holds for this conversation, or None before the first run and for remote models."""
        return self._thread.ids if self._thread else None

    def __len__(self) -> int:
        return len(self._messages)

    def __repr__(self) -> str:
        return f"<Conversation of {len(self._messages)} messages>"

    @contextmanager
    def in_use(self) -> Generator[None]:
        """Held by a run for as long as it lasts. Raises ConversationInUse where another run holds it."""
        if self._in_use:
            raise ConversationInUse
        self._in_use = True
        try:
            yield
        finally:
            self._in_use = False

    def append(self, message: Message) -> None:
        """Add a message; the model reads it with the next reply."""
        self._messages.append(message)

    async def attach(self, model: Model, setup: Setup) -> None:
        """Use `model` with `setup` from here on. Another model, or other tools, mean the history is read anew."""
        if self._thread is not None and self._model is model and self._setup == setup:
            return
        self.rebuilds += self._thread is not None
        await self.detach()
        self._model, self._setup = model, setup

    async def detach(self) -> None:
        """Let go of the model's thread; the messages stay."""
        thread, self._thread = self._thread, None
        self._held = 0
        if thread is not None:
            await thread.aclose()

    async def aclose(self) -> None:
        """Free what the model holds for this conversation. Calling it again does nothing."""
        await self.detach()
        self._model = self._setup = None

    def fork(self) -> Conversation:
        """A second conversation with the same past; the model's state is shared, not computed again."""
        twin = Conversation(self._messages)
        twin._model, twin._setup, twin._held = self._model, self._setup, self._held
        twin._thread = self._thread.fork() if self._thread else None
        return twin

    async def reply(self, envelope: Envelope, settings: Settings) -> AsyncGenerator[ModelEvent]:
        """Stream one reply to everything said so far. Its message is appended when `ReplyFinished` is yielded."""
        thread = self._open()
        new, self._held = self._messages[self._held :], len(self._messages)
        stream = cast("AsyncGenerator[ModelEvent]", thread.respond(new, envelope, settings))
        async with aclosing(stream):
            async for event in stream:
                if isinstance(event, ReplyFinished):
                    self.record(event.message)
                yield event

    def record(self, message: AssistantMessage) -> None:
        """Add a reply that the model's thread already holds."""
        self._messages.append(message)
        self._held = len(self._messages)

    def settle(self, results: Sequence[ToolResult | None] = ()) -> None:
        """Answer every call of the last reply: with its result, in order, else that it was not run."""
        last = self._messages[-1] if self._messages else None
        if not isinstance(last, AssistantMessage) or not last.calls:
            return
        known = [*results, *[None] * len(last.calls)]
        self.append(
            ToolMessage(
                tuple(
                    result or ToolResult(call.id, call.name, NOT_RUN, is_error=True)
                    for call, result in zip(last.calls, known, strict=False)
                )
            )
        )

    def _open(self) -> Thread:
        if self._thread is None:
            if self._model is None or self._setup is None:
                raise RuntimeError("attach a model before asking for a reply")
            self._thread = self._model.open(self._setup)
            self._held = 0
        return self._thread

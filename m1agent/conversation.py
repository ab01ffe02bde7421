"""A conversation: the messages so far and the model's thread that holds them as tokens. Both only grow."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Iterable, Mapping, Sequence
from contextlib import aclosing, contextmanager
from typing import Any, Protocol, cast

from m1agent.errors import ConversationInUse, TranscriptError
from m1agent.events import ModelEvent, ReplyFinished
from m1agent.messages import (
    AssistantMessage,
    Message,
    Setup,
    SystemMessage,
    ToolCall,
    ToolMessage,
    ToolResult,
    UserMessage,
)
from m1agent.models.base import Model, Settings, Thread
from m1agent.problems import shown
from m1agent.prompt.envelope import Envelope


class Journal(Protocol):
    """Where a conversation writes itself down. Each method returns after the change is safe."""

    def appended(self, message: Message) -> None:
        """`message` was added at the end."""
        ...

    def replaced(self, messages: Sequence[Message]) -> None:
        """The whole history is now `messages`: a rewind or a compaction."""
        ...

    def noted(self, results: Sequence[ToolResult | None], waiting: Sequence[str] = (), agent: str = "") -> None:
        """Results of the last reply's calls that are known before all are, in the order of the calls.

        `waiting` are the ids of calls that wait for a human's answer; until it is there the reply stays unanswered.
        `agent` is the name of the agent that made the calls.
        """
        ...


MESSAGES = (SystemMessage, UserMessage, AssistantMessage, ToolMessage)
NOT_RUN = "This call was not run: the run was stopped before it."
FORMAT = 1


class Conversation:
    """Messages in order, kept in memory. Pass it to `Agent.run` again to go on where it ended.

    The history is valid after every run, however it ended: each call has a result. One run at a time may use it;
    `fork` gives a second conversation with the same past.

    `rebuilds` counts how often the history had to be read anew. `tokens` is the length of the last prompt and its
    reply, 0 before the first; `shortest` is the same after the last compaction, or None until the first reply there.
    """

    def __init__(self, messages: Iterable[Message] = (), *, journal: Journal | None = None) -> None:
        self._messages = list(messages)
        if wrong := [one for one in self._messages if not isinstance(cast("Any", one), MESSAGES)]:
            raise TypeError(f"a conversation is made of messages such as UserMessage('Hi'), not {shown(wrong[0])}")
        self._journal = journal
        self._thread: Thread | None = None
        self._model: Model | None = None
        self._setup: Setup | None = None
        self._held = 0
        self._in_use = False
        self._noted: tuple[ToolResult | None, ...] = ()
        self._waiting: tuple[str, ...] = ()
        self._agent = ""
        self._marks: dict[int, object] = {}
        self.rebuilds = 0
        self.tokens = 0
        self.shortest: int | None = 0

    @property
    def messages(self) -> tuple[Message, ...]:
        """Everything said so far; a copy, made at each asking."""
        return tuple(self._messages)

    @property
    def waiting(self) -> tuple[ToolCall, ...]:
        """Calls of the last reply that wait for a human's answer."""
        return tuple(call for call in self.last_calls if call.id in self._waiting)

    @property
    def agent(self) -> str:
        """The name of the agent whose calls wait, which goes on once they are answered; empty where none wait."""
        return self._agent if self._waiting else ""

    @property
    def last_calls(self) -> tuple[ToolCall, ...]:
        """The calls of the last message, none of which is answered yet."""
        last = self._messages[-1] if self._messages else None
        return last.calls if isinstance(last, AssistantMessage) else ()

    @property
    def noted(self) -> tuple[ToolResult | None, ...]:
        """Results of the last reply's calls that are known while others still run or wait."""
        return self._noted

    @property
    def ids(self) -> tuple[int, ...] | None:
        """Token ids the model holds for this conversation, or None before the first run and for remote models."""
        return self._thread.ids if self._thread else None

    def __len__(self) -> int:
        return len(self._messages)

    def __repr__(self) -> str:
        return f"<Conversation of {len(self._messages)} messages>"

    def to_json(self) -> dict[str, Any]:
        """The conversation as JSON values, calls that wait for an answer included."""
        from m1agent.transcript import results_to_json, to_json

        return {
            "format": FORMAT,
            "messages": to_json(self._messages),
            "noted": results_to_json(self._noted),
            "waiting": list(self._waiting),
            "agent": self.agent,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Conversation:
        """The conversation that `to_json` wrote down, in this process or another.

        Raises:
            TranscriptError: the values are not of that form; the text names the place.
        """
        from m1agent.transcript import from_json, results_from_json

        given: Any = values
        if not isinstance(given, Mapping):
            raise TranscriptError(f"a conversation is an object as Conversation.to_json makes it, not {shown(given)}")
        if values.get("format") != FORMAT:
            raise TranscriptError(f"format: expected {FORMAT}, got {shown(values.get('format'))}")
        made = cls(from_json(cast("Any", values.get("messages"))))
        made._noted = results_from_json(values.get("noted", []))
        made._waiting = _waiting(values.get("waiting", []), made)
        made._agent = _agent(values.get("agent", ""))
        return made

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
        if self._journal is not None:
            self._journal.appended(message)

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
        self._marks = {}
        if thread is not None:
            await thread.aclose()

    async def aclose(self) -> None:
        """Free what the model holds for this conversation. Calling it again does nothing."""
        await self.detach()
        self._model = self._setup = None

    def fork(self) -> Conversation:
        """A second conversation with the same past; the model's state is shared, not computed again."""
        twin = Conversation(self._messages)
        twin._noted, twin._waiting, twin._marks = self._noted, self._waiting, dict(self._marks)
        twin._agent = self._agent
        twin.tokens, twin.shortest = self.tokens, self.shortest
        twin._model, twin._setup, twin._held = self._model, self._setup, self._held
        twin._thread = self._thread.fork() if self._thread else None
        return twin

    def note(self, results: Sequence[ToolResult | None], waiting: Sequence[str] = (), agent: str = "") -> None:
        """Write down results of the last reply's calls while others still run or wait; `settle` takes them up.

        `agent` is the name of the agent that made the calls.
        """
        self._noted, self._waiting, self._agent = tuple(results), tuple(waiting), agent
        if self._journal is not None:
            self._journal.noted(self._noted, self._waiting, agent)

    async def rewind(self, length: int) -> None:
        """Go back to the first `length` messages. After a reply that made no calls, a local model keeps its state.

        Raises:
            ValueError: the conversation is not that long, or a call would be left without its result.
            ConversationInUse: a run is using it.
        """
        if not 0 <= length <= len(self._messages):
            raise ValueError(f"cannot rewind to {length} messages: the conversation has {len(self._messages)}")
        kept = self._messages[:length]
        if kept and isinstance(kept[-1], AssistantMessage) and kept[-1].calls and length < len(self._messages):
            raise ValueError(f"message {length} makes calls; rewind to {length - 1} or {length + 1} instead")
        with self.in_use():
            mark = self._marks.get(length)
            if mark is None or self._thread is None or not await self._thread.rewind(mark):
                await self.restart(kept)
                return
            self._held = length
            self._become(kept)

    async def replace(self, messages: Iterable[Message]) -> None:
        """Put another history in the place of this one; the model reads it anew with the next reply.

        Raises:
            ConversationInUse: a run is using it.
        """
        with self.in_use():
            await self.restart(messages)

    async def restart(self, messages: Iterable[Message]) -> None:
        """`replace`, for the run that holds the conversation."""
        self.rebuilds += self._thread is not None
        await self.detach()
        self._become(messages)

    def _become(self, messages: Iterable[Message]) -> None:
        self._messages = list(messages)
        self._noted, self._waiting = (), ()
        self.tokens, self.shortest = 0, 0
        self._marks = {length: mark for length, mark in self._marks.items() if length <= len(self._messages)}
        if self._journal is not None:
            self._journal.replaced(self._messages)

    async def reply(self, envelope: Envelope, settings: Settings) -> AsyncGenerator[ModelEvent]:
        """Stream one reply to everything said so far. Its message is appended when `ReplyFinished` is yielded."""
        thread = self._open()
        new, self._held = self._messages[self._held :], len(self._messages)
        stream = cast("AsyncGenerator[ModelEvent]", thread.respond(new, envelope, settings))
        async with aclosing(stream):
            async for event in stream:
                if isinstance(event, ReplyFinished):
                    self.record(event.message)
                    self.tokens = event.usage.input_tokens + event.usage.output_tokens
                    self.shortest = self.tokens if self.shortest is None else min(self.shortest, self.tokens)
                yield event

    def record(self, message: AssistantMessage) -> None:
        """Add a reply that the model's thread already holds."""
        self.append(message)
        self._held = len(self._messages)
        if self._thread is not None and not message.calls:
            self._marks[self._held] = self._thread.mark()

    def settle(self, results: Sequence[ToolResult | None] = ()) -> None:
        """Answer every call of the last reply: with its result, in order, else that it was not run."""
        if not (calls := self.last_calls):
            return
        noted, self._noted, self._waiting = self._noted, (), ()
        known = [*results, *noted[len(results) :], *[None] * len(calls)]
        self.append(
            ToolMessage(
                tuple(
                    result or ToolResult(call.id, call.name, NOT_RUN, is_error=True)
                    for call, result in zip(calls, known, strict=False)
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


def _agent(given: Any) -> str:
    if not isinstance(given, str):
        raise TranscriptError(f"agent: expected the name of an agent, got {shown(given)}")
    return given


def _waiting(given: Any, conversation: Conversation) -> tuple[str, ...]:
    """Ids that `to_json` wrote down. Raises TranscriptError where they are none of the last reply's calls."""
    calls, noted = [call.id for call in conversation.last_calls], len(conversation.noted)
    if noted > len(calls):
        raise TranscriptError(f"noted: {noted} results, but the last message makes {len(calls)} calls")
    ids = cast("Sequence[Any]", given) if isinstance(given, list | tuple) else [given]
    for id in ids:
        if id not in calls:
            raise TranscriptError(f"waiting: {shown(id)} is no call of the last message")
    return tuple(ids)

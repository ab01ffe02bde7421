"""The protocol between the loop and whatever writes the replies."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from m1agent.events import ModelEvent
from m1agent.messages import Message, Setup
from m1agent.prompt.envelope import Envelope


@dataclass(frozen=True, slots=True)
class Settings:
    """How a reply is sampled. None leaves the model's own default."""

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()


class Thread(Protocol):
    """One conversation as the model holds it. It only grows: what was said is never rendered again."""

    @property
    def ids(self) -> tuple[int, ...] | None:
        """Token ids of everything so far, or None where the model keeps none."""
        ...

    def respond(self, new: Sequence[Message], envelope: Envelope, settings: Settings) -> AsyncIterator[ModelEvent]:
        """Append `new` messages and stream one reply; the last event is `ReplyFinished`.

        Closing the iterator early cancels the reply; the thread then ends where the last yielded token ended.
        """
        ...

    def fork(self) -> Thread:
        """A second thread with the same past; neither sees the other's future."""
        ...

    async def aclose(self) -> None:
        """Free what the thread holds. Calling it again does nothing."""
        ...


class Model(Protocol):
    """Opens threads. Implementations: `LocalModel`, `ScriptedModel`."""

    @property
    def name(self) -> str:
        """The name a user would know it by."""
        ...

    def open(self, setup: Setup, history: Sequence[Message] = ()) -> Thread:
        """A thread that begins with `setup` and the messages of `history`."""
        ...

    async def aclose(self) -> None:
        """Free what the model holds. Calling it again does nothing."""
        ...

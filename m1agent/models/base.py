"""The protocol between the loop and whatever writes the replies."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, Protocol, cast

from m1agent.events import ModelEvent
from m1agent.messages import Message, Setup
from m1agent.prompt.envelope import Envelope


@dataclass(frozen=True, slots=True)
class Settings:
    """How a reply is sampled. None leaves the model's own default.

    `thinking` bounds the tokens of the reply's thinking, where the model can be made to stop it; 0 allows none.
    `logprobs`: tell the probability of each token, and of as many others in its place; only some models can.

    Raises ValueError naming the field when a value is none of the field's.
    """

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    thinking: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None

    def __post_init__(self) -> None:
        number = (int, float)
        _check("max_tokens", self.max_tokens, (int,), lambda value: value >= 1, "an integer of at least 1")
        _check("temperature", self.temperature, number, lambda value: 0 <= value < inf, "0 (greedy) or a number above")
        _check("top_p", self.top_p, number, lambda value: 0 < value <= 1, "a number above 0 and at most 1")
        _check("seed", self.seed, (int,), lambda value: 0 <= value < 2**64, "a non-negative 64-bit integer")
        _check("thinking", self.thinking, (int,), lambda value: value >= 0, "an integer of at least 0")
        _check("logprobs", self.logprobs, (int,), lambda value: 0 <= value <= 20, "an integer from 0 to 20")
        stop: Any = self.stop
        if not isinstance(stop, tuple) or not all(isinstance(text, str) and text for text in cast("tuple[Any]", stop)):
            raise ValueError(f"Settings.stop must be a tuple of non-empty texts, not {self.stop!r}")


def _check(name: str, value: Any, kinds: tuple[type, ...], fits: Callable[[Any], bool], wanted: str) -> None:
    if value is None or (isinstance(value, kinds) and not isinstance(value, bool) and fits(value)):
        return
    raise ValueError(f"Settings.{name} must be {wanted}, or None for the model's default, not {value!r}")


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

    def mark(self) -> object:
        """Where the thread stands now, for `rewind`."""
        ...

    async def rewind(self, mark: Any) -> bool:
        """Go back to a mark of this thread, or of the one it was forked from; False where the model cannot."""
        ...

    def fork(self) -> Thread:
        """A second thread with the same past; neither sees the other's future."""
        ...

    async def aclose(self) -> None:
        """Free what the thread holds. Calling it again does nothing."""
        ...


class Model(Protocol):
    """Opens threads. Implementations: `LocalModel`, `ScriptedModel`.

    A model may have more, and whoever uses it asks with `getattr`: `constrained` and `logprobs` (True where a grammar
    holds every reply to its envelope, and where `Settings.logprobs` is followed), `refusals` (exceptions of a
    `respond` that cannot be followed), `load()` (awaited: weights are read now), `complete(prompt, settings)` (a bare
    text, or token ids, goes on: an iterator like `respond`'s) with `text(prompt)` (awaited: the prompt as text), and
    `read(new)` of its threads (awaited: new messages are read ahead, so that forks share the work).
    """

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

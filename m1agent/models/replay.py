"""A model that says again what was recorded, as long as it is asked what was asked then.

    Path("talk.json").write_text(json.dumps(to_json(result.messages)))      # once, with a real model
    ...
    model = ReplayModel.load("talk.json")                                   # from then on, in tests
    Agent(model, tools=[...]).run_sync("The same question.")
    model.assert_complete()

What changes an agent's side of the conversation (another result of a tool, another message, another order) ends the run
with the difference as its error. Instructions and tools are no part of a recording, so they may change. Tokens are not
counted. What a compaction summarised is not in the history, and so cannot be replayed.
"""

from __future__ import annotations

import difflib
import json
import operator
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, cast

import anyio.lowlevel

from m1agent.errors import ReplayMismatch, TranscriptError
from m1agent.events import (
    ArgumentsDelta,
    CallReady,
    CallStarted,
    ModelEvent,
    ReplyFinished,
    TextDelta,
    ThinkingDelta,
)
from m1agent.messages import AssistantMessage, Message, Setup, Usage
from m1agent.models.base import Settings
from m1agent.prompt.envelope import Envelope
from m1agent.schema import canonical_json
from m1agent.transcript import from_json, message_to_json

DIFFERENCE_LINES = 40


class ReplayModel:
    """Answers with the replies of a recorded conversation.

    Args:
        recording: its messages, or the JSON values that `to_json` or `Conversation.to_json` made of them.
        name: what the model is called.
        same: whether what is asked (second) is what was recorded (first); to overlook what differs each time.

    Raises:
        TranscriptError: the recording cannot be read.
    """

    def __init__(
        self,
        recording: Iterable[Message] | Sequence[Mapping[str, Any]] | Mapping[str, Any],
        *,
        name: str = "replay",
        same: Callable[[Message, Message], bool] = operator.eq,
    ) -> None:
        self.messages = _messages(recording)
        self.same = same
        self.mismatch: ReplayMismatch | None = None
        self._name = name
        self._said: set[int] = set()

    @classmethod
    def load(cls, path: str | Path, **options: Any) -> ReplayModel:
        """A model for a recording in a JSON file; `options` as above. Raises TranscriptError, naming the file."""
        try:
            return cls(json.loads(Path(path).read_text(encoding="utf-8")), name=Path(path).stem, **options)
        except (OSError, ValueError, TranscriptError) as error:
            raise TranscriptError(f"{path}: {error}") from error

    @property
    def name(self) -> str:
        return self._name

    def open(self, setup: Setup, history: Sequence[Message] = ()) -> ReplayThread:
        return ReplayThread(self, self.check(0, history))

    def check(self, position: int, asked: Sequence[Message]) -> int:
        """Hold `asked` against the recording from `position` on; where it ends. Raises ReplayMismatch."""
        for message in asked:
            recorded = self.messages[position] if position < len(self.messages) else None
            if recorded is None or not self.same(recorded, message):
                raise self._differs(position, recorded, message)
            if isinstance(recorded, AssistantMessage):
                self._said.add(position)
            position += 1
        return position

    def reply(self, position: int) -> AssistantMessage:
        """The recorded reply at `position`. Raises ReplayMismatch when there is none."""
        recorded = self.messages[position] if position < len(self.messages) else None
        if not isinstance(recorded, AssistantMessage):
            raise self._differs(position, recorded, None)
        self._said.add(position)
        return recorded

    def assert_complete(self) -> None:
        """Raises AssertionError when something else was asked, or recorded replies were never asked for."""
        assert self.mismatch is None, str(self.mismatch)
        replies = [index for index, message in enumerate(self.messages) if isinstance(message, AssistantMessage)]
        left = [f"messages[{index}]" for index in replies if index not in self._said]
        assert not left, f"{len(left)} of {len(replies)} recorded replies were never asked for: {', '.join(left)}"

    async def aclose(self) -> None:
        """Nothing to free."""

    def _differs(self, position: int, recorded: Message | None, asked: Message | None) -> ReplayMismatch:
        mismatch = ReplayMismatch("\n".join([_headline(position, recorded, asked), *_difference(recorded, asked)]))
        self.mismatch = self.mismatch or mismatch
        return mismatch


class ReplayThread:
    """One conversation with a `ReplayModel`: where in the recording it stands."""

    def __init__(self, model: ReplayModel, position: int) -> None:
        self._model = model
        self._position = position

    @property
    def ids(self) -> None:
        return None

    async def respond(
        self, new: Sequence[Message], envelope: Envelope, settings: Settings
    ) -> AsyncGenerator[ModelEvent]:
        self._position = self._model.check(self._position, new)
        message = self._model.reply(self._position)
        self._position += 1
        await anyio.lowlevel.checkpoint()
        for event in _events(message):
            yield event

    def mark(self) -> int:
        return self._position

    async def rewind(self, mark: Any) -> bool:
        self._position = mark
        return True

    def fork(self) -> ReplayThread:
        return ReplayThread(self._model, self._position)

    async def aclose(self) -> None:
        """Nothing to free."""


def _messages(recording: Any) -> tuple[Message, ...]:
    if isinstance(recording, Mapping):
        recording = cast("Mapping[str, Any]", recording).get("messages")
    items = list(cast("Iterable[Any]", recording)) if isinstance(recording, Iterable) else []
    if not items:
        raise TranscriptError("a recording is the messages of a conversation, or the JSON of them; this holds none")
    return tuple(from_json(items) if isinstance(items[0], Mapping) else items)


def _events(message: AssistantMessage) -> Iterator[ModelEvent]:
    if message.thinking:
        yield ThinkingDelta(message.thinking)
    if message.text:
        yield TextDelta(message.text)
    for index, call in enumerate(message.calls):
        yield CallStarted(index, call.id, call.name)
        yield ArgumentsDelta(index, canonical_json(call.arguments))
        yield CallReady(index, call)
    yield ReplyFinished(message, Usage())


def _headline(position: int, recorded: Message | None, asked: Message | None) -> str:
    place = f"messages[{position}]"
    if recorded is None:
        what = "a reply was asked for" if asked is None else "there is one more message"
        return f"the recording ends before {place}, where {what}"
    if asked is None:
        return f"a reply was asked for at {place}, where none was recorded"
    return f"what was asked differs from the recording at {place}"


def _difference(recorded: Message | None, asked: Message | None) -> Iterator[str]:
    lines = difflib.unified_diff(_lines(recorded), _lines(asked), "recorded", "asked", n=2, lineterm="")
    shown = list(islice(lines, DIFFERENCE_LINES + 1))
    yield from shown[:DIFFERENCE_LINES]
    if len(shown) > DIFFERENCE_LINES:
        yield "..."


def _lines(message: Message | None) -> list[str]:
    if message is None:
        return []
    # Line breaks inside texts are shown as such, so that a long result is compared line by line.
    text = json.dumps(message_to_json(message), ensure_ascii=False, indent=1, default=str)
    return text.replace("\\n", "\n    ").splitlines()

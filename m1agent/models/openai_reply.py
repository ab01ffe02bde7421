"""One streamed reply of a compatible server: chunks in, events and the message out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal

from m1agent.events import (
    ArgumentsDelta,
    CallReady,
    CallStarted,
    ModelEvent,
    ReplyFinished,
    ThinkingDelta,
)
from m1agent.messages import AssistantMessage, ToolCall, Usage
from m1agent.models.openai_calls import CallPiece, RemoteCall, call_pieces
from m1agent.models.openai_json import as_list, as_object
from m1agent.prompt.envelope import THINK_CLOSE, THINK_OPEN, Envelope
from m1agent.prompt.reply import ReplyParser

log = logging.getLogger(__name__)

THOUGHTS = ("reasoning_content", "reasoning", "reasoning_details")
CUT = "the token budget ended here"
BROKEN = "the arguments were not finished"


class ReplyReader:
    """Reads the chunks of one reply.

    Args:
        envelope: what the reply may be.
        known: ids of calls that the conversation has used; one that comes again is replaced.
        next_id: makes ids for calls that come without one.
        name_of: the tool's own name for the one that was sent.
        parsed: the server is known to tell calls from text, so that tags in a text are text.
        differ: makes increments of text that some servers send in full each time.

    Attributes:
        thought_in: the field that the thinking came in, `content` for `<think>` in the text.
        details: the `reasoning_details` that came, to be sent back as they are.
        structured: whether calls came as calls.
    """

    def __init__(
        self,
        envelope: Envelope,
        *,
        known: Iterable[str] = (),
        next_id: Callable[[], str],
        name_of: Callable[[str], str] = str,
        parsed: bool = False,
        differ: Callable[[], Callable[[str], str]] = lambda: str,
    ) -> None:
        offered = bool(envelope.tools) and envelope.choice != "none"
        self._parser = ReplyParser(envelope if offered and not parsed else Envelope(choice="none"))
        self._known = set(known)
        self._next_id = next_id
        self._name_of = name_of
        self._new_text, self._new_thought = differ(), differ()
        self._said = False
        self._thinking: list[str] = []
        self._calls: list[RemoteCall] = []
        self._told: dict[int, ToolCall] = {}
        self._indices: dict[int, int] = {}
        self._ids: dict[int, str] = {}
        self._begun = 0
        self._usage: Usage | None = None
        self.finish_reason = ""
        self.thought_in = ""
        self.details: list[Any] = []
        self.structured = False

    def read(self, chunk: Mapping[str, Any]) -> list[ModelEvent]:
        """What a chunk brings."""
        self._read_usage(chunk)
        choices = [as_object(one) for one in as_list(chunk.get("choices"))]
        return [event for one in choices if one.get("index") in (0, None) for event in self._choice(one)]

    def finish(self, sent: int) -> list[ModelEvent]:
        """The reply has ended; `sent` are the characters of the request, by which tokens are estimated where the server
        counts none. The last event is `ReplyFinished`."""
        stop: Literal["done", "length"] = "length" if self.finish_reason == "length" else "done"
        ended = CUT if stop == "length" else BROKEN
        events = [event for call in self._calls for event in self._ready(call, ended)]
        rest, message = self._parser.finish(stop)
        events += self._renumbered(rest)
        text, inner = message.text, message.thinking
        if not self._thinking and not inner and THINK_CLOSE in text and THINK_OPEN not in text:
            inner, _, text = text.partition(THINK_CLOSE)  # The prompt had opened the thinking.
            text = text.lstrip("\n")
        if inner:
            self.thought_in = self.thought_in or "content"
        whole = AssistantMessage(
            text, "".join(self._thinking) + inner, tuple(self._told[index] for index in sorted(self._told))
        )
        usage = self._usage or self._estimate(whole, sent)
        return [*events, ReplyFinished(whole, usage, stop)]

    def _choice(self, choice: Mapping[str, Any]) -> Iterator[ModelEvent]:
        if delta := as_object(choice.get("delta")):
            yield from self._part(delta)
        elif not self._said:  # MiniMax sends the whole once more at the end.
            yield from self._part(as_object(choice.get("message")))
        if choice.get("finish_reason"):
            self.finish_reason = str(choice["finish_reason"])

    def _part(self, part: Mapping[str, Any]) -> Iterator[ModelEvent]:
        name = next((name for name in THOUGHTS if part.get(name)), "")
        thought = self._new_thought(_thought(part.get(name))) if name else ""
        details = as_list(part.get("reasoning_details"))
        if len(details) == 1 and name == "reasoning_details" and "text" in as_object(details[0]):
            details = [as_object(details[0]) | {"text": thought}]
        self.details += details
        content = part.get("content")
        if inside := _thought_in_content(content):
            thought, name = thought + inside, name or "content"
        if thought:
            self._said, self.thought_in = True, self.thought_in or name
            self._thinking.append(thought)
            yield ThinkingDelta(thought)
        text = self._new_text(_text(content)) or (_text(part.get("refusal")) if not content else "")
        if text:
            self._said = True
            yield from self._renumbered(self._parser.feed(text))
        for piece in call_pieces(part):
            self._said = self.structured = True
            yield from self._piece(piece)

    # Calls that come as calls

    def _piece(self, piece: CallPiece) -> Iterator[ModelEvent]:
        call = next((call for call in reversed(self._calls) if call.continues(piece)), None)
        if call is None:
            for before in self._calls:
                if before.arguments.closed:
                    yield from self._ready(before, BROKEN)
            call = RemoteCall(piece.key)
            self._calls.append(call)
        if told := call.take(piece):
            yield from self._start(call)
            yield ArgumentsDelta(call.index, told)

    def _start(self, call: RemoteCall) -> Iterator[ModelEvent]:
        if call.index < 0:
            call.index, call.id = self._begun, self._id(call.sent_id)
            self._begun += 1
            yield CallStarted(call.index, call.id, self._name_of(call.name))

    def _ready(self, call: RemoteCall, ended: str) -> Iterator[ModelEvent]:
        if call.ready:
            return
        yield from self._start(call)
        read, rest = call.arguments.finish(self._name_of(call.name), ended=ended)
        if rest:
            yield ArgumentsDelta(call.index, rest)
        call.ready = True
        self._told[call.index] = ToolCall(call.id, read.name, read.arguments, read.problem)
        yield CallReady(call.index, self._told[call.index])

    # Calls that come as text

    def _renumbered(self, events: Iterable[ModelEvent]) -> list[ModelEvent]:
        return [self._renumber(event) for event in events]

    def _renumber(self, event: ModelEvent) -> ModelEvent:
        match event:
            case CallStarted(index, _, name):
                self._indices[index], self._ids[index] = self._begun, self._id("")
                self._begun += 1
                return CallStarted(self._indices[index], self._ids[index], self._name_of(name))
            case ArgumentsDelta(index, text):
                return ArgumentsDelta(self._indices[index], text)
            case CallReady(index, call):
                made = replace(call, id=self._ids[index], name=self._name_of(call.name))
                self._told[self._indices[index]] = made
                return CallReady(self._indices[index], made)
            case _:
                return event

    def _id(self, given: str) -> str:
        id = given if given and given not in self._known else self._next_id()
        self._known.add(id)
        return id

    # Usage

    def _read_usage(self, chunk: Mapping[str, Any]) -> None:
        usage = read_usage(as_object(chunk.get("usage")))
        if usage != Usage():
            self._usage = usage

    def _estimate(self, message: AssistantMessage, sent: int) -> Usage:
        log.info("the server counts no tokens; they are estimated")
        calls = sum(len(call.name) + len(str(call.arguments)) for call in message.calls)
        thought = -(-len(message.thinking) // 4)
        return Usage(-(-sent // 4), -(-(len(message.text) + calls) // 4) + thought, thinking_tokens=thought)


def read_usage(given: Mapping[str, Any]) -> Usage:
    """Token counts of a usage object; what it lacks is 0."""

    def count(part: Mapping[str, Any], *names: str) -> int:
        found = (part.get(name) for name in names)
        return next((value for value in found if isinstance(value, int) and value > 0), 0)

    read, written = as_object(given.get("prompt_tokens_details")), as_object(given.get("completion_tokens_details"))
    cached = count(read, "cached_tokens") or count(given, "prompt_cache_hit_tokens")
    thought = count(written, "reasoning_tokens") or count(given, "reasoning_tokens")
    return Usage(
        count(given, "prompt_tokens", "input_tokens"),
        count(given, "completion_tokens", "output_tokens"),
        reused_tokens=cached,
        thinking_tokens=thought,
    )


def _text(content: Any) -> str:
    """Text of a content: a string, or the text parts of a list."""
    if isinstance(content, str):
        return content
    return "".join(
        _text(as_object(part).get("text") or as_object(part).get("refusal") if isinstance(part, dict) else part)
        for part in as_list(content)
    )


def _thought_in_content(content: Any) -> str:
    """Thinking parts of a list of parts."""
    return "".join(_text(as_object(part).get("thinking")) for part in as_list(content))


def _thought(value: Any) -> str:
    """Text of a thinking field: a string, an object with text, or a list of these."""
    if isinstance(value, list):
        return "".join(map(_thought, as_list(value)))
    if isinstance(value, dict):
        part = as_object(value)
        return next((text for name in ("text", "content", "summary") if isinstance(text := part.get(name), str)), "")
    return value if isinstance(value, str) else ""

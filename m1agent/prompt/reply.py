"""Reads a reply while it is being written: thinking, then text, then tool calls.

    reply := [think] text? (calls text?)*
    think := "<think>" "\\n"? ... "\\n"? "</think>" "\\n"?
    calls := "<tool_calls>" (call | separator)* ["</tool_calls>"]

Only a reply that begins with `<think>` has thinking; a later block is text, and tags inside either mean nothing. What
stands between the call tags and is no call becomes a call with `problem` set, which is never run and never lost.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal

from m1agent.events import ArgumentsDelta, CallReady, CallStarted, ModelEvent, TextDelta, ThinkingDelta
from m1agent.messages import AssistantMessage, ToolCall
from m1agent.prompt.call import CallReader, ReadCall, cut, whole_call
from m1agent.prompt.envelope import CALLS_CLOSE, CALLS_OPEN, THINK_CLOSE, THINK_OPEN, Envelope
from m1agent.schema import canonical_json

SEPARATORS = " \t\r\n,[]}"
FENCE = re.compile(r"\s*`{3,}\w*\s*")
JUNK_END = re.compile(r"\n|\{|" + re.escape(CALLS_CLOSE))


class ReplyParser:
    """One reply. The events and the message do not depend on how the text was split.

    Args:
        envelope: what the reply may be; with choice `none` call tags are text, with an answer's schema they count only
            before any text.
        first_call: number of the first call; ids are `call_<number>`.

    Attributes:
        starts: how many characters of the reply came before each call, by its index.
    """

    def __init__(self, envelope: Envelope | None = None, *, first_call: int = 1) -> None:
        self._envelope = envelope or Envelope()
        self._first_call = first_call
        self._buffer = ""
        self._read = 0
        self.starts: dict[int, int] = {}
        self._state: Callable[[], bool] = self._start
        self._spoken = False
        self._thinking: list[str] = []
        self._text: list[str] = []
        self._calls: list[ToolCall] = []
        self._events: list[ModelEvent] = []
        self._call = CallReader()
        self._started = False
        self._told = False
        self._junk: list[str] = []

    @property
    def thinking(self) -> bool:
        """Whether the reply is inside its thinking block."""
        return self._state in (self._think_head, self._think)

    def feed(self, text: str) -> list[ModelEvent]:
        """What the next characters of the reply bring."""
        self._buffer += text
        self._read += len(text)
        self._run()
        return self._taken()

    def finish(self, stop: Literal["done", "length"] = "done") -> tuple[list[ModelEvent], AssistantMessage]:
        """The reply has ended: the last events, and the message as a whole."""
        self._run()
        while self._state == self._object and not self._call.closed:
            self._end_call(stop)
            self._run()
        rest, self._buffer = self._buffer, ""
        if self._state == self._think:
            self._say_thinking(rest)
        elif self._state in (self._start, self._speech, self._aside, self._plain):
            self._say(rest)
        elif self._state == self._after and rest.strip():
            self._say(rest)
        elif self._state == self._rubbish:
            self._junk.append(rest)
            self._end_junk()
        message = AssistantMessage("".join(self._text), "".join(self._thinking), tuple(self._calls))
        return self._taken(), message

    def _run(self) -> None:
        while self._state():
            pass

    def _taken(self) -> list[ModelEvent]:
        events, self._events = self._events, []
        return events

    # States: each takes what it can from the buffer, and returns False when it needs more.

    def _start(self) -> bool:
        text = self._buffer.lstrip()
        if text.startswith(THINK_OPEN):
            self._buffer = text[len(THINK_OPEN) :]
            self._state = self._think_head
            return True
        if THINK_OPEN.startswith(text):
            return False
        self._state = self._speech_state()
        return True

    def _think_head(self) -> bool:
        return self._skip_newline(self._think)

    def _think(self) -> bool:
        before, tag, after = self._buffer.partition(THINK_CLOSE)
        if tag:
            self._say_thinking(before.removesuffix("\n"))
            self._buffer, self._state = after, self._think_tail
            return True
        kept = _held(self._buffer, "\n" + THINK_CLOSE, THINK_CLOSE)
        self._say_thinking(self._buffer[: len(self._buffer) - kept])
        self._buffer = self._buffer[len(self._buffer) - kept :]
        return False

    def _think_tail(self) -> bool:
        return self._skip_newline(self._speech_state())

    def _speech(self) -> bool:
        """Text in which calls may begin."""
        found = {tag: at for tag in (CALLS_OPEN, THINK_OPEN) if (at := self._buffer.find(tag)) >= 0}
        if not found:
            self._say_but(_held(self._buffer, CALLS_OPEN, THINK_OPEN))
            return False
        tag = min(found, key=found.__getitem__)
        if tag == THINK_OPEN:
            self._say_up_to(found[tag] + len(tag))
            self._state = self._aside
            return True
        self._say_up_to(found[tag])
        if self._envelope.answer is not None and self._spoken:
            self._state = self._plain
        else:
            self._buffer, self._state = self._buffer[len(tag) :], self._between
        return True

    def _aside(self) -> bool:
        """A thinking block amid the text."""
        at = self._buffer.find(THINK_CLOSE)
        if at < 0:
            self._say_but(_held(self._buffer, THINK_CLOSE))
            return False
        self._say_up_to(at + len(THINK_CLOSE))
        self._state = self._speech
        return True

    def _plain(self) -> bool:
        """Text in which no call can begin."""
        self._say_but(0)
        return False

    def _between(self) -> bool:
        """Inside the call tags, outside any call."""
        text = self._buffer = self._buffer.lstrip(SEPARATORS)
        for tag, state in ((CALLS_CLOSE, self._after), (CALLS_OPEN, self._between)):
            if text.startswith(tag):
                self._buffer, self._state = text[len(tag) :], state
                return True
        if CALLS_CLOSE.startswith(text) or CALLS_OPEN.startswith(text):
            return False
        self._call, self._started, self._junk = CallReader(), False, []
        self.starts[len(self._calls)] = self._read - len(self._buffer)
        if (whole := whole_call(text)) is not None:
            call, arguments, end = whole
            self._buffer = text[end:]
            self._start_call(call.name)
            self._tell_arguments(arguments)
            self._add_call(call)
            return True
        self._state = self._object if text[0] == "{" else self._rubbish
        return True

    def _object(self) -> bool:
        read = self._call.read(self._buffer)
        self._buffer = self._buffer[read:]
        self._tell_call()
        if self._call.closed:
            self._end_call("done")
        return self._call.closed

    def _rubbish(self) -> bool:
        """Inside the call tags, something that is no JSON object."""
        end = JUNK_END.search(self._buffer)
        cut_at = end.start() if end else len(self._buffer) - _held(self._buffer, CALLS_CLOSE)
        self._junk.append(self._buffer[:cut_at])
        self._buffer = self._buffer[cut_at:]
        if end:
            self._end_junk()
        return end is not None

    def _after(self) -> bool:
        """Behind the calls: blanks alone are nothing."""
        text = self._buffer.lstrip()
        if text.startswith(CALLS_OPEN):
            self._buffer = text
        elif CALLS_OPEN.startswith(text):
            return False
        self._state = self._speech
        return True

    # Helpers

    def _speech_state(self) -> Callable[[], bool]:
        return self._plain if self._envelope.choice == "none" else self._speech

    def _skip_newline(self, state: Callable[[], bool]) -> bool:
        if not self._buffer:
            return False
        self._buffer, self._state = self._buffer.removeprefix("\n"), state
        return True

    def _say_thinking(self, text: str) -> None:
        if text:
            self._thinking.append(text)
            self._events.append(ThinkingDelta(text))

    def _say(self, text: str) -> None:
        if text:
            self._spoken = self._spoken or not text.isspace()
            self._text.append(text)
            self._events.append(TextDelta(text))

    def _say_up_to(self, end: int) -> None:
        text, self._buffer = self._buffer[:end], self._buffer[end:]
        self._say(text)

    def _say_but(self, kept: int) -> None:
        self._say_up_to(len(self._buffer) - kept)

    def _tell_call(self) -> None:
        """Pass on what is newly known of the open call."""
        if self._call.name is None:
            return
        if not self._started:
            self._start_call(self._call.name)
        if text := self._call.take_arguments():
            self._tell_arguments(text)

    def _start_call(self, name: str) -> None:
        self._started, self._told = True, False
        self._events.append(CallStarted(len(self._calls), self._id(), name))

    def _tell_arguments(self, text: str) -> None:
        self._events.append(ArgumentsDelta(len(self._calls), text))
        self._told = True

    def _end_call(self, stop: str) -> None:
        read = self._call.finish()
        if read.problem is not None and (at := self._broken_line()) is not None:
            self._buffer = self._call.raw[at:] + self._buffer
            read = ReadCall(read.name, {}, f"not valid JSON (a string is not closed): {cut(self._call.raw[:at])}")
        elif stop == "length" and read.problem is not None:
            read = ReadCall(read.name, {}, f"the token budget ended here: {cut(self._call.raw)}")
        self._add_call(read)

    def _broken_line(self) -> int | None:
        """Where the next line begins, if an unclosed string has swallowed it: JSON allows no line break in a string."""
        at = self._call.line_break
        rest = "" if at is None else self._call.raw[at:].lstrip()
        return at if rest.startswith(("{", CALLS_CLOSE)) else None

    def _end_junk(self) -> None:
        text = "".join(self._junk)
        self._state = self._between
        if not FENCE.fullmatch(text):
            self._add_call(ReadCall("", {}, f"not a call: {cut(text)}"))

    def _add_call(self, read: ReadCall) -> None:
        call = ToolCall(self._id(), read.name, read.arguments, read.problem)
        if not self._started:
            self._start_call(read.name)
        if read.problem is None and not self._told:
            self._events.append(ArgumentsDelta(len(self._calls), canonical_json(read.arguments)))
        self._events.append(CallReady(len(self._calls), call))
        self._calls.append(call)
        self._started, self._state = False, self._between

    def _id(self) -> str:
        return f"call_{self._first_call + len(self._calls)}"


def parse_reply(text: str, envelope: Envelope | None = None, *, first_call: int = 1) -> AssistantMessage:
    """A whole reply as a message."""
    parser = ReplyParser(envelope, first_call=first_call)
    parser.feed(text)
    return parser.finish()[1]


def _held(text: str, *tags: str) -> int:
    """How many characters at the end of `text` may be the beginning of one of the tags."""
    longest = min(len(text), max(map(len, tags)) - 1)
    return next((n for n in range(longest, 0, -1) if any(tag.startswith(text[-n:]) for tag in tags)), 0)

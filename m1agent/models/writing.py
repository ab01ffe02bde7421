"""One reply of a local model being written: thinking past its bound is closed, and a call that fails its check is
written again once, from the first wrong value on.

A call of a tool whose schema the mask does not wholly enforce is held back until it is complete and checked, so that
whoever reads sees each call once, as it stands.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from m1agent.events import CallReady, CallStarted, ScoredToken
from m1agent.messages import ToolCall, Usage
from m1agent.models.base import Settings
from m1agent.models.scoring import scored, scored_token
from m1agent.prompt.envelope import THINK_CLOSE, Envelope
from m1agent.prompt.reply import ReplyParser
from m1agent.prompt.template import Piece

if TYPE_CHECKING:
    from m1agent.models.local import Completion, Grammar, LocalModel, Session, Stream

THINK_END = f"\n{THINK_CLOSE}\n"


@dataclass(frozen=True, slots=True)
class _Before:
    """A reply before one of its calls is written again.

    Its tokens, the first `kept` of which stay, its text, whether it was at its end and why, the call's index, and how
    likely its tokens were.
    """

    ids: tuple[int, ...]
    kept: int
    text: str
    ended: bool
    stop: Literal["done", "length"]
    index: int
    scored: tuple[ScoredToken, ...]


class Writing:
    """A reply, a piece at a time. `begin`, `close`, and `next` where it is not `light`, belong into a worker thread."""

    def __init__(self, model: LocalModel, session: Session, envelope: Envelope, settings: Settings) -> None:
        self._model = model
        self._session = session
        self._envelope = envelope
        self._settings = settings
        self._bound = settings.thinking
        self._most = model.params(settings).max_new_tokens
        self._checks = model.checks(envelope)
        self._start = self._from = session.length
        self._stream: Stream | None = None
        self._usage = Usage()
        self._shown = ""  # Text of the present stream.
        self._text = ""  # Text of the reply so far.
        self._given = 0  # How much of it was given out.
        self._thought = 0
        self._last = 0
        self._reader = ReplyParser(envelope)
        self._held = False
        self._tried: set[int] = set()
        self._before: _Before | None = None
        self._scored: list[ScoredToken] = []  # Of the reply's tokens, where asked for.
        self._scores_given = 0
        self.stop: Literal["done", "length"] = "done"

    @property
    def usage(self) -> Usage:
        """The tokens of it so far, those of values that were written again among them."""
        return replace(self._usage, thinking_tokens=self._thought)

    def begin(self) -> None:
        """Start; what the runtime refuses is raised here."""
        self._open(self._model.grammar(self._envelope))

    @property
    def light(self) -> bool:
        """Whether `next` takes a piece that is there, and nothing else."""
        return not self._checks and self._bound is None

    async def ready(self) -> None:
        """Return once there is a next piece."""
        if self._stream is not None:
            await self._stream.wait()

    def next(self, *, thinking: bool) -> str | None:
        """The next characters, none while a call is held back; None after the last.

        `thinking`: what was given so far ends inside the thinking.
        """
        if thinking:
            self._thought += self._last
            if self._bound is not None and self._thought >= self._bound and self._closes():
                return self._released()
        if self._stream is None:
            return None
        self._pull(self._stream)
        return self._released()

    def scored(self) -> tuple[ScoredToken, ...]:
        """How likely the tokens were whose characters were given since it was asked last, where settings say so."""
        if self._held or self._settings.logprobs is None:
            return ()
        new, self._scores_given = self._scored[self._scores_given :], len(self._scored)
        return tuple(new)

    def close(self) -> None:
        """End it here, complete or not."""
        if self._stream is not None:
            self._stream.close()

    # The stream

    def _open(self, grammar: Grammar | None, stands: int = 0) -> None:
        """Go on with the reply, of which `stands` tokens stand."""
        params = self._model.params(replace(self._settings, max_tokens=self._most - stands))
        self._stream, self._shown, self._last = self._session.stream(params, grammar), "", 0

    def _pull(self, stream: Stream) -> None:
        try:
            # StopIteration cannot come: the chunk with the completion is always the last.
            chunk = next(stream)
        except self._model.refusals:
            if self._before is None:
                raise
            self._count(self._shut(stream))
            self._restore(self._before)
            return
        self._last = len(chunk.ids)
        self._shown += chunk.text
        if chunk.logprobs:
            self._scored += scored(chunk.logprobs, self._model.tokenizer.token_bytes)
        if chunk.completion is not None:
            self._stream = None
            self._count(chunk.completion)
        self._add(chunk.text)

    def _shut(self, stream: Stream) -> Completion:
        stream.close()
        self._stream = None
        return stream.completion

    def _count(self, part: Completion) -> None:
        first = self._usage == Usage()
        read = (part.prompt_tokens, part.reused_tokens) if first else (0, 0)
        self._usage += Usage(read[0], len(part.ids), read[1], part.forced_tokens)
        self.stop = "length" if part.finish_reason == "length" else "done"

    def _released(self) -> str:
        if self._held:
            return ""
        text, self._given = self._text[self._given :], max(self._given, len(self._text))
        return text

    # Thinking

    def _closes(self) -> bool:
        """Close the thinking, if what must follow still fits; if not, the grammar is about to close it."""
        if self._stream is None:
            return False
        closing = self._model.encode([Piece(THINK_END)])
        stands = self._session.length - self._start + len(closing)
        room = self._model.engine.config.max_position_embeddings - self._start
        if self._model.least(self._envelope) > max(0, min(self._most, room) - stands):
            return False
        part = self._shut(self._stream)
        self._count(part)
        self._session.append(closing)
        bytes_of = self._model.tokenizer.token_bytes
        self._scored += [scored_token(token, 0.0, bytes_of) for token in closing]
        self._usage += Usage(output_tokens=len(closing), forced_tokens=len(closing))
        # A character whose last bytes are still to come is given up with the thinking it belongs to.
        self._add(part.text[len(self._shown) :] + THINK_END)
        self._from, self._bound = self._session.length, None
        if stands >= self._most:
            self.stop = "length"
        else:
            self._open(self._model.grammar(self._envelope, thought=True), stands)
        return True

    # Calls

    def _add(self, text: str) -> None:
        """Take in more of the reply, and look at the calls that it completes."""
        self._text += text
        if not self._checks:
            return
        for event in self._reader.feed(text):
            match event:
                case CallStarted(name=name):
                    self._held = name in self._checks
                case CallReady(index, call):
                    if self._again(index, call):
                        return
                    self._held = False
                case _:
                    pass

    def _again(self, index: int, call: ToolCall) -> bool:
        """Whether the call fails its check and is being written again; nothing of it counts then."""
        if self._before is not None and self._before.index == index:
            self._before = None
        if index in self._tried:
            return False
        fault = self._checks.fault(call, self._text, self._reader.starts[index])
        self._tried.add(index)
        return fault is not None and self._rewrite(index, *fault)

    def _rewrite(self, index: int, start: int, end: int) -> bool:
        """Go back to the token in which the value at these characters begins, and write another value."""
        ids = self._session.tokens[self._start :]
        kept, length, lead = _token_at(ids, self._model.tokenizer.token_bytes, start)
        grammar = self._model.grammar(self._envelope, thought=self._from > self._start)
        if grammar is None or self._text[:length] + lead != self._text[:start]:
            return False
        stands = ids[self._from - self._start : kept]
        failed = self._text[start:end].encode()
        before = _Before(ids, kept, self._text, self._stream is None, self.stop, index, tuple(self._scored))
        if self._stream is not None:
            self._count(self._shut(self._stream))
        self._session.rewind(self._start + kept)
        del self._scored[kept:]
        self._read_to(self._text[:length])
        try:
            self._open(grammar.after(stands, lead=lead.encode(), failed=failed), kept)
        except self._model.refusals:
            self._restore(before)
            return True
        self._before = before
        return True

    def _restore(self, before: _Before) -> None:
        """Nothing else could be written: the call stands as it was."""
        self._before = None
        self._session.rewind(self._start + before.kept)
        self._session.append(before.ids[before.kept :])
        self._scored = list(before.scored)
        if before.ended:
            self.stop = before.stop
        else:
            grammar = self._model.grammar(self._envelope, thought=self._from > self._start)
            assert grammar is not None
            self._open(grammar.after(before.ids[self._from - self._start :]), len(before.ids))
        self._read_to("")
        self._add(before.text)

    def _read_to(self, text: str) -> None:
        """Begin anew with what stands: its events were seen."""
        self._reader, self._text, self._held = ReplyParser(self._envelope), text, True
        self._reader.feed(text)


def _token_at(ids: Sequence[int], bytes_of: Sequence[bytes], at: int) -> tuple[int, int, str]:
    """Of the token that holds character `at`: its index, the characters before it, and those of it before `at`.

    Where that token begins inside a character, one further ahead.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    index = begun = length = 0
    for count, token in enumerate(ids):
        if not decoder.getstate()[0]:
            index, begun = count, length
        length += len(decoder.decode(bytes_of[token]))
        if length > at:
            text = b"".join(bytes_of[id] for id in ids[index : count + 1]).decode(errors="replace")
            return index, begun, text[: at - begun]
    return len(ids), length, ""

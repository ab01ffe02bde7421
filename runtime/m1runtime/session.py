"""A session: one sequence of tokens that remembers its state, so that a turn costs its own new tokens."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from torch import Tensor

from m1runtime.errors import ClosedError, SessionError
from m1runtime.executor import Executor, Progress
from m1runtime.generation import Completion, Generation
from m1runtime.requests import Prefill, Reply, alast, last
from m1runtime.rules import Rules
from m1runtime.sampling import SamplingParams
from m1runtime.scheduler import Scheduler
from m1runtime.sequence import SequenceState
from m1runtime.session_file import load_sequence, save_sequence
from m1runtime.stream import Stream

if TYPE_CHECKING:
    from m1runtime.grammar import Grammar


@dataclass(frozen=True, slots=True)
class Branch:
    """One of several replies, and the session that ends with it; close it when it is not needed."""

    session: Session
    completion: Completion


class Session:
    """Tokens with their caches. Made by `Engine.session`; not to be used by two threads at once.

    Whatever the history (splits, forks, rewinds, files), results equal one uncached forward pass over `tokens`.
    """

    def __init__(self, executor: Executor, scheduler: Scheduler, rules: Rules, sequence: SequenceState) -> None:
        self._executor = executor
        self._scheduler = scheduler
        self._rules = rules
        self._sequence = sequence
        self._stream: weakref.ref[Stream] | None = None
        self._reply: Reply | None = None  # what that stream reads; it outlives a stream that was dropped
        self._release = weakref.finalize(self, executor.release, sequence)

    @property
    def tokens(self) -> tuple[int, ...]:
        """Every token so far, generated end tokens included; of a reply under way, those that were taken."""
        return tuple(self._sequence.tokens[: self.length])

    @property
    def length(self) -> int:
        """How many tokens there are."""
        stream = self._stream() if self._stream is not None else None
        return len(self._sequence.tokens) if stream is None or stream.finished else stream.taken

    @property
    def logits(self) -> Tensor:
        """fp32 logits [V] that follow the last token. Raises SessionError when there are no tokens."""
        self._check()
        if not self._sequence.tokens:
            raise SessionError("an empty session has no logits; append at least one token first")
        self._executor.advance([self._sequence])
        assert self._sequence.logits is not None
        return self._sequence.logits.clone()

    def append(
        self,
        ids: Sequence[int],
        *,
        boundaries: Sequence[int] = (),
        progress: Progress | None = None,
        priority: int = 0,
    ) -> None:
        """Computes new tokens after the present ones; the end becomes a rewind point that costs nothing.

        `boundaries`: further rewind points, as counts of the new tokens (0 < b <= len(ids)), pinned like `commit`. Long
        inputs go in chunks; `progress(done, total)` follows them. Of several callers' work, that of the higher
        `priority` goes first. Raises SessionError for an id outside the vocabulary, or too many.
        """
        self._add(ids, boundaries)
        self._scheduler.run(Prefill(self._sequence, priority=priority), progress)
        self._executor.snapshot(self._sequence, pinned=False)

    async def aappend(self, ids: Sequence[int], *, boundaries: Sequence[int] = (), priority: int = 0) -> None:
        """As `append`, without blocking the event loop. A cancellation leaves the tokens, to be computed later."""
        self._add(ids, boundaries)
        await self._scheduler.arun(Prefill(self._sequence, priority=priority))
        self._executor.snapshot(self._sequence, pinned=False)

    def _add(self, ids: Sequence[int], boundaries: Sequence[int]) -> None:
        self._check()
        new = self._rules.check(ids, after=len(self._sequence.tokens))
        self._executor.check_room(len(self._sequence.tokens) + len(new))
        start = len(self._sequence.tokens)
        for boundary in boundaries:
            if not 0 < boundary <= len(new):
                raise SessionError(f"boundary {boundary} is not among the {len(new)} new tokens")
        for boundary in boundaries:
            self._sequence.declare(start + boundary, pinned=True)
        self._sequence.tokens += new

    def generate(self, params: SamplingParams | None = None, grammar: Grammar | None = None) -> Completion:
        """Generates a reply and appends it, end token included."""
        stream = self.stream(params, grammar)
        for _ in stream:
            pass
        return stream.completion

    def stream(
        self, params: SamplingParams | None = None, grammar: Grammar | None = None, *, priority: int = 0
    ) -> Stream:
        """The reply as it grows, for `for` or `async for`; other calls are refused until it ends or is closed."""
        self._check()
        generation = Generation(self._sequence, params or SamplingParams(), self._rules, grammar)
        stream = Stream(
            self._scheduler, self._executor, generation, ended=self._executor.end_turn, priority=priority, owner=self
        )
        self._stream, self._reply = weakref.ref(stream), stream.reply
        return stream

    def fork(self) -> Session:
        """An independent session with the same past: one state copied, KV pages shared until written."""
        self._check()
        return Session(self._executor, self._scheduler, self._rules, self._executor.fork(self._sequence))

    def branches(
        self,
        count: int,
        params: SamplingParams | None = None,
        grammar: Grammar | None = None,
        *,
        priority: int = 0,
    ) -> list[Branch]:
        """`count` replies from here, generated together, each in a fork of its own; this session stays where it is.

        With a seed in `params` the branches use it and those that follow, so that they differ and come again.
        """
        forks, replies = self._fork_out(count, params or SamplingParams(), grammar, priority)
        try:
            self._scheduler.submit(replies)
            return [Branch(fork, last(reply)) for fork, reply in zip(forks, replies, strict=True)]
        except BaseException:
            self._scheduler.withdraw(*(reply for reply in replies if reply.submitted))
            for fork in forks:
                fork.close()
            raise

    async def abranches(
        self,
        count: int,
        params: SamplingParams | None = None,
        grammar: Grammar | None = None,
        *,
        priority: int = 0,
    ) -> list[Branch]:
        """As `branches`, without blocking the event loop."""
        forks, replies = self._fork_out(count, params or SamplingParams(), grammar, priority)
        try:
            self._scheduler.submit(replies)
            return [Branch(fork, await alast(reply)) for fork, reply in zip(forks, replies, strict=True)]
        except BaseException:
            self._scheduler.cancel(*replies)
            raise

    def best_of(
        self,
        count: int,
        params: SamplingParams | None = None,
        grammar: Grammar | None = None,
        *,
        score: Callable[[Completion], float] | None = None,
        priority: int = 0,
    ) -> Completion:
        """The best of `count` replies, which becomes this session's.

        score: of a completion, the highest wins; None takes the mean log probability of the tokens that were chosen.
        """
        params = params or SamplingParams()
        if score is None and params.logprobs is None:
            params = replace(params, logprobs=0)
        branches = self.branches(count, params, grammar, priority=priority)
        best = max(branches, key=lambda branch: (score or likelihood)(branch.completion))
        self._release()
        self._adopt(best.session._sequence)
        best.session._release.detach()
        for branch in branches:
            branch.session.close()
        return best.completion

    def rewind(self, length: int) -> None:
        """Forgets the tokens beyond `length`; free within the last 64 tokens and at boundaries.

        Elsewhere the tokens since the last boundary are computed again.
        """
        self._check()
        if not 0 <= length <= len(self._sequence.tokens):
            raise SessionError(f"cannot rewind to {length}: the session has {len(self._sequence.tokens)} tokens")
        self._executor.rewind(self._sequence, length)

    def commit(self) -> None:
        """Makes the present length a rewind point that outlives others: it goes last when memory runs out."""
        self._check()
        self._executor.snapshot(self._sequence, pinned=True)

    def save(self, path: str | Path | None = None) -> None:
        """Writes tokens, caches and rewind points as one safetensors file, for `Engine.load_session`.

        Without a path they go to the engine's cold tier, and every session that begins with these tokens finds them.
        Raises SessionError when there is none.
        """
        self._check()
        if path is not None:
            save_sequence(self._executor, self._sequence, Path(path))
        elif self._executor.store.cold is None:
            raise SessionError("save() without a path needs a cold tier: Engine.from_pretrained(..., cold=<folder>)")
        else:
            self._executor.freeze(self._sequence)

    def load(self, path: str | Path) -> None:
        """Replaces this session's past by a saved one; a file that does not fit (SessionFileError) changes nothing."""
        self._check()
        sequence = load_sequence(self._executor, Path(path), keep=self._sequence.keep)
        self._release()
        self._adopt(sequence)

    def close(self) -> None:
        """Ends a running reply and frees the state and pages; further use raises ClosedError. Closing twice is fine."""
        if self._release.alive:
            stream = self._stream() if self._stream is not None else None
            if stream is not None:
                stream.close()
            self._settle()
        self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _adopt(self, sequence: SequenceState) -> None:
        self._sequence = sequence
        self._release = weakref.finalize(self, self._executor.release, sequence)

    def _fork_out(
        self, count: int, params: SamplingParams, grammar: Grammar | None, priority: int
    ) -> tuple[list[Session], list[Reply]]:
        if count < 1:
            raise SessionError(f"{count} branches: ask for at least one")
        forks = [self.fork() for _ in range(count)]
        seeds = [None if params.seed is None else (params.seed + i) % 2**63 for i in range(count)]
        replies: list[Reply] = []
        for fork, seed in zip(forks, seeds, strict=True):
            generation = Generation(fork._sequence, replace(params, seed=seed), self._rules, grammar)
            ended = self._executor.end_turn
            fork._reply = Reply(self._executor, generation, ended=ended, whole=True, priority=priority)
            replies.append(fork._reply)
        return forks, replies

    def _settle(self) -> None:
        """After a stream that was dropped."""
        if self._reply is not None and self._reply.submitted:
            self._scheduler.withdraw(self._reply)
            self._reply.take_back()
        self._stream = self._reply = None

    def _check(self) -> None:
        if not self._release.alive:
            raise ClosedError("the session is closed")
        stream = self._stream() if self._stream is not None else None
        if stream is not None and not stream.finished:
            raise SessionError("a reply is being generated; iterate its stream to the end or close() it first")
        self._settle()


def likelihood(completion: Completion) -> float:
    """Mean log probability of a reply's tokens; -inf for an empty one. Needs `SamplingParams(logprobs=...)`."""
    logprobs = [token.logprob for token in completion.logprobs]
    return sum(logprobs) / len(logprobs) if logprobs else float("-inf")

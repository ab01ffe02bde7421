"""Runs pending tokens of any number of sequences through the model, one packed forward pass at a time."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from m1runtime.errors import CacheFullError, ClosedError
from m1runtime.model import Model, Output
from m1runtime.prefix import common
from m1runtime.sequence import Draft, SequenceState, Trial
from m1runtime.spans import Span, pack
from m1runtime.store import SHARED, Store

_NO_DRAFTS: Mapping[SequenceState, Draft] = {}

Progress = Callable[[int, int], None]
"""Called after each chunk of a long prefill with (tokens done, tokens in all)."""


@dataclass(slots=True)
class Counters:
    """Running totals of an executor, in tokens; `recomputed` by cause. Of those `drafted`, `accepted` came true."""

    computed: int = 0
    reused: int = 0
    generated: int = 0
    forced: int = 0
    drafted: int = 0
    accepted: int = 0
    forwards: int = 0
    recomputed: dict[str, int] = field(default_factory=dict[str, int])


class Executor:
    """The model with its caches. Thread-safe: one forward pass runs at a time.

    cache_memory: bytes that all caches may take; None is no bound.
    """

    def __init__(
        self,
        model: Model,
        *,
        device: torch.device,
        dtype: torch.dtype,
        page_size: int,
        chunk: int,
        cache_memory: int | None = None,
    ) -> None:
        self.model = model
        self.device = device
        self.chunk = chunk
        self.store = Store(model, device=device, dtype=dtype, page_size=page_size, limit=cache_memory)
        self.states, self.pages, self.live = self.store.states, self.store.pages, self.store.live
        self.counters = Counters()
        self._no_state = self.states.states[:, 0]  # what a model without lightning layers exports
        self._passed = torch.cuda.Event() if device.type == "cuda" else None  # the end of the last pass
        self._lock = threading.RLock()
        self._inside = False  # of `_alone`, in the thread that has the lock
        self._leaving: deque[SequenceState] = deque()

    # Sequences

    def admit(self, *, keep: int) -> SequenceState:
        """An empty sequence; `keep` unpinned boundaries of it are protected while it lives."""
        with self._alone():
            return self.store.admit(keep=keep)

    def release(self, sequence: SequenceState) -> None:
        """Frees a sequence's slot and pages; what it computed up to now stays in the prefix tree while there is room.

        The garbage collector calls this, too, in the middle of anything: then it is done just after that.
        """
        self._leaving.append(sequence)
        with self._alone():
            pass

    def ready(self, sequences: Sequence[SequenceState]) -> list[SequenceState]:
        """Gives each sequence the deepest kept prefix of its tokens, and says which to run now.

        The others begin as one that runs does: they wait until it has computed what they share. Those that get no slot
        are left out, too.
        """
        with self._alone():
            running: list[SequenceState] = []
            for sequence in sequences:
                self.settle(sequence)
                if sequence.slot >= 0 or not self._shares(sequence, running):
                    while not self.store.start(sequence) and self._preempt_idle(sequences):
                        pass
                    if sequence.slot < 0:
                        continue
                    running.append(sequence)
                    if sequence.tokens and not sequence.pending:
                        self._logits(sequence)
            return running

    def reserve(self, sequence: SequenceState, tokens: int) -> bool:
        """Makes room for `tokens` more of a sequence, evicting what no live sequence needs.

        False: live sequences hold too much. Then wait until one ends, or `preempt` one.
        """
        with self._alone():
            return self.store.reserve(sequence, tokens)

    def preempt(self, sequence: SequenceState) -> None:
        """Takes a live sequence's caches away, down to its deepest kept boundary; the rest is computed again later."""
        with self._alone():
            self.settle(sequence)
            self.store.preempt(sequence)

    def snapshot(self, sequence: SequenceState, *, pinned: bool) -> None:
        """Makes the sequence's end a boundary: now, or as soon as its pending tokens are computed."""
        with self._alone():
            self.settle(sequence)
            length = len(sequence.tokens)
            if sequence.pending:
                sequence.declare(length, pinned=pinned)
            elif length:
                self.store.keep(sequence, length, self._logits(sequence), pinned=pinned)

    def end_turn(self, sequence: SequenceState) -> None:
        """Makes the end of a reply a boundary, if the sequence was not released meanwhile."""
        with self._alone():
            if sequence in self.live:
                self.snapshot(sequence, pinned=False)

    def fork(self, sequence: SequenceState) -> SequenceState:
        """A second sequence with the same past. Its end becomes a boundary, which the child goes on from."""
        with self._alone():
            self.advance([sequence])
            self.snapshot(sequence, pinned=False)
            child = self.store.admit(keep=sequence.keep)
            child.tokens = list(sequence.tokens)
            child.lookup = None if sequence.lookup is None else sequence.lookup.copy()
            self.store.inherit(sequence, child)
            return child

    def rewind(self, sequence: SequenceState, length: int) -> None:
        """Forgets tokens beyond a length: within the ring or at a boundary nothing is computed again."""
        with self._alone():
            self.settle(sequence)
            self.store.cut(sequence, length)
            if length < sequence.computed:
                self.store.restore(sequence, length, "rewind")

    def freeze(self, sequence: SequenceState | None = None) -> None:
        """Writes to the cold tier: what one sequence can come back to, or every boundary of the tree."""
        with self._alone():
            if sequence is not None:
                self.advance([sequence])
                self.snapshot(sequence, pinned=False)
            for node in list(self.store.tree.kept) if sequence is None else list(sequence.held.values()):
                self.store.freeze(node)

    def clear(self) -> None:
        """Empties the prefix tree."""
        with self._alone():
            self.store.clear()

    # Computing

    def advance(
        self,
        sequences: Sequence[SequenceState],
        progress: Progress | None = None,
        drafts: Mapping[SequenceState, Draft] = _NO_DRAFTS,
    ) -> None:
        """Computes every pending token; afterwards `logits` of each sequence follow its last token.

        Drafts go along behind the pending tokens of their sequences, and become their trials.
        Raises ClosedError for a released sequence, and CacheFullError where `reserve` would say False.
        """
        with self._alone():
            self._check_live(sequences)
            running = self.ready(sequences)
            total = sum(sequence.pending for sequence in sequences)
            while any(sequence.pending or sequence.slot < 0 for sequence in sequences):
                if not any(sequence.pending for sequence in running):
                    raise self.full(next(s for s in sequences if s not in running), 0)
                self.compute(self._next_spans(running, drafts))
                if len(running) < len(sequences):
                    running = self.ready(sequences)
                if progress is not None:
                    progress(total - sum(sequence.pending for sequence in sequences), total)

    def make_room(self, sequence: SequenceState, tokens: int, running: Sequence[SequenceState] = ()) -> None:
        """As `find_room`. Raises CacheFullError when that is not enough."""
        with self._alone():
            if not self.find_room(sequence, tokens, running):
                raise self.full(sequence, sequence.computed + tokens)

    def find_room(self, sequence: SequenceState, tokens: int, running: Sequence[SequenceState] = ()) -> bool:
        """As `reserve`, and preempts sessions at rest, those that have rested longest first; never those `running`."""
        with self._alone():
            while not self.store.reserve(sequence, tokens):
                if not self._preempt_idle([sequence, *running]):
                    return False
            return True

    def check_room(self, tokens: int) -> None:
        """Raises CacheFullError for a session of so many tokens that could not be held even alone."""
        needed = self.store.needed(tokens)
        if self.store.limit is not None and needed > self.store.limit:
            raise CacheFullError(needed=needed, limit=self.store.limit, others=0)

    def compute(self, spans: Sequence[Span]) -> None:
        """One forward pass over `spans`, each of a settled sequence and beginning where that one is computed to.

        A draft may follow only where its span ends the sequence. Raises ClosedError for a released sequence,
        CacheFullError where `reserve` would say False, and leaves every sequence whole whatever is raised.
        """
        with self._alone():
            self._check_live([span.sequence for span in spans])
            for span in spans:
                assert span.start == span.sequence.computed, "the span begins where the sequence is not"
                span.sequence.used = self.counters.forwards
            for span in spans:
                self.make_room(span.sequence, span.end - span.start, running=[span.sequence for span in spans])
            try:
                exports = [self._exports(span) for span in spans]
                self._settle(spans, exports, self._forward(spans, exports))
                if self._passed is not None:
                    self._passed.record(torch.cuda.current_stream(self.device))
            except BaseException:
                # Some layers have advanced and others not: go back to a state known to be whole.
                for span in spans:
                    self.store.restore(span.sequence, span.start, "interrupted")
                raise

    @property
    def running(self) -> bool:
        """Whether an accelerator still computes the last pass; on a CPU a pass is over when `compute` returns."""
        return self._passed is not None and not self._passed.query()

    def settle(self, sequence: SequenceState) -> None:
        """Ends a trial: what did not come true of it is taken back."""
        if sequence.trial is None:
            return
        with self._alone():
            trial, sequence.trial = sequence.trial, None
            drafted, agreed = len(trial.draft.tokens), trial.agreed(sequence.tokens)
            self.counters.drafted += drafted
            self.counters.accepted += agreed
            sequence.computed = trial.start + drafted
            sequence.logits = trial.logits[-1]
            if agreed < drafted:
                self.store.restore(sequence, trial.start + agreed, "drafts", trial.logits_after(agreed))

    def score(self, ids: Sequence[int]) -> Tensor:
        """fp32 logits after every token of a fresh sequence, [len(ids), V]."""
        with self._lock:
            sequence = self.admit(keep=0)
            try:
                parts: list[Tensor] = []
                for start in range(0, len(ids), self.chunk):
                    sequence.tokens += ids[start : start + self.chunk]
                    span = Span(sequence, start, len(sequence.tokens))
                    self.make_room(sequence, span.end - start)
                    parts.append(self._forward([span], [self._exports(span)], every_row=True).logits)
                    self._count(span)
                return torch.cat(parts)  # outside inference mode: an ordinary tensor
            finally:
                sequence.logits, sequence.computed = None, 0  # not to be kept
                self.release(sequence)

    @contextmanager
    def _alone(self) -> Generator[None]:
        with self._lock:
            if self._inside:
                yield
                return
            self._inside = True
            try:
                with torch.inference_mode():
                    yield
                    while self._leaving:
                        self._leave(self._leaving.popleft())
            finally:
                self._inside = False

    def _leave(self, sequence: SequenceState) -> None:
        if sequence not in self.live:
            return
        self.settle(sequence)
        sequence.keep = 0
        if sequence.computed and sequence.computed not in sequence.held:
            self.store.keep(sequence, sequence.computed, self._logits(sequence), pinned=False)
        self.store.release(sequence)

    def _shares(self, sequence: SequenceState, running: Sequence[SequenceState]) -> bool:
        """Whether one that runs is about to compute a beginning of this one; its end is then made a boundary."""
        have = self.store.tree.match(sequence.tokens).length
        for other in running:
            shared = common(other.tokens, sequence.tokens) if other.pending else 0
            whole = shared == len(sequence.tokens) == len(other.tokens)
            if shared > other.computed and (whole or shared - max(have, other.computed) >= SHARED):
                other.declare(shared, pinned=False)
                return True
        return False

    def _logits(self, sequence: SequenceState) -> Tensor:
        """Those after the computed tokens; after a rewind they are made of the ring's hidden row."""
        if sequence.logits is None:
            row = self.states.ring.row(sequence.slot, sequence.computed)
            sequence.logits = self.model.logits(row[None])[0]
        return sequence.logits

    def _check_live(self, sequences: Sequence[SequenceState]) -> None:
        if not self.live.issuperset(sequences) or not set(self._leaving).isdisjoint(sequences):
            raise ClosedError("the session is closed")

    def _preempt_idle(self, running: Sequence[SequenceState]) -> bool:
        """Takes the caches of the session that has rested longest; whether there is one."""
        idle = [other for other in self.live if other.slot >= 0 and not other.busy and other not in running]
        if idle:
            self.store.preempt(min(idle, key=lambda other: other.used))
        return bool(idle)

    def full(self, sequence: SequenceState, tokens: int = 0) -> CacheFullError:
        """The error of a sequence that does not fit beside the others."""
        return CacheFullError(
            needed=self.store.needed(max(tokens, len(sequence.tokens))),
            limit=self.store.limit or 0,
            others=sum(other.slot >= 0 for other in self.live if other is not sequence),
        )

    def _next_spans(self, sequences: Sequence[SequenceState], drafts: Mapping[SequenceState, Draft]) -> list[Span]:
        room = self.chunk
        spans: list[Span] = []
        for sequence in sequences:
            count = min(sequence.pending, room)
            if count:
                room -= count
                draft = drafts.get(sequence) if count == sequence.pending else None
                if draft is not None and len(draft.tokens) > room:
                    draft = None
                spans.append(Span(sequence, sequence.computed, sequence.computed + count, draft))
                room -= len(draft.tokens) if draft is not None else 0
        return spans

    def _exports(self, span: Span) -> list[int]:
        """Lengths whose states the pass brings out: inner boundaries, and where the ring is to start."""
        anchor = self.store.follow(span.sequence, span.start, span.stop, span.end)
        inner = span.boundaries if span.sequence.boundaries else []
        if span.draft is None and inner and inner[-1] == span.stop:
            inner = inner[:-1]  # The slot has it afterwards.
        return inner if anchor is None or anchor in inner else [*inner, anchor]

    def _forward(self, spans: Sequence[Span], exports: Sequence[list[int]], *, every_row: bool = False) -> Output:
        self.counters.forwards += 1
        with torch.inference_mode():
            return self.model.forward(
                pack(spans, exports, self.pages, self.device, every_row=every_row), self.states, self.pages
            )

    def _settle(self, spans: Sequence[Span], exports: Sequence[list[int]], output: Output) -> None:
        row = exported = 0
        for span, wanted in zip(spans, exports, strict=True):
            sequence = span.sequence
            rows = dict(zip(span.rows, output.logits[row:], strict=False))
            states = {n: self._exported(output, exported + i) for i, n in enumerate(wanted)}
            row, exported = row + len(rows), exported + len(states)
            boundaries = span.boundaries if sequence.boundaries else []
            self._count(span)
            self.store.followed(sequence, span.stop, span.end, states, rows.get(span.stop))
            for length in boundaries:
                pinned = sequence.boundaries.pop(length)
                self.store.keep(sequence, length, rows[length], states.get(length), pinned=pinned)
            sequence.logits = rows.get(span.stop) if span.ends else None
            if span.draft is not None:
                choices = len(span.draft.choices)
                sequence.trial = Trial(span.draft, span.stop, output.logits[row - choices : row])

    def _exported(self, output: Output, index: int) -> Tensor:
        return self._no_state if output.exported is None else output.exported[index].clone()

    def _count(self, span: Span) -> None:
        sequence, counters = span.sequence, self.counters
        again = max(0, min(span.stop, sequence.known) - span.start)
        if again:
            counters.recomputed[sequence.cause] = counters.recomputed.get(sequence.cause, 0) + again
        counters.computed += span.end - span.start
        sequence.fresh += span.stop - span.start
        sequence.computed = span.stop

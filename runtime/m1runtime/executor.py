"""Runs pending tokens of any number of sequences through the model, one packed forward pass at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from m1runtime.cache import PagePool, StatePool
from m1runtime.errors import ClosedError
from m1runtime.layers import Batch
from m1runtime.model import Model, Output
from m1runtime.sequence import Draft, SequenceState, Snapshot, Trial

_NO_DRAFTS: Mapping[SequenceState, Draft] = {}

Progress = Callable[[int, int], None]
"""Called after each chunk of a long prefill with (tokens done, tokens in all)."""


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens start..stop-1 of a sequence, computed in one forward pass, and a draft after them."""

    sequence: SequenceState
    start: int
    stop: int
    draft: Draft | None = None

    @property
    def tokens(self) -> list[int]:
        """Every token the pass computes for the sequence."""
        own = self.sequence.tokens[self.start : self.stop]
        return own if self.draft is None else own + list(self.draft.tokens)

    @property
    def ends(self) -> bool:
        """Whether the sequence has nothing pending after it."""
        return self.stop == len(self.sequence.tokens)

    @property
    def boundaries(self) -> list[int]:
        """Lengths inside the span whose snapshot is wanted."""
        return sorted(n for n in self.sequence.boundaries if self.start < n <= self.stop)

    @property
    def exports(self) -> list[int]:
        """Lengths whose state is wanted: boundaries, and the end of the tokens where a draft follows."""
        boundaries = self.boundaries if self.sequence.boundaries else []
        return boundaries if self.draft is None or self.stop in boundaries else [*boundaries, self.stop]

    @property
    def rows(self) -> list[int]:
        """Lengths whose logits are wanted: boundaries, then those of the end, or of each choice of the draft."""
        ends = [0] if self.draft is None else self.draft.choices
        return (self.boundaries if self.sequence.boundaries else []) + [self.stop + n for n in ends if self.ends]


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
    """The model with its pools. Thread-safe: one forward pass runs at a time."""

    def __init__(self, model: Model, *, device: torch.device, dtype: torch.dtype, page_size: int, chunk: int) -> None:
        self.model = model
        self.device = device
        self.chunk = chunk
        self.states = StatePool(model.config, device=device)
        self.pages = PagePool(model.config, device=device, dtype=dtype, page_size=page_size)
        self.counters = Counters()
        self._no_state = self.states.read(0)[:0]  # what a model without lightning layers exports
        self.live: set[SequenceState] = set()
        self._lock = threading.RLock()

    def admit(self, *, keep: int) -> SequenceState:
        """An empty sequence; `keep` unpinned snapshots are kept of it."""
        with self._lock, torch.inference_mode():
            sequence = SequenceState(slot=self.states.admit(), keep=keep)
            self.live.add(sequence)
            return sequence

    def release(self, sequence: SequenceState) -> None:
        """Frees a sequence's slot and pages."""
        with self._lock:
            self.live.discard(sequence)
            sequence.trial = None
            self.states.release(sequence.slot)
            self.pages.release(sequence.table)
            sequence.table = []

    def advance(
        self,
        sequences: Sequence[SequenceState],
        progress: Progress | None = None,
        drafts: Mapping[SequenceState, Draft] = _NO_DRAFTS,
    ) -> None:
        """Computes every pending token; afterwards `logits` of each sequence follow its last token.

        Drafts go along behind the pending tokens of their sequences, and become their trials.
        Raises ClosedError for a released sequence: its slot may be another's by now.
        """
        with self._lock:
            if not self.live.issuperset(sequences):
                raise ClosedError("the session is closed")
            for sequence in sequences:
                self.settle(sequence)
            total = sum(sequence.pending for sequence in sequences)
            done = 0
            while done < total:
                spans = self._next_spans(sequences, drafts)
                self.compute(spans)
                done += sum(span.stop - span.start for span in spans)
                if progress is not None:
                    progress(done, total)

    def compute(self, spans: Sequence[Span]) -> None:
        """One forward pass over `spans`, each of a settled sequence and beginning where that one is computed to.

        A draft may follow only where its span ends the sequence. Raises ClosedError for a released sequence, and leaves
        every sequence whole whatever is raised.
        """
        with self._lock:
            if not self.live.issuperset(span.sequence for span in spans):
                raise ClosedError("the session is closed")
            try:
                self._settle(spans, self._forward(spans))
            except BaseException:
                # Some layers have advanced and others not: go back to a state known to be whole.
                for span in spans:
                    self._restore(span.sequence, known=span.start, cause="interrupted")
                raise

    def settle(self, sequence: SequenceState) -> None:
        """Ends a trial: the state is that after it if all of it came true, else that before it.

        What came true of the rest is pending again, and goes along with the next forward pass.
        """
        with self._lock, torch.inference_mode():
            trial, sequence.trial = sequence.trial, None
            if trial is None:
                return
            drafted, agreed = len(trial.draft.tokens), trial.agreed(sequence.tokens)
            self.counters.drafted += drafted
            self.counters.accepted += agreed
            if agreed == drafted:
                sequence.computed += drafted
                sequence.logits = trial.logits[-1]
                return
            self.states.write(sequence.slot, trial.state)
            sequence.known, sequence.cause = trial.start + agreed, "drafts"
            self.pages.trim(sequence.table, len(sequence.tokens))
            sequence.table_tensor = None

    def score(self, ids: Sequence[int]) -> Tensor:
        """fp32 logits after every token of a fresh sequence, [len(ids), V]."""
        with self._lock:
            sequence = self.admit(keep=0)
            try:
                sequence.tokens = list(ids)
                parts: list[Tensor] = []
                while sequence.pending:
                    spans = self._next_spans([sequence], _NO_DRAFTS)
                    output = self._forward(spans, every_row=True)
                    parts.append(output.logits)
                    self._count(spans[0])
                return torch.cat(parts)  # outside inference mode: an ordinary tensor
            finally:
                self.release(sequence)

    @property
    def snapshot_bytes(self) -> int:
        """Bytes of all kept snapshots; what forks share counts once."""
        states = {id(s.state): s for sequence in self.live for s in sequence.snapshots.values()}
        return sum(4 * (s.state.numel() + s.logits.numel()) for s in states.values())

    def snapshot(self, sequence: SequenceState, *, pinned: bool) -> None:
        """Keeps a snapshot at the sequence's end: now, or as soon as its pending tokens are computed."""
        with self._lock, torch.inference_mode():
            self.settle(sequence)
            length = len(sequence.tokens)
            if sequence.pending:
                sequence.declare(length, pinned=pinned)
            elif (pinned or sequence.keep) and sequence.logits is not None:
                known = sequence.snapshots.get(length)
                state = known.state if known else self.states.read(sequence.slot)
                sequence.remember(length, Snapshot(state, sequence.logits, pinned or bool(known and known.pinned)))

    def end_turn(self, sequence: SequenceState) -> None:
        """Keeps a snapshot at the end of a reply, if the sequence was not released meanwhile."""
        with self._lock:
            if sequence in self.live:
                self.snapshot(sequence, pinned=False)

    def fork(self, sequence: SequenceState) -> SequenceState:
        """A second sequence with the same past: one state copy, pages shared until either writes to them."""
        with self._lock, torch.inference_mode():
            self.advance([sequence])
            child = self.admit(keep=sequence.keep)
            self.states.copy(sequence.slot, child.slot)
            child.tokens = list(sequence.tokens)
            child.table = self.pages.share(sequence.table)
            child.computed, child.logits, child.known = sequence.computed, sequence.logits, sequence.known
            child.snapshots = dict(sequence.snapshots)
            child.lookup = None if sequence.lookup is None else sequence.lookup.copy()
            return child

    def rewind(self, sequence: SequenceState, length: int) -> None:
        """Forgets tokens beyond a length: back to the nearest snapshot, the rest is recomputed when needed."""
        with self._lock, torch.inference_mode():
            self.settle(sequence)
            sequence.truncate(length)
            if length < sequence.computed:
                self._restore(sequence, known=length, cause="rewind")

    def _restore(self, sequence: SequenceState, *, known: int, cause: str) -> None:
        base = max((n for n in sequence.snapshots if n <= known), default=0)
        snapshot = sequence.snapshots.get(base)
        with torch.inference_mode():
            self.states.write(sequence.slot, snapshot.state if snapshot else None)
        sequence.logits = snapshot.logits if snapshot else None
        sequence.computed, sequence.known, sequence.cause = base, known, cause
        sequence.trial = None
        self.pages.trim(sequence.table, base)
        sequence.table_tensor = None

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

    def _forward(self, spans: Sequence[Span], *, every_row: bool = False) -> Output:
        self.counters.forwards += 1
        with torch.inference_mode():
            return self.model.forward(self._pack(spans, every_row=every_row), self.states, self.pages)

    def _pack(self, spans: Sequence[Span], *, every_row: bool) -> Batch:
        ids: list[int] = []
        positions: list[int] = []
        kv_rows: list[int] = []
        bounds = [0]
        lengths: list[int] = []
        export: list[int] = []
        rows: list[int] = []
        size = self.pages.page_size
        for span in spans:
            sequence, first = span.sequence, len(ids)
            ids += span.tokens
            places = range(span.start, span.start + len(ids) - first)
            if self.pages.prepare(sequence.table, places.start, places.stop):
                sequence.table_tensor = None
            positions += places
            kv_rows += [sequence.table[p // size] * size + p % size for p in places]
            bounds.append(len(ids))
            lengths.append(places.stop)
            export += [first + n - span.start - 1 for n in span.exports]
            rows += [first + n - span.start - 1 for n in span.rows]
        return Batch(
            ids=self._tensor(ids),
            positions=self._tensor(positions),
            bounds=tuple(bounds),
            slots=self._tensor([span.sequence.slot for span in spans]),
            page_tables=[span.sequence.page_table(self.device) for span in spans],
            kv_rows=self._tensor(kv_rows),
            lengths=lengths,
            export=tuple(export),
            rows=None if every_row or len(rows) == len(ids) == len(spans) else self._tensor(rows),
        )

    def _tensor(self, values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self.device)

    def _settle(self, spans: Sequence[Span], output: Output) -> None:
        row = exported = 0
        for span in spans:
            sequence, boundaries = span.sequence, span.boundaries if span.sequence.boundaries else []
            states = {n: self._exported(output, exported + i) for i, n in enumerate(span.exports)}
            exported += len(states)
            for length in boundaries:
                sequence.remember(length, Snapshot(states[length], output.logits[row], sequence.boundaries.pop(length)))
                row += 1
            if span.draft is not None:
                logits = output.logits[row : row + len(span.draft.choices)]
                sequence.trial = Trial(span.draft, span.stop, states[span.stop], logits)
            if span.ends:
                sequence.logits = output.logits[row]
                row += 1 if span.draft is None else len(span.draft.choices)
            self._count(span)

    def _exported(self, output: Output, index: int) -> Tensor:
        return self._no_state if output.exported is None else output.exported[index]

    def _count(self, span: Span) -> None:
        sequence, counters = span.sequence, self.counters
        again = max(0, min(span.stop, sequence.known) - span.start)
        if again:
            counters.recomputed[sequence.cause] = counters.recomputed.get(sequence.cause, 0) + again
        counters.computed += len(span.tokens)
        sequence.fresh += span.stop - span.start
        sequence.computed = span.stop

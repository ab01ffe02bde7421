"""Runs pending tokens of any number of sequences through the model, one packed forward pass at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from m1runtime.cache import PagePool, StatePool
from m1runtime.errors import ClosedError
from m1runtime.layers import Batch
from m1runtime.model import Model, Output
from m1runtime.sequence import SequenceState, Snapshot

Progress = Callable[[int, int], None]
"""Called after each chunk of a long prefill with (tokens done, tokens in all)."""


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens start..stop-1 of a sequence, computed in one forward pass."""

    sequence: SequenceState
    start: int
    stop: int

    @property
    def ends(self) -> bool:
        """Whether the sequence has nothing pending after it."""
        return self.stop == len(self.sequence.tokens)

    @property
    def boundaries(self) -> list[int]:
        """Lengths inside the span whose snapshot is wanted."""
        return sorted(n for n in self.sequence.boundaries if self.start < n <= self.stop)


@dataclass(slots=True)
class Counters:
    """Running totals of an executor, in tokens; `recomputed` by cause."""

    computed: int = 0
    reused: int = 0
    generated: int = 0
    forced: int = 0
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
            self.states.release(sequence.slot)
            self.pages.release(sequence.table)
            sequence.table = []

    def advance(self, sequences: Sequence[SequenceState], progress: Progress | None = None) -> None:
        """Computes every pending token; afterwards `logits` of each sequence follow its last token.

        Raises ClosedError for a released sequence: its slot may be another's by now.
        """
        with self._lock:
            if not self.live.issuperset(sequences):
                raise ClosedError("the session is closed")
            total = sum(sequence.pending for sequence in sequences)
            done = 0
            while done < total:
                spans = self._next_spans(sequences)
                try:
                    self._settle(spans, self._forward(spans))
                except BaseException:
                    # Some layers have advanced and others not: go back to a state known to be whole.
                    for span in spans:
                        self._restore(span.sequence, known=span.start, cause="interrupted")
                    raise
                done += sum(span.stop - span.start for span in spans)
                if progress is not None:
                    progress(done, total)

    def score(self, ids: Sequence[int]) -> Tensor:
        """fp32 logits after every token of a fresh sequence, [len(ids), V]."""
        with self._lock:
            sequence = self.admit(keep=0)
            try:
                sequence.tokens = list(ids)
                parts: list[Tensor] = []
                while sequence.pending:
                    spans = self._next_spans([sequence])
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
            length = len(sequence.tokens)
            if sequence.pending:
                sequence.declare(length, pinned=pinned)
            elif (pinned or sequence.keep) and sequence.logits is not None:
                known = sequence.snapshots.get(length)
                state = known.state if known else self.states.read(sequence.slot)
                sequence.remember(length, Snapshot(state, sequence.logits, pinned or bool(known and known.pinned)))

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
            return child

    def rewind(self, sequence: SequenceState, length: int) -> None:
        """Forgets tokens beyond a length: back to the nearest snapshot, the rest is recomputed when needed."""
        with self._lock, torch.inference_mode():
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
        self.pages.trim(sequence.table, base)
        sequence.table_tensor = None

    def _next_spans(self, sequences: Sequence[SequenceState]) -> list[Span]:
        room = self.chunk
        spans: list[Span] = []
        for sequence in sequences:
            count = min(sequence.pending, room)
            if count:
                spans.append(Span(sequence, sequence.computed, sequence.computed + count))
                room -= count
        return spans

    def _forward(self, spans: list[Span], *, every_row: bool = False) -> Output:
        self.counters.forwards += 1
        with torch.inference_mode():
            return self.model.forward(self._pack(spans, every_row=every_row), self.states, self.pages)

    def _pack(self, spans: list[Span], *, every_row: bool) -> Batch:
        ids: list[int] = []
        positions: list[int] = []
        kv_rows: list[int] = []
        bounds = [0]
        export: list[int] = []
        rows: list[int] = []
        size = self.pages.page_size
        for span in spans:
            sequence, first = span.sequence, len(ids)
            if self.pages.prepare(sequence.table, span.start, span.stop):
                sequence.table_tensor = None
            ids += sequence.tokens[span.start : span.stop]
            positions += range(span.start, span.stop)
            kv_rows += [sequence.table[p // size] * size + p % size for p in range(span.start, span.stop)]
            bounds.append(len(ids))
            marks = [first + n - span.start - 1 for n in span.boundaries] if sequence.boundaries else []
            export += marks
            rows += marks
            if span.ends:
                rows.append(len(ids) - 1)
        return Batch(
            ids=self._tensor(ids),
            positions=self._tensor(positions),
            bounds=tuple(bounds),
            slots=self._tensor([span.sequence.slot for span in spans]),
            page_tables=[span.sequence.page_table(self.device) for span in spans],
            kv_rows=self._tensor(kv_rows),
            lengths=[span.stop for span in spans],
            export=tuple(export),
            rows=None if every_row or len(rows) == len(ids) == len(spans) else self._tensor(rows),
        )

    def _tensor(self, values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self.device)

    def _settle(self, spans: list[Span], output: Output) -> None:
        row = exported = 0
        for span in spans:
            sequence = span.sequence
            for length in span.boundaries if sequence.boundaries else ():
                state = self._no_state if output.exported is None else output.exported[exported]
                sequence.remember(length, Snapshot(state, output.logits[row], sequence.boundaries.pop(length)))
                row, exported = row + 1, exported + 1
            if span.ends:
                sequence.logits = output.logits[row]
                row += 1
            self._count(span)

    def _count(self, span: Span) -> None:
        sequence, counters = span.sequence, self.counters
        again = max(0, min(span.stop, sequence.known) - span.start)
        if again:
            counters.recomputed[sequence.cause] = counters.recomputed.get(sequence.cause, 0) + again
        counters.computed += span.stop - span.start
        sequence.fresh += span.stop - span.start
        sequence.computed = span.stop

"""What one forward pass computes: runs of tokens of several sequences, packed into a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from m1runtime.cache import PagePool
from m1runtime.layers import Batch
from m1runtime.ring import ROWS
from m1runtime.sequence import Draft, SequenceState


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
    def end(self) -> int:
        """The length after them."""
        return self.stop + (len(self.draft.tokens) if self.draft else 0)

    @property
    def ends(self) -> bool:
        """Whether the sequence has nothing pending after it."""
        return self.stop == len(self.sequence.tokens)

    @property
    def boundaries(self) -> list[int]:
        """Lengths inside the span that are to be kept."""
        return sorted(n for n in self.sequence.boundaries if self.start < n <= self.stop)

    @property
    def rows(self) -> list[int]:
        """Lengths whose logits are wanted, ascending: boundaries, and the end, or each choice of the draft."""
        ends = ([0] if self.draft is None else self.draft.choices) if self.ends else ()
        found = [self.stop + n for n in ends]
        return sorted({*self.boundaries, *found}) if self.sequence.boundaries else found


def pack(
    spans: Sequence[Span], exports: Sequence[list[int]], pages: PagePool, device: torch.device, *, every_row: bool
) -> Batch:
    """The batch of a pass, without padding; `exports`: lengths of each span whose states are brought out."""

    def tensor(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=device)

    ids: list[int] = []
    positions: list[int] = []
    kv_rows: list[int] = []
    bounds = [0]
    lengths: list[int] = []
    export: list[int] = []
    rows: list[int] = []
    ring: list[int] = []
    recent: list[int] = []
    size = pages.page_size
    for span, wanted in zip(spans, exports, strict=True):
        sequence, first = span.sequence, len(ids)
        ids += span.tokens
        places = range(span.start, span.end)
        positions += places
        kv_rows += [sequence.table[p // size] * size + p % size for p in places]
        bounds.append(len(ids))
        lengths.append(places.stop)
        export += [first + n - span.start - 1 for n in wanted]
        rows += [first + n - span.start - 1 for n in span.rows]
        latest = places[-ROWS:]
        ring += [sequence.slot * ROWS + p % ROWS for p in latest]
        recent += range(len(ids) - len(latest), len(ids))
    slots = [span.sequence.slot for span in spans]
    parts = (ids, positions, slots, kv_rows, ring)
    # One tensor costs less to make than five.
    together = torch.split(tensor([*chain(*parts)]), [len(part) for part in parts])
    return Batch(
        ids=together[0],
        positions=together[1],
        bounds=tuple(bounds),
        slots=together[2],
        page_tables=[span.sequence.page_table(device) for span in spans],
        kv_rows=together[3],
        lengths=lengths,
        ring_rows=together[4],
        recent=None if len(recent) == len(ids) else tensor(recent),
        export=tuple(export),
        rows=None if every_row or len(rows) == len(ids) == len(spans) else tensor(rows),
    )

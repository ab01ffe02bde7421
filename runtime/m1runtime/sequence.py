"""What the runtime remembers of one sequence."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from m1runtime.grammar.drafts import Lookup


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The sequence just after some token: lightning states [layers, A, D, D] fp32 and the logits [V] that follow."""

    state: Tensor
    logits: Tensor
    pinned: bool  # declared by commit(); the others make room for newer ones


@dataclass(frozen=True, slots=True)
class Draft:
    """Tokens that are likely to follow; `choices`: how many of them stand before each place where one is chosen.

    The first of `choices` is 0 and the last is the number of tokens.
    """

    tokens: tuple[int, ...]
    choices: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Trial:
    """A draft that went through the model after the sequence's first `start` tokens, and how to take it back.

    `state`: the lightning states [layers, A, D, D] before it; `logits` [choices, V]: those of each of its choices.
    """

    draft: Draft
    start: int
    state: Tensor
    logits: Tensor

    def agreed(self, tokens: Sequence[int]) -> int:
        """How many of the drafted tokens the sequence has taken since."""
        taken = tokens[self.start : self.start + len(self.draft.tokens)]
        pairs = enumerate(zip(taken, self.draft.tokens, strict=False))
        return next((n for n, (token, drafted) in pairs if token != drafted), len(taken))


@dataclass(slots=True, eq=False)
class SequenceState:
    """Tokens, and the caches of the first `computed` of them; the rest wait for the next forward pass.

    `boundaries` are lengths whose state is wanted as a snapshot (→ pinned). `known` is the longest prefix computed
    before the caches were restored, and `cause` why they were, so that tokens computed twice are counted.
    `trial`: a draft whose caches are there already, until the executor settles it.
    """

    slot: int
    keep: int  # unpinned snapshots kept
    tokens: list[int] = field(default_factory=list[int])
    computed: int = 0
    table: list[int] = field(default_factory=list[int])
    logits: Tensor | None = None
    snapshots: dict[int, Snapshot] = field(default_factory=dict[int, Snapshot])
    boundaries: dict[int, bool] = field(default_factory=dict[int, bool])
    known: int = 0
    cause: str = ""
    fresh: int = 0  # tokens computed since the last generation ended
    table_tensor: Tensor | None = None  # `table` on the device; None when it changed
    trial: Trial | None = None
    lookup: Lookup | None = None  # where the tokens occurred before; None until a reply is drafted

    @property
    def pending(self) -> int:
        """Tokens not yet computed."""
        return len(self.tokens) - self.computed

    def page_table(self, device: torch.device) -> Tensor:
        """The page table as an int64 tensor, kept until it changes."""
        if self.table_tensor is None:
            self.table_tensor = torch.tensor(self.table, dtype=torch.int64, device=device)
        return self.table_tensor

    def declare(self, length: int, *, pinned: bool) -> None:
        """Wants a snapshot at a length not computed yet."""
        if pinned or self.keep:
            self.boundaries[length] = pinned or self.boundaries.get(length, False)

    def remember(self, length: int, snapshot: Snapshot) -> None:
        """Keeps a snapshot; the oldest unpinned ones beyond `keep` are dropped."""
        self.snapshots[length] = snapshot
        loose = sorted(n for n, s in self.snapshots.items() if not s.pinned)
        self.forget(loose[: max(0, len(loose) - self.keep)])

    def forget(self, lengths: Iterable[int]) -> None:
        """Drops snapshots."""
        for length in list(lengths):
            del self.snapshots[length]

    def truncate(self, length: int) -> None:
        """Drops tokens, snapshots and boundaries beyond a length; caches are the executor's to restore."""
        del self.tokens[length:]
        self.known = min(self.known, length)
        self.forget([n for n in self.snapshots if n > length])
        self.boundaries = {n: pinned for n, pinned in self.boundaries.items() if n <= length}
        if self.lookup is not None:
            self.lookup.truncate(length)

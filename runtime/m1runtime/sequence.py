"""What the runtime remembers of one sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from m1runtime.prefix import Node
from m1runtime.ring import START, Anchor

if TYPE_CHECKING:
    from m1runtime.grammar.drafts import Lookup


@dataclass(frozen=True, slots=True)
class Draft:
    """Tokens that are likely to follow; `choices`: how many of them stand before each place where one is chosen.

    The first of `choices` is 0 and the last is the number of tokens.
    """

    tokens: tuple[int, ...]
    choices: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Trial:
    """A draft that went through the model after the sequence's first `start` tokens.

    `logits` [choices, V]: those of each of its choices. The sequence's ring takes back what does not come true.
    """

    draft: Draft
    start: int
    logits: Tensor

    def agreed(self, tokens: Sequence[int]) -> int:
        """How many of the drafted tokens the sequence has taken since."""
        taken = tokens[self.start : self.start + len(self.draft.tokens)]
        pairs = enumerate(zip(taken, self.draft.tokens, strict=False))
        return next((n for n, (token, drafted) in pairs if token != drafted), len(taken))

    def logits_after(self, agreed: int) -> Tensor | None:
        """The logits after so many of the drafted tokens, where one was chosen there."""
        choices = self.draft.choices
        return self.logits[choices.index(agreed)] if agreed in choices else None


@dataclass(slots=True, eq=False)
class SequenceState:
    """Tokens, and the caches of the first `computed` of them; the rest wait for the next forward pass.

    slot: -1 while it has no caches at all: not begun, or preempted. `boundaries` are lengths to be kept in the prefix
    tree once they are computed (→ pinned), `held` those kept there that it may come back to. `known` is the longest
    prefix computed before, and `cause` why it has to be computed again, so that such tokens are counted.
    `trial`: a draft whose caches are there already, until the executor settles it.
    """

    keep: int  # unpinned boundaries held
    slot: int = -1
    tokens: list[int] = field(default_factory=list[int])
    computed: int = 0
    table: list[int] = field(default_factory=list[int])
    logits: Tensor | None = None
    held: dict[int, Node] = field(default_factory=dict[int, Node])
    pinned: set[int] = field(default_factory=set[int])
    boundaries: dict[int, bool] = field(default_factory=dict[int, bool])
    known: int = 0
    cause: str = ""
    fresh: int = 0  # tokens computed since the last generation ended
    skipped: int = 0  # tokens that were found in the prefix tree
    busy: bool = False  # a reply is under way, whose logits are needed between passes
    used: int = 0  # the forward pass that computed something of it last
    table_tensor: Tensor | None = None  # `table` on the device; None when it changed
    trial: Trial | None = None
    anchor: Anchor = START
    low: int = 0  # the ring has every token from this one on
    lookup: Lookup | None = None  # where the tokens occurred before; None until a reply is drafted

    @property
    def pending(self) -> int:
        """Tokens not yet computed."""
        return len(self.tokens) - self.computed

    @property
    def unread(self) -> int:
        """Tokens that no forward pass has seen yet."""
        return len(self.tokens) - max(self.computed, self.known)

    @property
    def node(self) -> Node | None:
        """The deepest boundary it holds."""
        return self.held[max(self.held)] if self.held else None

    def page_table(self, device: torch.device) -> Tensor:
        """The page table as an int64 tensor, kept until it changes."""
        if self.table_tensor is None:
            self.table_tensor = torch.tensor(self.table, dtype=torch.int64, device=device)
        return self.table_tensor

    def declare(self, length: int, *, pinned: bool) -> None:
        """Wants a boundary at a length not computed yet."""
        self.boundaries[length] = pinned or self.boundaries.get(length, False)

    def again(self, known: int, cause: str) -> None:
        """The first `known` tokens had been computed before; those that are missing of them are computed again."""
        if known > self.computed and known >= self.known:
            self.known, self.cause = known, cause

    def spare(self) -> list[int]:
        """Boundaries that it need not hold any longer: unpinned ones beyond the latest `keep`, always but the last."""
        loose = sorted(n for n in self.held if n not in self.pinned)
        return loose[: max(0, len(loose) - max(1, self.keep))]

    def truncate(self, length: int) -> list[Node]:
        """Drops tokens and boundaries beyond a length, and returns the nodes let go; caches are the store's."""
        del self.tokens[length:]
        self.known = min(self.known, length)
        self.boundaries = {n: pinned for n, pinned in self.boundaries.items() if n <= length}
        self.pinned = {n for n in self.pinned if n <= length}
        if self.lookup is not None:
            self.lookup.truncate(length)
        return [self.held.pop(n) for n in list(self.held) if n > length]

"""The last tokens of every sequence, so that it can be taken back to any of them without running the model.

A lightning state forgets by decaying. That cannot be undone: dividing by a fast head's decay multiplies rounding. So
each slot keeps an older set of states, its anchor, and what the tokens since then added: their projections of keys and
values before the activation, in the model's own dtype, and the hidden rows that their logits come of. The anchor
follows in strides, which makes a decode step write one row a layer and nothing more. A state at a length is the anchor
with the tokens up to there played over it: the sum that the forward pass makes, in blocks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from m1kernels.lightning import lightning_replay
from m1runtime.config import ModelConfig

WINDOW = 64
"""Tokens that can always be taken back."""
STRIDE = 32
"""Tokens the anchor moves by while single tokens come."""
ROWS = WINDOW + STRIDE


@dataclass(frozen=True, slots=True)
class Anchor:
    """Where a ring starts: states [layers, A, D, D] after `length` tokens, None for zero.

    `logits` [V] that follow; None where the ring's hidden row has them.
    """

    length: int
    state: Tensor | None
    logits: Tensor | None = None


START = Anchor(0, None)


class Ring:
    """kv: [layers, slots, ROWS, A, 2, D] in the model's dtype; hidden: [slots, ROWS, H]. Token i is in row i % ROWS."""

    def __init__(self, config: ModelConfig, *, device: torch.device, dtype: torch.dtype, slots: int) -> None:
        heads, dim = config.num_attention_heads, config.head_dim
        shape = (len(config.lightning_layers), slots, ROWS, heads, 2, dim)
        self.kv = torch.zeros(shape, device=device, dtype=dtype)
        self.hidden = torch.zeros(slots, ROWS, config.hidden_size, device=device, dtype=dtype)

    @property
    def bytes_per_slot(self) -> int:
        """Bytes of one sequence's ring."""
        return bytes_without(self.kv, 1) + bytes_without(self.hidden, 0)

    def state(self, slot: int, anchor: Anchor, length: int, slopes: Tensor) -> Tensor:
        """The states [layers, A, D, D] after `length` tokens; slopes: [layers, A]."""
        state = anchor.state if anchor.state is not None else self._zero()
        if anchor.length == length:
            return state
        rows = [i % ROWS for i in range(anchor.length, length)]
        k, v = F.silu(self.kv[:, slot, rows].float()).unbind(-2)
        return lightning_replay(k, v, slopes, state)

    def row(self, slot: int, length: int) -> Tensor:
        """The hidden row [H] that the logits after `length` tokens come of."""
        return self.hidden[slot, (length - 1) % ROWS]

    def copy(self, source: int, target: int) -> None:
        """One slot's ring onto another's."""
        self.kv[:, target] = self.kv[:, source]
        self.hidden[target] = self.hidden[source]

    def grow(self, slots: int) -> None:
        """Adds slots."""
        self.kv = torch.cat((self.kv, self.kv.new_zeros(len(self.kv), slots, *self.kv.shape[2:])), dim=1)
        self.hidden = torch.cat((self.hidden, self.hidden.new_zeros(slots, *self.hidden.shape[1:])))

    def shrink(self, slots: int) -> None:
        """Keeps the first slots."""
        self.kv, self.hidden = self.kv[:, :slots].clone(), self.hidden[:slots].clone()

    def _zero(self) -> Tensor:
        layers, _, _, heads, _, dim = self.kv.shape
        return torch.zeros(layers, heads, dim, dim, device=self.kv.device)


def bytes_without(pool: Tensor, dim: int) -> int:
    """Bytes of a pool's one place: of its shape without a dimension."""
    return math.prod(n for i, n in enumerate(pool.shape) if i != dim) * pool.element_size()

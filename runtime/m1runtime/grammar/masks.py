"""The masks of many generations at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from m1runtime.grammar.matcher import Constraint


def fill_masks(constraints: Sequence[Constraint | None], out: Tensor) -> None:
    """Writes the next mask of each generation into its row of `out`, int32 [B, words] on the CPU, LSB first.

    Without a constraint, and in free text, a row is all ones. Words beyond a mask, of tokens that the tokenizer does
    not know, are zero. Raises ValueError for an `out` of another type or place, or one that is too small.
    """
    if out.dtype != torch.int32 or out.device.type != "cpu" or out.dim() != 2 or len(out) != len(constraints):
        raise ValueError(
            f"out is {out.dtype} {list(out.shape)} on {out.device}; it must be torch.int32 [{len(constraints)}, words] "
            "on the CPU"
        )
    rows, words = out.numpy(), out.shape[1]
    for i, constraint in enumerate(constraints):
        mask = None if constraint is None else constraint.mask()
        if mask is None:
            rows[i] = -1
            continue
        size = len(mask)
        if size > words:
            raise ValueError(f"out has {words} words a row, the vocabulary of constraint {i} needs {size}")
        rows[i, :size] = mask.numpy()
        rows[i, size:] = 0

"""Choosing the next token: mask, repetition penalty, temperature, top-k, top-p, min-p."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_NUCLEUS = 1024
"""Candidates sorted first for top-p; the whole vocabulary only when they hold too little probability."""


def sample(
    logits: Tensor,
    *,
    temperature: float,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    mask: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draws one token id a row, [N] int64; a token of probability zero is never drawn.

    logits: [N, V]. mask: see `apply_mask`. temperature 0 is argmax, the lowest id among equals.
    The filters apply in the order mask, temperature, top_k (0: off), top_p over what top_k left, min_p relative to the
    likeliest token. generator: on the device of logits.
    Raises ValueError for a parameter out of range, a row with no allowed token, or logits holding NaN or +inf.
    """
    if not (temperature >= 0 and top_k >= 0 and 0 < top_p <= 1 and 0 <= min_p <= 1):
        raise ValueError(
            "sample needs temperature >= 0, top_k >= 0, 0 < top_p <= 1 and 0 <= min_p <= 1, "
            f"got {temperature}, {top_k}, {top_p}, {min_p}"
        )
    logits = logits.float() if mask is None else apply_mask(logits.float(), mask)
    best, greedy = logits.max(-1, keepdim=True)
    _check_rows(best)
    if temperature == 0:
        return greedy.squeeze(-1)
    probs = ((logits - best) / temperature).softmax(-1)
    if top_k == 0 and top_p == 1:
        return _draw(probs * (probs >= min_p * probs.amax(-1, keepdim=True)), generator)
    probs, ids = _candidates(probs, top_k, top_p)
    # Without top_k the candidates are only the likeliest part of a whole that sums to 1.
    whole = probs.sum(-1, keepdim=True) if top_k else 1.0
    keep = (probs.cumsum(-1) - probs < top_p * whole) if top_p < 1 else True
    probs = probs * ((probs >= min_p * probs[:, :1]) & keep)
    return ids.gather(-1, _draw(probs, generator)[:, None]).squeeze(-1)


def apply_mask(logits: Tensor, mask: Tensor) -> Tensor:
    """logits with -inf where the mask has a 0 bit; a new tensor.

    logits: [N, V]; mask: [N, ceil(V/32)] int32, bit i % 32 (least significant first) of word i // 32 allows token i,
    as llguidance and xgrammar lay it out. Raises ValueError for another shape or dtype.
    """
    rows, vocab = logits.shape
    if mask.dtype != torch.int32 or mask.shape != (rows, -(-vocab // 32)):
        raise ValueError(f"mask must be int32 {(rows, -(-vocab // 32))}, got {mask.dtype} {tuple(mask.shape)}")
    words = mask.to(logits.device)[:, :, None]
    bits = torch.arange(32, dtype=torch.int32, device=logits.device)
    allowed = (words >> bits & 1).bool().flatten(1)[:, :vocab]
    return logits.masked_fill(~allowed, float("-inf"))


def apply_repetition_penalty(
    logits: Tensor, seen_ids: Tensor | Sequence[int] | Sequence[Sequence[int]], penalty: float
) -> Tensor:
    """Makes seen tokens less likely (CTRL, arXiv 1909.05858): positive logits / penalty, negative ones * penalty.

    logits: [N, V]; seen_ids: [M] for every row or [N, M], duplicates allowed; returns a new tensor.
    Raises ValueError when penalty is not positive.
    """
    if penalty <= 0:
        raise ValueError(f"penalty must be positive, got {penalty}")
    seen = torch.as_tensor(seen_ids, dtype=torch.int64, device=logits.device)
    seen = seen.expand(len(logits), -1)
    before = logits.gather(-1, seen)
    return logits.scatter(-1, seen, torch.where(before > 0, before / penalty, before * penalty))


def _check_rows(best: Tensor) -> None:
    found: list[float] = best.flatten().tolist()  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    if all(map(math.isfinite, found)):
        return
    row = int((~best.isfinite()).squeeze(-1).nonzero()[0])
    if float(best[row]) == float("-inf"):
        raise ValueError(f"row {row} allows no token: its mask is empty or all its logits are -inf")
    raise ValueError(f"row {row} has NaN or infinite logits")


def _candidates(probs: Tensor, top_k: int, top_p: float) -> tuple[Tensor, Tensor]:
    """The tokens that top_k and top_p can keep, likeliest first: probabilities and ids, [N, width]."""
    vocab = probs.shape[-1]
    width = min(top_k or _NUCLEUS, vocab)
    values, ids = probs.topk(width, -1)
    if top_k == 0 and width < vocab and bool((values.sum(-1) < top_p).any()):
        values, ids = probs.sort(-1, descending=True)
    return values, ids


def _draw(probs: Tensor, generator: torch.Generator | None) -> Tensor:
    """One index a row with chance proportional to probs: the exponential race, won by the largest p / noise."""
    noise = torch.empty_like(probs).exponential_(generator=generator)
    return (probs / noise.clamp_(min=torch.finfo(probs.dtype).tiny)).argmax(-1)

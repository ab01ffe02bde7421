"""Mixture of experts: routing, and the experts as grouped matrix products."""

from __future__ import annotations

from itertools import accumulate, pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from m1kernels.quant import Int8Weight, Rounded, Weight, plain_linear


def route(x: Tensor, gate_weight: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """The top_k experts of each token and their weights, fp32 end to end.

    x: [T, H]; gate_weight: [E, H]; returns weights [T, top_k] fp32, which sum to 1, and ids [T, top_k] int64.
    A softmax over all experts renormalised over the chosen ones equals the softmax over the chosen logits.
    """
    logits = F.linear(x.float(), gate_weight.float())
    chosen, ids = logits.topk(top_k, dim=-1)
    return chosen.softmax(-1), ids


def grouped_experts(x: Tensor, w13: Weight, w2: Weight, weights: Tensor, ids: Tensor) -> Tensor:
    """sum_j weights_j * w2(silu(w1 x) * (w3 x)) over each token's experts, none dropped.

    x: [T, H]; w13: [E, 2F, H], rows 0..F-1 the SiLU branch w1, F..2F-1 the linear branch w3; w2: [E, H, F];
    both plain or quantised. weights, ids: [T, k] as `route` returns them. Products are in the weights' dtype, the
    weighted sum in fp32.
    Returns [T, H] in x's dtype. On CUDA runs on `torch.nn.functional.grouped_mm` where its layout rules hold
    (`_can_group`), else expert by expert. Raises ValueError for shapes that don't fit.
    """
    tokens, hidden = x.shape
    experts, inner2, _ = w13.shape
    if w13.shape != (experts, inner2, hidden) or w2.shape != (experts, hidden, inner2 // 2) or inner2 % 2:
        raise ValueError(f"x {tuple(x.shape)}, w13 {tuple(w13.shape)} and w2 {tuple(w2.shape)} don't fit together")
    if weights.shape != ids.shape or ids.dim() != 2 or ids.shape[0] != tokens:
        raise ValueError(f"weights {tuple(weights.shape)} and ids {tuple(ids.shape)} must both be [{tokens}, k]")
    if tokens == 0:
        return x.clone()
    if x.is_cpu:
        return _on_cpu(x, w13, w2, weights, ids).to(x.dtype)
    top_k = ids.shape[1]
    flat = ids.reshape(-1)
    order = flat.argsort(stable=True)
    rows = (x.to(w13.dtype) if isinstance(w13, Tensor) else x)[order // top_k]
    counts = torch.bincount(flat, minlength=experts)
    if tokens > 1 and isinstance(w13, Tensor) and isinstance(w2, Tensor) and _can_group(rows, w13, w2):
        ends = counts.cumsum(0).to(torch.int32)
        y = F.grouped_mm(_swiglu(F.grouped_mm(rows, w13.transpose(1, 2), offs=ends)), w2.transpose(1, 2), offs=ends)
    else:
        groups = _groups(counts)
        y = _products(_swiglu(_products(rows, w13, groups)), w2, groups)
    unsorted = torch.empty(y.shape, dtype=torch.float32, device=y.device).index_copy_(0, order, y.float())
    return (unsorted.view(tokens, top_k, hidden) * weights.float()[..., None]).sum(1).to(x.dtype)


def _on_cpu(x: Tensor, w13: Weight, w2: Weight, weights: Tensor, ids: Tensor) -> Tensor:
    """The same with few operations: for the single tokens of decoding, what they cost is the time."""
    tokens, top_k = ids.shape
    if tokens == 1:  # its experts in the order of their weights: nothing to sort
        groups = [(expert, i, i + 1) for i, expert in enumerate(_integers(ids[0]))]
        return weights @ _products(_swiglu(_products(x.expand(top_k, -1), w13, groups)), w2, groups).float()
    flat = ids.reshape(-1)
    order = flat.argsort(stable=True)
    groups = _groups(torch.bincount(flat))
    y = _products(_swiglu(_products(x[order // top_k], w13, groups)), w2, groups)
    unsorted = torch.empty_like(y).index_copy_(0, order, y).view(tokens, top_k, -1)
    return torch.bmm(weights[:, None], unsorted.float()).squeeze(1)


def _groups(counts: Tensor) -> list[tuple[int, int, int]]:
    """(expert, first row, end) of every expert that has rows."""
    ends = [0, *accumulate(_integers(counts))]
    return [(expert, a, b) for expert, (a, b) in enumerate(pairwise(ends)) if a < b]


def _integers(x: Tensor) -> list[int]:
    return x.tolist()  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


def _products(rows: Tensor, weight: Weight, groups: list[tuple[int, int, int]]) -> Tensor:
    """rows [n, C], sorted by expert, each through its own expert's map; [n, R]."""
    if isinstance(weight, Int8Weight) and rows.is_cpu:
        rounded = Rounded.of(rows)
        sums = [rounded.sums(weight.values[expert], a, b) for expert, a, b in groups]
        scales = [weight.scales[expert].expand(b - a, -1) for expert, a, b in groups]
        return (torch.cat(sums) * rounded.scales).mul_(torch.cat(scales)).to(rows.dtype)
    parts = [plain_linear(rows[a:b], weight[expert]) for expert, a, b in groups]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _swiglu(h: Tensor) -> Tensor:
    gate, up = h.chunk(2, -1)
    return F.silu(gate) * up


def _can_group(rows: Tensor, w13: Tensor, w2: Tensor) -> bool:
    """grouped_mm wants rows of a multiple of 16 bytes at 16-byte addresses, and bf16."""
    aligned = all(
        min(t.stride()[-2:]) == 1 and max(t.stride()[-2:]) * t.element_size() % 16 == 0 and t.data_ptr() % 16 == 0
        for t in (rows, w13, w2)
    )
    return w13.dtype == w2.dtype == torch.bfloat16 and aligned

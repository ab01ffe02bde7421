"""Mixture of experts: routing, and the experts as grouped matrix products."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from m1kernels.quant import Weight, linear


def route(x: Tensor, gate_weight: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """The top_k experts of each token and their weights, fp32 end to end.

    x: [T, H]; gate_weight: [E, H]; returns weights [T, top_k] fp32, which sum to 1, and ids [T, top_k] int64.
    A softmax over all experts renormalised over the chosen ones equals the softmax over the chosen logits.
    """
    logits = x.float() @ gate_weight.float().T
    chosen, ids = logits.topk(top_k, dim=-1)
    return chosen.softmax(-1), ids


def grouped_experts(x: Tensor, w13: Weight, w2: Weight, weights: Tensor, ids: Tensor) -> Tensor:
    """sum_j weights_j * w2(silu(w1 x) * (w3 x)) over each token's experts, none dropped.

    x: [T, H]; w13: [E, 2F, H], rows 0..F-1 the SiLU branch w1, F..2F-1 the linear branch w3; w2: [E, H, F];
    both plain or quantised. weights, ids: [T, k] as `route` returns them. Products are in the weights' dtype, the
    weighted sum in fp32.
    Returns [T, H] in x's dtype. Runs on `torch.nn.functional.grouped_mm` where its layout rules hold (`_can_group`),
    expert by expert where not. Raises ValueError for shapes that don't fit.
    """
    tokens, hidden = x.shape
    experts, inner2, _ = w13.shape
    if w13.shape != (experts, inner2, hidden) or w2.shape != (experts, hidden, inner2 // 2) or inner2 % 2:
        raise ValueError(f"x {tuple(x.shape)}, w13 {tuple(w13.shape)} and w2 {tuple(w2.shape)} don't fit together")
    if weights.shape != ids.shape or ids.dim() != 2 or ids.shape[0] != tokens:
        raise ValueError(f"weights {tuple(weights.shape)} and ids {tuple(ids.shape)} must both be [{tokens}, k]")
    if tokens == 0:
        return x.clone()
    top_k = ids.shape[1]
    flat = ids.reshape(-1)
    order = flat.argsort(stable=True)
    rows = (x.to(w13.dtype) if isinstance(w13, Tensor) else x)[order // top_k]
    counts = torch.bincount(flat, minlength=experts)
    if tokens > 1 and isinstance(w13, Tensor) and isinstance(w2, Tensor) and _can_group(rows, w13, w2):
        ends = counts.cumsum(0).to(torch.int32)
        y = F.grouped_mm(_swiglu(F.grouped_mm(rows, w13.transpose(1, 2), offs=ends)), w2.transpose(1, 2), offs=ends)
    else:
        y = _expert_by_expert(rows, w13, w2, counts)
    unsorted = torch.empty(y.shape, dtype=torch.float32, device=y.device).index_copy_(0, order, y.float())
    return (unsorted.view(tokens, top_k, hidden) * weights.float()[..., None]).sum(1).to(x.dtype)


def _swiglu(h: Tensor) -> Tensor:
    gate, up = h.chunk(2, -1)
    return F.silu(gate) * up


def _can_group(rows: Tensor, w13: Tensor, w2: Tensor) -> bool:
    """grouped_mm wants rows of a multiple of 16 bytes at 16-byte addresses; 16- or 32-bit floats, on CUDA bf16."""
    dtypes = (torch.bfloat16,) if w13.is_cuda else (torch.float32, torch.bfloat16, torch.float16)
    aligned = all(
        min(t.stride()[-2:]) == 1 and max(t.stride()[-2:]) * t.element_size() % 16 == 0 and t.data_ptr() % 16 == 0
        for t in (rows, w13, w2)
    )
    return w13.dtype in dtypes and w2.dtype == w13.dtype and aligned


def _expert_by_expert(rows: Tensor, w13: Weight, w2: Weight, counts: Tensor) -> Tensor:
    parts: list[Tensor] = []
    ends = counts.cumsum(0).cpu()
    for expert in counts.nonzero().flatten().cpu():
        group = rows[int(ends[expert - 1]) if expert else 0 : int(ends[expert])]
        parts.append(linear(_swiglu(linear(group, w13[expert])), w2[expert]))
    return torch.cat(parts)

"""Causal softmax attention over a paged KV cache."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

_MASK_ELEMENTS = 1 << 21
"""Largest mask built at once; longer prefills go through in chunks of queries."""


def paged_attention(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    page_tables: Sequence[Tensor],
    cu_seqlens: Tensor | Sequence[int],
    lengths: Sequence[int],
) -> Tensor:
    """Attention of packed new tokens over their sequences' pages; scale 1/sqrt(D), fp32 softmax.

    q: [T, A, D] packed; sequence i is tokens cu_seqlens[i]:cu_seqlens[i+1] (n_i of them, possibly 0).
    k_pages, v_pages: [num_pages, page_size, K, D], the new tokens already written; K divides A and KV head g serves
    query heads g*A/K .. (g+1)*A/K - 1.
    page_tables: one int tensor a sequence, its pages in order, at least ceil(lengths[i] / page_size) of them.
    lengths: cached tokens of each sequence including its new ones, which are its last n_i positions.
    Returns [T, A, D] in q's dtype. Raises ValueError when the shapes or lengths don't fit.
    """
    bounds = [int(b) for b in (cu_seqlens.cpu() if isinstance(cu_seqlens, Tensor) else cu_seqlens)]
    _check(q, k_pages, v_pages, page_tables, bounds, lengths)
    out = torch.empty_like(q)
    for i, length in enumerate(lengths):
        a, b = bounds[i], bounds[i + 1]
        if a < b:
            keys = _gather(k_pages, page_tables[i], length)
            values = _gather(v_pages, page_tables[i], length)
            _sequence_attention(q[a:b], keys, values, out[a:b])
    return out


def _check(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    page_tables: Sequence[Tensor],
    bounds: list[int],
    lengths: Sequence[int],
) -> None:
    tokens, heads, dim = q.shape
    _, page_size, kv_heads, kv_dim = k_pages.shape
    if k_pages.shape != v_pages.shape or kv_dim != dim or heads % kv_heads:
        raise ValueError(f"q {tuple(q.shape)} doesn't fit pages {tuple(k_pages.shape)} and {tuple(v_pages.shape)}")
    if len(bounds) != len(lengths) + 1 or len(page_tables) != len(lengths) or bounds[0] != 0 or bounds[-1] != tokens:
        raise ValueError(f"cu_seqlens {bounds} doesn't split {tokens} tokens into {len(lengths)} sequences")
    for i, length in enumerate(lengths):
        new = bounds[i + 1] - bounds[i]
        if not 0 <= new <= length or length > len(page_tables[i]) * page_size:
            raise ValueError(
                f"sequence {i}: {new} new tokens in length {length} on {len(page_tables[i])} pages of {page_size}"
            )


def _gather(pages: Tensor, table: Tensor, length: int) -> Tensor:
    """The first `length` cached rows of a sequence, [K, length, D]."""
    table = table[: -(-length // pages.shape[1])]
    first = int(table[0]) if table.is_cpu else -1
    if table.is_cpu and torch.equal(table, torch.arange(first, first + len(table), dtype=table.dtype)):
        rows = pages[first : first + len(table)]  # pages in a row need no copy
    else:
        rows = pages[table.to(pages.device)]
    return rows.flatten(0, 1)[:length].transpose(0, 1)


def _sequence_attention(q: Tensor, keys: Tensor, values: Tensor, out: Tensor) -> None:
    new, length = q.shape[0], keys.shape[1]
    groups = q.shape[1] // keys.shape[0]
    # CUDA's fused kernels keep 16-bit inputs and do the softmax in fp32; the CPU's would round the scores.
    dtype = q.dtype if q.is_cuda else torch.float32
    q, keys, values = q.to(dtype), keys.to(dtype), values.to(dtype)
    chunk = max(1, _MASK_ELEMENTS // (length * groups))
    for a in range(0, new, chunk):
        b = min(new, a + chunk)
        seen = length - new + b
        out[a:b] = _chunk_attention(q[a:b], keys[:, :seen], values[:, :seen])


def _chunk_attention(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """q [n, A, D] are the last n positions of keys, values [K, L, D]: the A/K query heads are rows of their KV head."""
    (new, heads, dim), (kv_heads, length, _) = q.shape, keys.shape
    groups = heads // kv_heads
    rows = q.view(new, kv_heads, groups, dim).transpose(0, 1).reshape(kv_heads, new * groups, dim)
    mask = None
    if new > 1:
        last = torch.arange(length - new, length, device=q.device).repeat_interleave(groups)
        mask = torch.arange(length, device=q.device) <= last[:, None]
    o = F.scaled_dot_product_attention(rows[:, None], keys[:, None], values[:, None], attn_mask=mask)
    return o.view(kv_heads, new, groups, dim).transpose(0, 1).reshape(new, heads, dim)

"""Causal softmax attention over a paged KV cache."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

_MASK_ELEMENTS = 1 << 21
"""Largest mask built at once on CUDA; longer prefills go through in chunks of queries."""

_FEW, _SHORT = 32, 2048
"""New tokens and cached ones up to which a CPU has the scores in one piece: fewer operations, and 256 KiB at most for
each head."""

_BLOCK = 1 << 14
"""Cached positions read at once on a CPU where they must be copied first, so that scratch does not grow with length."""


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
            few = b - a <= _FEW and length <= _SHORT
            attend = _chunked if q.device.type != "cpu" else _at_once if few else _blockwise
            attend(q[a:b], k_pages, v_pages, page_tables[i], length, out[a:b])
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


def _at_once(q: Tensor, k_pages: Tensor, v_pages: Tensor, table: Tensor, length: int, out: Tensor) -> None:
    """CPU: a few new tokens, in fp32 whatever the cache's dtype; a KV head's query heads are rows beside each other."""
    new, heads, dim = q.shape
    kv_heads, size = k_pages.shape[2], k_pages.shape[1]
    shape = (kv_heads, heads // kv_heads, new)
    first = _first_of_run(table[: -(-length // size)])
    keys, values = (_gather(pages, table, 0, length, first).float() for pages in (k_pages, v_pages))
    rows = q.float().view(new, *shape[:2], dim).permute(1, 2, 0, 3).reshape(kv_heads, -1, dim)
    scores = torch.bmm(rows * dim**-0.5, keys.transpose(1, 2))
    if new > 1:
        scores.view(*shape, length)[..., length - new :].add_(_later(new))
    o = torch.bmm(scores.softmax(-1), values)
    out.view(new, *shape[:2], dim).copy_(o.view(*shape, dim).permute(2, 0, 1, 3))


@cache
def _later(new: int) -> Tensor:
    """What hides from each new token those after it, [new, new]."""
    with torch.inference_mode(False):
        return torch.full((new, new), float("-inf")).triu(1)


def _blockwise(q: Tensor, k_pages: Tensor, v_pages: Tensor, table: Tensor, length: int, out: Tensor) -> None:
    """CPU: the positions before the new ones without a mask, the new ones causally, weighed by their sums of scores.

    fp32 whatever the cache's dtype: the CPU's own 16-bit kernel would round the scores.
    """
    new, heads, dim = q.shape
    kv_heads, size = k_pages.shape[2], k_pages.shape[1]
    groups = heads // kv_heads
    q = q.float().view(new, kv_heads, groups, dim)
    total: Tensor | None = None
    o = q
    before = length if new == 1 else length - new
    first = _first_of_run(table[: -(-length // size)])
    block = before if first is not None and k_pages.dtype == torch.float32 else -(-_BLOCK // size) * size
    for start in range(0, before, block or 1):
        stop = min(before, start + block)
        keys, values = (_gather(pages, table, start, stop, first).float() for pages in (k_pages, v_pages))
        # The query heads of a KV head are rows beside each other.
        rows = q.transpose(0, 1).reshape(1, kv_heads, new * groups, dim)
        part, scores = _flash(rows, keys[None], values[None])
        part = part.view(kv_heads, new, groups, dim).transpose(0, 1)
        o, total = _merge(o, total, part, scores.view(kv_heads, new, groups).transpose(0, 1))
    if new > 1:
        keys, values = (_gather(pages, table, before, length, first).float()[:, None] for pages in (k_pages, v_pages))
        shape = (kv_heads, groups, new, dim)
        part, scores = _flash(q.permute(1, 2, 0, 3), keys.expand(shape), values.expand(shape), causal=True)
        o, total = _merge(o, total, part.permute(2, 0, 1, 3), scores.permute(2, 0, 1))
    out.copy_(o.reshape(new, heads, dim))


def _flash(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> tuple[Tensor, Tensor]:
    """Attention over [B, h, T, D] and the logarithm of each row's sum of exponentials, [B, h, T]."""
    op: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return op(q, k, v, 0.0, causal)


def _merge(o: Tensor, total: Tensor | None, part: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    if total is None:
        return part, scores
    whole = torch.logaddexp(total, scores)
    return o * (total - whole).exp()[..., None] + part * (scores - whole).exp()[..., None], whole


def _gather(pages: Tensor, table: Tensor, start: int, stop: int, first: int | None) -> Tensor:
    """Cached rows start..stop-1 of a sequence, [K, stop - start, D]; pages in a row from `first` on need no copy."""
    a, b = start // pages.shape[1], -(-stop // pages.shape[1])
    rows = pages.index_select(0, table[a:b].to(pages.device)) if first is None else pages[first + a : first + b]
    return rows.flatten(0, 1)[start - a * pages.shape[1] : stop - a * pages.shape[1]].transpose(0, 1)


def _first_of_run(table: Tensor) -> int | None:
    """The first page when they ascend one by one, else None; None on CUDA, where looking would wait for the GPU."""
    if not table.is_cpu:
        return None
    pages: list[int] = table.tolist()  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    return pages[0] if pages == list(range(pages[0], pages[0] + len(pages))) else None


def _chunked(q: Tensor, k_pages: Tensor, v_pages: Tensor, table: Tensor, length: int, out: Tensor) -> None:
    """CUDA: torch's fused kernels keep 16-bit inputs and do the softmax in fp32."""
    keys, values = (_gather(pages, table, 0, length, None).to(q.dtype) for pages in (k_pages, v_pages))
    new = q.shape[0]
    groups = q.shape[1] // keys.shape[0]
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

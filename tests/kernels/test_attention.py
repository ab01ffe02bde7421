from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from m1kernels import attention, paged_attention


def naive(q, keys, values):
    """q [n, A, D] are the last n positions of keys, values [L, K, D]; whole matrix, float64."""
    (new, heads, dim), length = q.shape, len(keys)
    keys, values = (x.double().repeat_interleave(heads // x.shape[1], 1) for x in (keys, values))
    scores = torch.einsum("ihd,jhd->hij", q.double(), keys) / dim**0.5
    future = torch.arange(length)[None, :] > torch.arange(length - new, length)[:, None]
    return torch.einsum("hij,jhd->ihd", scores.masked_fill(future, float("-inf")).softmax(-1), values)


class Cache:
    """Sequences of random keys and values spread over shuffled pages of a pool full of NaN."""

    def __init__(self, lengths, page_size, kv_heads, dim, dtype=torch.float32, in_a_row=False):
        generator = torch.Generator().manual_seed(sum(lengths))
        counts = [-(-length // page_size) for length in lengths]
        total = sum(counts) + 2
        order = torch.arange(total) if in_a_row else torch.randperm(total, generator=generator)
        self.tables = list(order[: sum(counts)].split(counts))
        self.k, self.v = (torch.full((total, page_size, kv_heads, dim), float("nan"), dtype=dtype) for _ in range(2))
        self.sequences = []
        for table, length in zip(self.tables, lengths, strict=True):
            pair = []
            for pages in (self.k, self.v):
                rows = torch.randn(length, kv_heads, dim, generator=generator).to(dtype)
                for i in range(length):
                    pages[table[i // page_size], i % page_size] = rows[i]
                pair.append(rows)
            self.sequences.append(tuple(pair))


def check(new, lengths, page_size=4, heads=4, kv_heads=2, dim=8, dtype=torch.float32, in_a_row=False):
    cache = Cache(lengths, page_size, kv_heads, dim, dtype, in_a_row)
    cu = [0]
    for n in new:
        cu.append(cu[-1] + n)
    q = torch.randn(cu[-1], heads, dim, generator=torch.Generator().manual_seed(1)).to(dtype)
    out = paged_attention(q, cache.k, cache.v, cache.tables, cu, lengths)
    assert out.dtype == q.dtype and out.shape == q.shape
    expected = [naive(q[cu[i] : cu[i + 1]], *pair) for i, pair in enumerate(cache.sequences)]
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(out.double(), torch.cat(expected), atol=tolerance, rtol=tolerance)


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 20)), min_size=1, max_size=4),
    page_size=st.sampled_from([1, 4, 16]),
    heads=st.sampled_from([(4, 4), (4, 2), (6, 1)]),
    in_a_row=st.booleans(),
)
def test_is_the_whole_matrix(sizes, page_size, heads, in_a_row):
    new = [n for n, _ in sizes]
    check(new, [n + past for n, past in sizes], page_size, *heads, in_a_row=in_a_row)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_decode_of_long_contexts(dtype):
    check([1, 1], [300, 77], page_size=64, dtype=dtype)


def test_chunks_of_a_long_prefill_join_exactly(monkeypatch):
    """As on CUDA, whose path runs anywhere."""
    monkeypatch.setattr(attention, "_MASK_ELEMENTS", 512)
    monkeypatch.setattr(attention, "_blockwise", attention._chunked)
    check([100, 3], [150, 203])


def test_a_long_prefill_never_holds_a_whole_mask():
    tokens = 16_384
    q = torch.randn(tokens, 2, 4)
    pages = torch.randn(tokens // 64, 64, 1, 4)
    table = torch.arange(len(pages))
    with torch.profiler.profile(profile_memory=True) as profile:
        out = paged_attention(q, pages, pages, [table], [0, tokens], [tokens])
    largest = max(event.self_cpu_memory_usage for event in profile.events())
    assert 0 < largest < tokens * tokens / 8
    expected = naive(q[-2:], pages.flatten(0, 1), pages.flatten(0, 1))
    torch.testing.assert_close(out[-2:].double(), expected, atol=1e-5, rtol=1e-5)


def test_refuses_what_does_not_fit():
    q, pages, tables = torch.zeros(2, 4, 8), torch.zeros(3, 4, 2, 8), [torch.tensor([0, 1])]
    with pytest.raises(ValueError, match="2 new tokens in length 1"):
        paged_attention(q, pages, pages, tables, [0, 2], [1])
    with pytest.raises(ValueError, match="on 2 pages of 4"):
        paged_attention(q, pages, pages, tables, [0, 2], [9])
    with pytest.raises(ValueError, match="cu_seqlens"):
        paged_attention(q, pages, pages, tables, [0, 1], [3])
    with pytest.raises(ValueError, match="doesn't fit"):
        paged_attention(q[..., :4], pages, pages, tables, [0, 2], [3])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("in_a_row", [True, False])
def test_long_sequences_are_read_in_blocks(dtype, in_a_row, monkeypatch):
    monkeypatch.setattr(attention, "_BLOCK", 16)
    check([1, 9, 70, 100], [90, 75, 70, 160], dtype=dtype, in_a_row=in_a_row)

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.testing import assert_close

from m1kernels import grouped_experts, route


def layer(tokens, experts, hidden, inner, top_k=2, dtype=torch.float32):
    generator = torch.Generator().manual_seed(tokens + 7 * experts)
    x = torch.randn(tokens, hidden, generator=generator).to(dtype)
    w13 = (torch.randn(experts, 2 * inner, hidden, generator=generator) / hidden**0.5).to(dtype)
    w2 = (torch.randn(experts, hidden, inner, generator=generator) / inner**0.5).to(dtype)
    gate = torch.randn(experts, hidden, generator=generator)
    return x, w13, w2, *route(x, gate, top_k)


def dense(x, w13, w2, weights, ids):
    """Every token through each of its experts, one at a time, in float64."""
    x, w13, w2, weights = (t.double() for t in (x, w13, w2, weights))
    inner, out = w2.shape[2], torch.zeros_like(x)
    for t in range(len(x)):
        for weight, e in zip(weights[t], ids[t], strict=True):
            hidden = F.silu(w13[e, :inner] @ x[t]) * (w13[e, inner:] @ x[t])
            out[t] += weight * (w2[e] @ hidden)
    return out


def test_routing_is_a_softmax_over_the_top_logits():
    x, gate = torch.randn(50, 16), torch.randn(8, 16)
    weights, ids = route(x.bfloat16(), gate, 2)
    logits = x.bfloat16().double() @ gate.double().T
    top = logits.sort(-1, descending=True)
    assert torch.equal(ids, top.indices[:, :2])
    assert weights.dtype == torch.float32
    assert_close(weights.double(), top.values[:, :2].softmax(-1), atol=1e-5, rtol=1e-5)
    every = logits.softmax(-1).gather(1, ids)
    assert_close(weights.double(), every / every.sum(-1, keepdim=True), atol=1e-5, rtol=1e-5)
    assert_close(weights.sum(-1), torch.ones(50))


@settings(max_examples=40, deadline=None)
@given(
    tokens=st.sampled_from([0, 1, 2, 5, 33]),
    experts=st.sampled_from([2, 4, 9]),
    hidden=st.sampled_from([1, 6, 8, 12, 31]),
    inner=st.sampled_from([1, 3, 4, 8, 10]),
    top_k=st.integers(1, 2),
)
def test_experts_of_any_size_are_the_dense_loop(tokens, experts, hidden, inner, top_k):
    arguments = layer(tokens, experts, hidden, inner, top_k)
    assert_close(grouped_experts(*arguments).double(), dense(*arguments), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("sizes", [(16, 32), (12, 20)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_sixteen_bit_weights(sizes, dtype):
    arguments = layer(9, 4, *sizes, dtype=dtype)
    out = grouped_experts(*arguments)
    assert out.dtype == dtype
    assert_close(out.double(), dense(*arguments), atol=3e-2, rtol=3e-2)


@pytest.mark.parametrize("tokens", [1, 6])
def test_unused_experts_and_all_tokens_on_one(tokens):
    x, w13, w2, weights, ids = layer(tokens, 5, 8, 8)
    ids = torch.tensor([[3, 1]]).expand(tokens, 2)
    assert_close(grouped_experts(x, w13, w2, weights, ids).double(), dense(x, w13, w2, weights, ids))


def test_weights_at_an_odd_address():
    x, w13, w2, weights, ids = layer(6, 4, 8, 8)
    shifted = torch.empty(w13.numel() + 1)[1:].view(w13.shape).copy_(w13)  # as a slice of a mapped file may be
    assert_close(grouped_experts(x, shifted, w2, weights, ids).double(), dense(x, w13, w2, weights, ids))


def test_a_token_does_not_see_its_batch():
    x, w13, w2, weights, ids = layer(33, 4, 16, 16)
    together = grouped_experts(x, w13, w2, weights, ids)
    alone = [grouped_experts(x[t, None], w13, w2, weights[t, None], ids[t, None]) for t in range(33)]
    assert_close(together, torch.cat(alone), atol=1e-6, rtol=1e-5)


def test_refuses_what_does_not_fit():
    x, w13, w2, weights, ids = layer(3, 4, 8, 8)
    with pytest.raises(ValueError, match="don't fit"):
        grouped_experts(x, w13, w2[..., :4], weights, ids)
    with pytest.raises(ValueError, match="must both be"):
        grouped_experts(x, w13, w2, weights, ids[:2])

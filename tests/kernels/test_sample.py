from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from m1kernels import apply_mask, apply_repetition_penalty, sample


def bitmask(allowed, vocab):
    """int32 words, least significant bit first."""
    words = [0] * -(-vocab // 32)
    for token in allowed:
        words[token // 32] |= 1 << token % 32
    return torch.tensor([[word - (1 << 32) if word >> 31 else word for word in words]], dtype=torch.int32)


def draws(logits, count=20_000, **options):
    generator = torch.Generator().manual_seed(0)
    options = {"temperature": 1.0, "generator": generator} | options
    ids = sample(torch.as_tensor(logits).expand(count, -1), **options)
    return torch.bincount(ids, minlength=len(logits)) / count


@settings(max_examples=60, deadline=None)
@given(vocab=st.integers(1, 100), data=st.data())
def test_mask_keeps_exactly_the_allowed_bits(vocab, data):
    allowed = data.draw(st.sets(st.integers(0, vocab - 1), min_size=1))
    logits = torch.randn(1, vocab)
    masked = apply_mask(logits, bitmask(allowed, vocab))
    assert set(masked.isfinite().nonzero()[:, 1].tolist()) == allowed
    assert torch.equal(masked[0, sorted(allowed)], logits[0, sorted(allowed)])
    temperature = data.draw(st.sampled_from([0.0, 0.7, 5.0]))
    top_p = data.draw(st.sampled_from([0.3, 1.0]))
    assert int(sample(logits, temperature=temperature, top_p=top_p, mask=bitmask(allowed, vocab))) in allowed


def test_mask_is_llguidances_layout():
    torch_bits = pytest.importorskip("llguidance.torch", reason="llguidance is not installed")
    mask = torch_bits.allocate_token_bitmask(1, 70)
    mask.zero_()
    mask[0, 0], mask[0, 1], mask[0, 2] = -(2**31), 1, 1 << 3
    logits = torch.randn(1, 70)
    expected = logits.clone()
    torch_bits.apply_token_bitmask_inplace(expected, mask)
    assert torch.equal(apply_mask(logits, mask), expected)
    assert expected.isfinite().nonzero()[:, 1].tolist() == [31, 32, 67]


def test_temperature_zero_is_argmax():
    logits = torch.randn(9, 50)
    assert torch.equal(sample(logits, temperature=0), logits.argmax(-1))
    tiny = sample(logits, temperature=1e-30)
    assert torch.equal(tiny, logits.argmax(-1))


def test_frequencies_follow_the_softmax():
    logits = torch.tensor([1.0, 0.0, -1.0, 2.0, float("-inf")])
    assert_close(draws(logits), logits.softmax(-1), atol=0.012, rtol=0)
    assert_close(draws(logits, temperature=2.0), (logits / 2).softmax(-1), atol=0.012, rtol=0)


def kept(logits, **options):
    return set(draws(logits, **options).nonzero().flatten().tolist())


LADDER = torch.tensor([0.05, 0.4, 0.25, 0.2, 0.1]).log()


@pytest.mark.parametrize(
    ("options", "tokens"),
    [
        ({"top_k": 2}, {1, 2}),
        ({"top_k": 99}, {0, 1, 2, 3, 4}),
        ({"top_p": 0.6}, {1, 2}),
        ({"top_p": 0.7}, {1, 2, 3}),
        ({"top_p": 1e-9}, {1}),
        ({"min_p": 0.45}, {1, 2, 3}),
        ({"min_p": 1.0}, {1}),
        ({"top_k": 3, "top_p": 0.7}, {1, 2}),  # 0.65 of the 0.85 that top_k left
        ({"top_k": 4, "min_p": 0.45}, {1, 2, 3}),
        ({"top_k": 3, "mask": bitmask({0, 3, 4}, 5).expand(20_000, -1)}, {0, 3, 4}),
    ],
    ids=str,
)
def test_filters_keep(options, tokens):
    assert kept(LADDER, **options) == tokens


def test_filtered_frequencies_are_renormalised():
    assert_close(draws(LADDER, top_k=2), torch.tensor([0, 0.4, 0.25, 0, 0]) / 0.65, atol=0.012, rtol=0)


def test_equal_logits_leave_exactly_top_k():
    assert len(kept(torch.zeros(8), top_k=3)) == 3


def test_top_p_over_a_flat_vocabulary_keeps_its_share():
    ids = sample(torch.zeros(4000, 5000), temperature=1.0, top_p=0.5, generator=torch.Generator().manual_seed(0))
    assert 1300 < len(ids.unique()) <= 2501


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), top_p=st.floats(0.05, 1.0), min_p=st.floats(0.0, 0.5), top_k=st.integers(0, 40))
def test_never_draws_a_token_of_probability_zero(seed, top_p, min_p, top_k):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(64, 33, generator=generator) * 60
    logits[torch.rand(64, 33, generator=generator) < 0.8] = float("-inf")
    logits[:, 7] = 0.0
    ids = sample(logits, temperature=1.0, top_p=top_p, min_p=min_p, top_k=top_k, generator=generator)
    assert bool((logits.softmax(-1).gather(1, ids[:, None]) > 0).all())


def test_a_generator_repeats_itself():
    logits = torch.randn(5, 100)
    first, second = (sample(logits, temperature=1.0, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)


def test_rows_without_a_choice_are_refused():
    logits = torch.zeros(2, 40)
    mask = torch.cat([bitmask({1}, 40), bitmask((), 40)])
    for temperature in (0.0, 1.0):
        with pytest.raises(ValueError, match="row 1 allows no token"):
            sample(logits, temperature=temperature, mask=mask)
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="row 0 has NaN or infinite"):
            sample(torch.tensor([[0.0, bad]]), temperature=1.0)


@pytest.mark.parametrize(
    "options", [{"temperature": -1.0}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.1}, {"min_p": -0.1}], ids=str
)
def test_parameters_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match="sample needs"):
        sample(torch.zeros(1, 4), **{"temperature": 1.0} | options)


def test_masks_of_another_shape_or_dtype_are_refused():
    for mask in (torch.zeros(1, 1, dtype=torch.int32), torch.zeros(1, 2, dtype=torch.int64), torch.zeros(2).int()):
        with pytest.raises(ValueError, match="mask must be int32"):
            apply_mask(torch.zeros(1, 40), mask)


def test_repetition_penalty():
    logits = torch.tensor([[2.0, -2.0, 3.0, 0.0], [1.0, 1.0, 1.0, -1.0]])
    shared = apply_repetition_penalty(logits, [0, 1, 1], 2.0)
    assert_close(shared, torch.tensor([[1.0, -4.0, 3.0, 0.0], [0.5, 0.5, 1.0, -1.0]]))
    by_row = apply_repetition_penalty(logits, torch.tensor([[0, 0], [3, 2]]), 2.0)
    assert_close(by_row, torch.tensor([[1.0, -2.0, 3.0, 0.0], [1.0, 1.0, 0.5, -2.0]]))
    assert torch.equal(apply_repetition_penalty(logits, [], 2.0), logits)
    with pytest.raises(ValueError, match="penalty"):
        apply_repetition_penalty(logits, [0], 0.0)


def test_top_p_of_a_flat_row_counts_the_tokens_beyond_the_likeliest() -> None:
    weights = torch.cat([torch.full((1000,), 2.0), torch.full((9000,), 0.9)])  # the first thousand hold 0.198
    ids = sample(weights.log().expand(4000, -1), temperature=1, top_p=0.15, generator=torch.Generator().manual_seed(0))
    assert len(ids.unique()) > 740  # 0.15 takes 758 of them
    assert ids.max() < 1000

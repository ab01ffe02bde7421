from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from m1kernels import apply_rotary, rms_norm, rms_norm_gate
from m1kernels.rotary import inverse_frequencies


def test_inverse_frequencies_of_minimax_m1():
    frequencies = inverse_frequencies(64, 1e7)
    expected = torch.tensor([1.0, 0.60429639, 5.2329911e-4, 1.6548171e-7], dtype=torch.float64)
    assert_close(frequencies[[0, 1, 15, 31]], expected, atol=0, rtol=1e-7)


def test_dims_beyond_rotary_dim_pass_through():
    x = torch.randn(5, 3, 128)
    assert torch.equal(apply_rotary(x, torch.arange(5), 64, 1e7)[..., 64:], x[..., 64:])


def test_position_zero_is_the_identity():
    x = torch.randn(4, 2, 16)
    assert_close(apply_rotary(x, torch.zeros(4, dtype=torch.int64), 16, 1e4), x)


@pytest.mark.parametrize("position", [1, 77, 1_000_000])
def test_rotates_half_pairs_as_complex_numbers(position):
    x = torch.randn(1, 2, 20)
    out = apply_rotary(x, torch.tensor([position]), 16, 1e7).double()
    turn = torch.polar(torch.ones(8, dtype=torch.float64), position * inverse_frequencies(16, 1e7))
    expected = torch.complex(x[..., :8].double(), x[..., 8:16].double()) * turn
    assert_close(torch.complex(out[..., :8], out[..., 8:16]), expected, atol=1e-6, rtol=1e-6)


def test_scores_depend_on_the_distance_alone():
    q, k = torch.randn(1, 1, 32), torch.randn(1, 1, 32)

    def score(i, j):
        a, b = (apply_rotary(x, torch.tensor([p]), 16, 1e7) for x, p in ((q, i), (k, j)))
        return (a * b).sum()

    assert_close(score(7, 3), score(900_007, 900_003), atol=1e-4, rtol=1e-4)


def test_rotary_keeps_the_dtype_and_refuses_odd_dims():
    x = torch.randn(2, 1, 8).bfloat16()
    assert apply_rotary(x, torch.arange(2), 4, 1e4).dtype == torch.bfloat16
    for dim in (3, 10):
        with pytest.raises(ValueError, match="rotary_dim"):
            apply_rotary(x, torch.arange(2), dim, 1e4)


def reference_norm(x, weight, eps):
    x = x.double()
    return weight.double() * x / (x.square().mean(-1, keepdim=True) + eps).sqrt()


@pytest.mark.parametrize("eps", [1e-6, 1e-2])
def test_rms_norm(eps):
    x, weight = torch.randn(4, 48) * 0.1, torch.randn(48)
    assert_close(rms_norm(x, weight, eps).double(), reference_norm(x, weight, eps), atol=1e-6, rtol=1e-5)


def test_rms_norm_gate():
    x, weight, gate = torch.randn(4, 48), torch.randn(48), torch.randn(4, 48)
    expected = reference_norm(x, weight, 1e-6) / (1 + torch.exp(-gate.double()))
    assert_close(rms_norm_gate(x, weight, gate, 1e-6).double(), expected, atol=1e-6, rtol=1e-5)


def test_norm_statistics_are_fp32():
    x = torch.full((1, 64), 300.0).half()  # its square overflows fp16
    out = rms_norm(x, torch.ones(64).half(), 1e-6)
    assert out.dtype == torch.float16
    assert_close(out, torch.ones_like(out))

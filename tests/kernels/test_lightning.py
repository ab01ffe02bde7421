from __future__ import annotations

import dataclasses
import subprocess
import sys
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from m1kernels import decay_slopes, lightning_decode, lightning_prefill

GOLDEN = {  # layer: slopes of heads 0, 1, 31, 63 of 64, in 80 layers
    0: (0.91701321, 0.84090482, 0.06250063, 0.00390629),
    1: (0.90540557, 0.83026057, 0.06170949, 0.00385684),
    6: (0.84736734, 0.77703927, 0.05775379, 0.00360961),
    8: (0.82415204, 0.75575076, 0.05617151, 0.00351072),
    78: (0.01161682, 0.01065267, 0.00079176, 0.00004949),
}


@pytest.mark.parametrize("layer", GOLDEN)
def test_slopes_of_minimax_m1(layer):
    assert_close(decay_slopes(64, layer, 80)[[0, 1, 31, 63]], torch.tensor(GOLDEN[layer]), atol=1e-7, rtol=0)


def test_slopes_interpolate_between_powers_of_two():
    eight, sixteen, twelve = (decay_slopes(heads, 0, 2) for heads in (8, 16, 12))
    assert_close(twelve, torch.cat([eight, sixteen[0:8:2]]), rtol=0, atol=0)


def test_slopes_of_a_single_layer():
    assert_close(decay_slopes(2, 0, 1), torch.tensor([2.0**-4, 2.0**-8]) * (1 + 1e-5))


@pytest.mark.parametrize("arguments", [(8, -1, 4), (8, 4, 4), (0, 0, 4)])
def test_slopes_refuse_what_is_no_layer(arguments):
    with pytest.raises(ValueError, match="no decay"):
        decay_slopes(*arguments)


def column(rows):
    return torch.tensor(rows, dtype=torch.float32)[:, None]


def test_golden_vector():
    q = column([[1, 0], [0, 1], [1, 1], [2, -1]])
    k = column([[1, 2], [0, 1], [1, -1], [0.5, 0.5]])
    v = column([[1, 0], [2, 1], [0, -1], [1, 1]])
    o = column([[1, 0], [3.21306132, 1], [2.31670012, 0.60653066], [-0.23575888, -1.68747114]])
    state = torch.tensor([[0.72313016, -0.10653066], [1.68201890, 1.47441024]])
    slopes = torch.tensor([0.5])
    out = lightning_prefill(q, k, v, slopes, [0, 4])
    assert_close(out.o, o, atol=1e-6, rtol=0)
    assert_close(out.state[0, 0], state, atol=1e-6, rtol=0)
    states = torch.zeros(1, 1, 2, 2)
    stepped = [lightning_decode(q[t, None], k[t, None], v[t, None], slopes, states) for t in range(4)]
    assert_close(torch.cat(stepped), o, atol=1e-6, rtol=0)
    assert_close(states[0, 0], state, atol=1e-6, rtol=0)


@pytest.mark.parametrize("block", [1, 7, 32, 64, 256])
@pytest.mark.parametrize("length", [1, 255, 256, 257, 600])
def test_prefill_is_the_recurrence(make_packed, relative_error, length, block):
    x = make_packed([length])
    expected = x.oracle()
    export = [length - 1, 0, length // 2, length // 2, length // 3]
    out = lightning_prefill(x.q, x.k, x.v, x.slopes, x.cu, x.initial, export=export, block=block)
    assert relative_error(out.o, expected.o) < 3e-6
    assert relative_error(out.state, expected.state) < 3e-6
    assert relative_error(out.exported, expected.after[export]) < 3e-6


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.sampled_from([0, 1, 1, 2, 3, 63, 64, 65, 130]), min_size=1, max_size=6),
    block=st.sampled_from([1, 7, 64]),
    heads=st.integers(1, 3),
    data=st.data(),
)
def test_any_packing_is_the_recurrence(make_packed, relative_error, lengths, block, heads, data):
    x = make_packed(lengths, heads=heads, dim=8)
    tokens = x.cu[-1]
    export = data.draw(st.lists(st.integers(0, tokens - 1), max_size=5)) if tokens else []
    expected = x.oracle()
    out = lightning_prefill(x.q, x.k, x.v, x.slopes, torch.tensor(x.cu), x.initial, export=export, block=block)
    assert relative_error(out.o, expected.o) < 3e-6
    assert relative_error(out.state, expected.state) < 3e-6
    assert relative_error(out.exported, expected.after[export]) < 3e-6


@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(0, 300), max_size=4).map(sorted))
def test_any_split_is_one_forward(make_packed, relative_error, cuts):
    x = make_packed([300])
    expected = x.oracle()
    state, outputs = x.initial, []
    for a, b in pairwise([0, *cuts, 300]):
        out = lightning_prefill(x.q[a:b], x.k[a:b], x.v[a:b], x.slopes, [0, b - a], state)
        outputs.append(out.o)
        state = out.state
    assert relative_error(torch.cat(outputs), expected.o) < 3e-6
    assert relative_error(state, expected.state) < 3e-6


def test_exports_of_every_token(make_packed, relative_error):
    x = make_packed([1, 64, 1, 130, 0, 3, 64, 1], dim=8)
    export = list(range(x.cu[-1]))
    out = lightning_prefill(x.q, x.k, x.v, x.slopes, x.cu, x.initial, export=export)
    assert relative_error(out.exported, x.oracle().after) < 3e-6


def test_an_exported_state_resumes_the_sequence(make_packed, relative_error):
    x = make_packed([200])
    expected = x.oracle()
    first = lightning_prefill(x.q, x.k, x.v, x.slopes, x.cu, x.initial, export=[99])
    rest = lightning_prefill(x.q[100:], x.k[100:], x.v[100:], x.slopes, [0, 100], first.exported)
    assert relative_error(rest.o, expected.o[100:]) < 3e-6


def test_prefill_without_a_state_starts_from_zeros_and_modifies_nothing(make_packed):
    x = make_packed([1, 70])
    zeros = torch.zeros_like(x.initial)
    given_zeros = lightning_prefill(x.q, x.k, x.v, x.slopes, x.cu, zeros)
    assert_close(lightning_prefill(x.q, x.k, x.v, x.slopes, x.cu).o, given_zeros.o, atol=0, rtol=0)
    assert not zeros.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_inputs_are_computed_in_fp32(make_packed, relative_error, dtype):
    x = make_packed([1, 130], dtype=dtype)
    out = lightning_prefill(x.q, x.k, x.v, x.slopes, x.cu, x.initial)
    assert out.o.dtype == out.state.dtype == torch.float32
    assert relative_error(out.o, x.oracle().o) < 3e-6


def test_steep_decays_over_long_blocks_stay_finite(make_packed, relative_error):
    x = make_packed([600])
    slopes = torch.tensor([50.0, 0.0])
    out = lightning_prefill(x.q, x.k, x.v, slopes, x.cu, x.initial, block=256)
    q, k, v = (part[:, 0].double() for part in (x.q, x.k, x.v))
    own = (q * k).sum(-1, keepdim=True) * v
    assert relative_error(out.o[1:, 0], own[1:]) < 3e-6
    assert bool(out.o.isfinite().all())


def test_slow_decays_do_not_drift_over_a_long_memory(make_packed, relative_error):
    x = make_packed([20_000], heads=1, dim=2)
    x = dataclasses.replace(x, slopes=torch.tensor([4.949e-5]))
    expected = x.oracle().state
    assert relative_error(lightning_prefill(x.q, x.k, x.v, x.slopes, x.cu, x.initial).state, expected) < 1e-5
    states = x.initial.clone()
    for t in range(20_000):
        lightning_decode(x.q[t, None], x.k[t, None], x.v[t, None], x.slopes, states)
    assert relative_error(states, expected) < 1e-5


def test_prefill_has_gradients(make_packed):
    x = make_packed([1, 20], dim=4)
    leaves = [part.clone().requires_grad_() for part in (x.q, x.k, x.v)]
    out = lightning_prefill(*leaves, x.slopes, x.cu, x.initial, block=8)
    (out.o.sum() + out.state.sum()).backward()
    doubles = [part.detach().double().requires_grad_() for part in leaves]
    oracle = type(x)(*doubles, x.slopes, x.cu, x.initial).oracle()
    (oracle.o.sum() + oracle.state.sum()).backward()
    for leaf, double in zip(leaves, doubles, strict=True):
        assert_close(leaf.grad.double(), double.grad, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("slots", [None, [3, 0, 2], torch.tensor([1, 4, 3])])
def test_decode_updates_the_rows_it_is_given(make_packed, relative_error, slots):
    x = make_packed([1, 1, 1])
    expected = x.oracle()
    rows = torch.arange(3) if slots is None else torch.as_tensor(slots)
    states = torch.full((5, *x.initial.shape[1:]), 7.0)
    states[rows] = x.initial
    others = [row for row in range(5) if row not in rows.tolist()]
    o = lightning_decode(x.q, x.k, x.v, x.slopes, states, slots)
    assert relative_error(o, expected.o) < 1e-6
    assert relative_error(states[rows], expected.state) < 1e-6
    assert bool((states[others] == 7.0).all())


def test_decode_of_one_slot_continues_a_prefill(make_packed, relative_error):
    x = make_packed([90])
    expected = x.oracle()
    states = torch.zeros(4, *x.initial.shape[1:])
    states[2] = lightning_prefill(x.q[:80], x.k[:80], x.v[:80], x.slopes, [0, 80], x.initial).state[0]
    steps = [
        lightning_decode(x.q[t : t + 1], x.k[t : t + 1], x.v[t : t + 1], x.slopes, states, torch.tensor([2]))
        for t in range(80, 90)
    ]
    assert relative_error(torch.cat(steps), expected.o[80:]) < 3e-6
    assert relative_error(states[2:3], expected.state) < 3e-6


def test_prefill_refuses_what_does_not_fit(make_packed):
    x = make_packed([5])
    arguments = (x.q, x.k, x.v, x.slopes)
    with pytest.raises(ValueError, match="cu_seqlens"):
        lightning_prefill(*arguments, [0, 4])
    with pytest.raises(ValueError, match="export"):
        lightning_prefill(*arguments, x.cu, export=[5])
    with pytest.raises(ValueError, match="initial_state"):
        lightning_prefill(*arguments, x.cu, x.initial[:0])
    with pytest.raises(ValueError, match="slopes"):
        lightning_prefill(x.q, x.k, x.v, x.slopes[:1], x.cu)
    with pytest.raises(ValueError, match="q, k and v"):
        lightning_prefill(x.q[:4], x.k, x.v, x.slopes, x.cu)


def test_decode_refuses_what_does_not_fit(make_packed):
    x = make_packed([1, 1])
    with pytest.raises(ValueError, match="fp32"):
        lightning_decode(x.q, x.k, x.v, x.slopes, x.initial.half())
    with pytest.raises(ValueError, match="slots"):
        lightning_decode(x.q, x.k, x.v, x.slopes, x.initial, [0])
    with pytest.raises(ValueError, match="slots"):
        lightning_decode(x.q, x.k, x.v, x.slopes, x.initial[:1])


def test_the_cpu_path_needs_no_triton():
    program = """
import sys
sys.modules["triton"] = None
import torch, m1kernels
x = torch.randn(3, 1, 16)
m1kernels.lightning_decode(x, x, x, torch.ones(1), m1kernels.lightning_prefill(x, x, x, torch.ones(1), range(4)).state)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr

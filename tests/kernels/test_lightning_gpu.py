from __future__ import annotations

import dataclasses

import pytest
import torch

from m1kernels import lightning_decode, lightning_prefill

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def on_cuda(x):
    moved = {name: getattr(x, name).cuda() for name in ("q", "k", "v", "slopes", "initial")}
    return dataclasses.replace(x, **moved)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", [16, 32, 64, 128])
@pytest.mark.parametrize("lengths", [[1], [255, 256, 257], [1, 0, 600, 1, 3]], ids=str)
def test_prefill_is_the_recurrence(make_packed, relative_error, lengths, dim, dtype):
    x = make_packed(lengths, heads=3, dim=dim, dtype=dtype)
    expected = x.oracle()
    export = sorted({0, x.cu[-1] // 2, x.cu[-1] - 1}, reverse=True)
    g = on_cuda(x)
    out = lightning_prefill(g.q, g.k, g.v, g.slopes, torch.tensor(x.cu).cuda(), g.initial, export=export)
    assert relative_error(out.o.cpu(), expected.o) < 5e-6
    assert relative_error(out.state.cpu(), expected.state) < 5e-6
    assert relative_error(out.exported.cpu(), expected.after[export]) < 5e-6


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", [16, 32, 64, 128, 48])
def test_decode_is_the_recurrence_and_leaves_other_slots(make_packed, relative_error, dim, dtype):
    x = make_packed([1, 1, 1], heads=3, dim=dim, dtype=dtype)
    expected = x.oracle()
    g = on_cuda(x)
    slots = torch.tensor([4, 0, 2], device="cuda")
    states = torch.full((5, *x.initial.shape[1:]), 7.0, device="cuda")
    states[slots] = g.initial
    o = lightning_decode(g.q, g.k, g.v, g.slopes, states, slots)
    assert relative_error(o.cpu(), expected.o) < 1e-6
    assert relative_error(states[slots].cpu(), expected.state) < 1e-6
    assert bool((states[[1, 3]] == 7.0).all())


def test_inputs_that_need_gradients_get_them(make_packed):
    g = on_cuda(make_packed([70], dim=16))
    q = g.q.clone().requires_grad_()
    lightning_prefill(q, g.k, g.v, g.slopes, [0, 70]).o.sum().backward()
    assert q.grad is not None and bool(q.grad.any())


def test_no_recompilation_for_another_length(make_packed, monkeypatch):
    from triton import knobs

    compilations = []
    monkeypatch.setattr(knobs.runtime, "jit_post_compile_hook", lambda **call: compilations.append(call))
    for length in (63, 64, 65, 257, 600):
        g = on_cuda(make_packed([length, 5], heads=5, dim=32))
        lightning_prefill(g.q, g.k, g.v, g.slopes, [0, length, length + 5], g.initial)
    assert len(compilations) <= 1

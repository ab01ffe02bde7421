"""Triton kernels of lightning attention for CUDA (and, in tests, Triton's CPU interpreter).

One program owns one sequence, one head and a slice of the value dimension: it walks the tokens block by block with
its [D, D/split] part of the state in fp32 registers, so nothing but q, k, v and o touches memory. Import this module
only where triton is installed.
"""

# Triton's language has no Python types.
# pyright: basic, reportMissingTypeStubs=false, reportCallIssue=false, reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

_NO_EXPORT = 2**31 - 1


def prefill(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    slopes: Tensor,
    cu_seqlens: Tensor | Sequence[int],
    initial_state: Tensor,
    export: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor]:
    """`lightning_prefill` in one launch: o [T, A, D], state [N, A, D, D] and exported [P, A, D, D], all fp32.

    Arguments as there; head dim 16, 32, 64 or 128. No length is a compile-time constant, and the host never waits for
    the GPU unless cu_seqlens is a CPU tensor.
    """
    tokens, heads, dim = q.shape
    q, k, v, slopes, initial_state = _ready(q), _ready(k), _ready(v), slopes.float(), initial_state.float().contiguous()
    cu = _int32(cu_seqlens, q.device)
    wanted, rows, first = _export_plan(export, cu) if len(export) else (cu, cu, cu)
    o = torch.empty(tokens, heads, dim, dtype=torch.float32, device=q.device)
    state = torch.empty_like(initial_state)
    exported = torch.empty(len(export), heads, dim, dim, dtype=torch.float32, device=q.device)
    if len(state) == 0:
        return o, state, exported
    part = _value_part(dim)
    exact = q.dtype == torch.float32
    _prefill_kernel[(len(state), heads, dim // part)](
        q, k, v, slopes, cu, initial_state, o, state, wanted, rows, first, exported,
        q.stride(0), q.stride(1), k.stride(0), k.stride(1), v.stride(0), v.stride(1), o.stride(0),
        HEADS=heads, DIM=dim, PART=part, EXPORTS=len(export) > 0,
        # fp32 inputs get true fp32 products, outside the tensor cores, where a block of 64 spills its registers;
        # for 16-bit inputs three tf32 products keep the fp32 state's accuracy.
        BLOCK=32 if exact else 64, PRECISION="ieee" if exact else "tf32x3",
        num_warps=8 if dim == 128 else 4, num_stages=1, enable_fp_fusion=True,
    )  # fmt: skip
    return o, state, exported


def decode(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor, states: Tensor, slots: Tensor | None) -> Tensor:
    """`lightning_decode` in one launch; arguments as there, head dim 16, 32, 64 or 128."""
    count, heads, dim = q.shape
    q, k, v, slopes = _ready(q), _ready(k), _ready(v), slopes.float()
    o = torch.empty(count, heads, dim, dtype=torch.float32, device=q.device)
    if count == 0:
        return o
    part = min(dim, 32)
    _decode_kernel[(count, heads, dim // part)](
        q, k, v, slopes, states, states if slots is None else slots.contiguous(), o,
        q.stride(0), q.stride(1), k.stride(0), k.stride(1), v.stride(0), v.stride(1), o.stride(0),
        states.stride(0), states.stride(1), states.stride(2), states.stride(3),
        DIM=dim, PART=part, SLOTS=slots is not None, num_warps=4, enable_fp_fusion=True,
    )  # fmt: skip
    return o


def _export_plan(export: Sequence[int], cu: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens to export in ascending order, the output row of each, and where each sequence's own begin."""
    ranked = sorted(range(len(export)), key=lambda i: export[i])
    wanted = _int32([*(export[i] for i in ranked), _NO_EXPORT], cu.device)
    rows = _int32([*ranked, 0], cu.device)
    return wanted, rows, torch.searchsorted(wanted, cu[:-1].contiguous(), out_int32=True)


def _int32(values: Tensor | Sequence[int], device: torch.device) -> Tensor:
    if isinstance(values, Tensor):
        return values.to(device, torch.int32)
    host = torch.tensor(values, dtype=torch.int32)
    # From pageable memory the copy would wait for the GPU's queue.
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host


def _ready(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _value_part(dim: int) -> int:
    return 64 if dim == 128 else min(dim, 32)


@triton.jit
def _fade(state, exponent):
    """state * exp(-exponent) as state + expm1(-exponent) * state, whose error does not compound for tiny exponents."""
    x = -exponent
    series = 1 + x / 2 * (1 + x / 3 * (1 + x / 4 * (1 + x / 5 * (1 + x / 6 * (1 + x / 7 * (1 + x / 8))))))
    return state + tl.where(exponent < 0.5, x * series, tl.exp(tl.minimum(x, 0.0)) - 1) * state


@triton.jit
def _prefill_kernel(
    q_ptr, k_ptr, v_ptr, slope_ptr, cu_ptr, init_ptr, o_ptr, state_ptr, wanted_ptr, row_ptr, first_ptr, export_ptr,
    q_token, q_head, k_token, k_head, v_token, v_head, o_token,
    HEADS: tl.constexpr, DIM: tl.constexpr, PART: tl.constexpr, BLOCK: tl.constexpr, EXPORTS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1).to(tl.int64)
    start = tl.load(cu_ptr + n)
    end = tl.load(cu_ptr + n + 1)
    slope = tl.load(slope_ptr + head)
    i = tl.arange(0, BLOCK)
    d = tl.arange(0, DIM)
    e = tl.program_id(2) * PART + tl.arange(0, PART)

    # 64-bit: a million tokens of 64 heads of 128 pass 2^31 elements. Inside the loop pointers only step.
    q_ptrs = q_ptr + start.to(tl.int64) * q_token + head * q_head + i[:, None] * q_token + d[None, :]
    k_ptrs = k_ptr + start.to(tl.int64) * k_token + head * k_head + i[:, None] * k_token + d[None, :]
    v_ptrs = v_ptr + start.to(tl.int64) * v_token + head * v_head + i[:, None] * v_token + e[None, :]
    o_ptrs = o_ptr + start.to(tl.int64) * o_token + head * DIM + i[:, None] * o_token + e[None, :]
    in_state = d[:, None] * DIM + e[None, :]
    own_state = (n * HEADS + head) * DIM * DIM + in_state
    state = tl.load(init_ptr + own_state)

    distance = i[:, None] - i[None, :]
    causal = tl.where(distance >= 0, tl.exp(-slope * tl.maximum(distance, 0).to(tl.float32)), 0.0)
    query_decay = tl.exp(-slope * (i + 1).to(tl.float32))
    if EXPORTS:
        cursor = tl.load(first_ptr + n)
        wanted = tl.load(wanted_ptr + cursor)

    for t in range(start, end, BLOCK):
        m = tl.minimum(end - t, BLOCK)
        live = (i < m)[:, None]
        q = tl.load(q_ptrs, mask=live, other=0.0)
        k = tl.load(k_ptrs, mask=live, other=0.0)
        v = tl.load(v_ptrs, mask=live, other=0.0).to(tl.float32)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * causal
        q = q.to(tl.float32) * query_decay[:, None]
        k = k.to(tl.float32)
        o = tl.dot(scores, v, input_precision=PRECISION)
        o = tl.dot(q, state, acc=o, input_precision=PRECISION)
        tl.store(o_ptrs, o, mask=live)
        if EXPORTS:
            while wanted < t + m:
                last = wanted - t
                back = tl.maximum(last - i, 0).to(tl.float32)
                keys = k * tl.where(i <= last, tl.exp(-slope * back), 0.0)[:, None]
                snapshot = _fade(state, slope * (last + 1).to(tl.float32))
                snapshot = tl.dot(tl.trans(keys), v, acc=snapshot, input_precision=PRECISION)
                row = tl.load(row_ptr + cursor).to(tl.int64)
                tl.store(export_ptr + (row * HEADS + head) * DIM * DIM + in_state, snapshot)
                cursor += 1
                wanted = tl.load(wanted_ptr + cursor)
        keys = k * tl.exp(-slope * tl.maximum(m - 1 - i, 0).to(tl.float32))[:, None]
        state = tl.dot(tl.trans(keys), v, acc=_fade(state, slope * m.to(tl.float32)), input_precision=PRECISION)
        q_ptrs += BLOCK * q_token
        k_ptrs += BLOCK * k_token
        v_ptrs += BLOCK * v_token
        o_ptrs += BLOCK * o_token
    tl.store(state_ptr + own_state, state)


@triton.jit
def _decode_kernel(
    q_ptr, k_ptr, v_ptr, slope_ptr, states_ptr, slot_ptr, o_ptr,
    q_token, q_head, k_token, k_head, v_token, v_head, o_token,
    state_slot, state_head, state_row, state_col,
    DIM: tl.constexpr, PART: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1).to(tl.int64)
    d = tl.arange(0, DIM)
    e = tl.program_id(2) * PART + tl.arange(0, PART)
    if SLOTS:
        slot = tl.load(slot_ptr + n).to(tl.int64)
    else:
        slot = n
    q = tl.load(q_ptr + n * q_token + head * q_head + d).to(tl.float32)
    k = tl.load(k_ptr + n * k_token + head * k_head + d).to(tl.float32)
    v = tl.load(v_ptr + n * v_token + head * v_head + e).to(tl.float32)
    ptrs = states_ptr + slot * state_slot + head * state_head + d[:, None] * state_row + e[None, :] * state_col
    state = _fade(tl.load(ptrs), tl.load(slope_ptr + head)) + k[:, None] * v[None, :]
    tl.store(ptrs, state)
    tl.store(o_ptr + n * o_token + head * DIM + e, tl.sum(q[:, None] * state, axis=0))

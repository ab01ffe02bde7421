"""Lightning attention of MiniMax-M1: linear attention with one exponential decay a head.

    S[t] = exp(-slope) S[t-1] + k[t]^T v[t]          o[t] = q[t] S[t]

The block-wise form is "Lightning Attention-2" (arXiv 2401.04658) with MiniMax's decays (arXiv 2501.08313): no
softmax, no 1/sqrt(D), and a token reads its own key and value undecayed. Everything is fp32 inside, and only
non-positive numbers are ever exponentiated. A state decays as S + expm1(-slope) S: rounding exp(-slope) itself, .99995
for M1's slowest heads, would compound to 1e-4 over the tens of thousands of tokens that they remember.

`lightning_triton.py` holds the CUDA kernels of the same two functions.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

_SPAN = 8
"""Blocks computed together; bounds the temporaries of a long prefill to a few of `_SPAN * block` tokens."""

_TRITON_HEAD_DIMS = (16, 32, 64, 128)


@dataclass(frozen=True, slots=True)
class LightningOutput:
    """Result of `lightning_prefill`, all fp32.

    o: [T, A, D] outputs; state: [N, A, D, D] after each sequence's last token;
    exported: [P, A, D, D] after each of the P requested tokens.
    """

    o: Tensor
    state: Tensor
    exported: Tensor


def lightning_prefill(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    slopes: Tensor,
    cu_seqlens: Tensor | Sequence[int],
    initial_state: Tensor | None = None,
    *,
    export: Sequence[int] = (),
    block: int = 64,
) -> LightningOutput:
    """Runs N packed sequences through one lightning layer, each continuing from its own state.

    q, k, v: [T, A, D], any floating dtype; slopes: [A] fp32, decay exponents (`decay_slopes`), non-negative.
    cu_seqlens: [N+1] ascending, sequence n is tokens cu_seqlens[n]:cu_seqlens[n+1] (may be empty).
    initial_state: [N, A, D, D] fp32, key dimension first; None is zeros. It is not modified.
    export: packed token indices; `exported[i]` is the state after token `export[i]`, inclusive.
    block: tokens a block of the reference; a matter of speed only. The CUDA kernel has its own.

    On CUDA this is one Triton kernel for head dims 16, 32, 64 and 128; any other head dim, and inputs that need
    gradients, run the reference there. The kernel trusts cu_seqlens, whose check would wait for the GPU.
    Raises ValueError for shapes that don't fit, a bad cu_seqlens, or an export outside 0 <= e < T.
    """
    tokens, heads, dim = _check_qkv(q, k, v, slopes)
    if block < 1:
        raise ValueError(f"block must be at least 1, got {block}")
    for e in export:
        if not 0 <= e < tokens:
            raise ValueError(f"export {e} is outside the {tokens} packed tokens")
    sequences = len(cu_seqlens) - 1
    if initial_state is None:
        initial_state = q.new_zeros(sequences, heads, dim, dim, dtype=torch.float32)
    if initial_state.shape != (sequences, heads, dim, dim):
        raise ValueError(f"initial_state must be {(sequences, heads, dim, dim)}, got {tuple(initial_state.shape)}")
    if _has_kernel(q, k, v, initial_state):
        from m1kernels import lightning_triton

        o, state, exported = lightning_triton.prefill(q, k, v, slopes, cu_seqlens, initial_state, export)
        return LightningOutput(o, state, exported)
    return _prefill_reference(q, k, v, slopes, _bounds(cu_seqlens, tokens), initial_state, export, block)


def lightning_decode(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    slopes: Tensor,
    states: Tensor,
    slots: Tensor | Sequence[int] | None = None,
    *,
    fading: Tensor | None = None,
) -> Tensor:
    """One token of N sequences: updates their states in place and returns o [N, A, D] fp32.

    q, k, v: [N, A, D], any floating dtype; slopes: [A] fp32; states: [S, A, D, D] fp32, key dimension first.
    slots: [N] distinct row indices into `states`; None means rows 0..N-1. fading: `state_fading(slopes, 1)` if known.

    On CUDA this is one Triton kernel for head dims 16, 32, 64 and 128; any other head dim, and inputs that need
    gradients, run the reference there. Raises ValueError for shapes that don't fit or states that are not fp32.
    """
    count, heads, dim = _check_qkv(q, k, v, slopes)
    if states.dtype != torch.float32 or states.shape[1:] != (heads, dim, dim):
        raise ValueError(f"states must be fp32 [S, {heads}, {dim}, {dim}], got {states.dtype} {tuple(states.shape)}")
    if (len(slots) if slots is not None else count) != count or (slots is None and count > len(states)):
        raise ValueError(f"{count} tokens need {count} slots among {len(states)} states")
    if slots is not None:
        slots = torch.as_tensor(slots, device=states.device)
    if _has_kernel(q, k, v, states):
        from m1kernels import lightning_triton

        return lightning_triton.decode(q, k, v, slopes, states, slots)
    return _decode_reference(q, k, v, state_fading(slopes, 1) if fading is None else fading, states, slots)


def lightning_replay(k: Tensor, v: Tensor, slopes: Tensor, state: Tensor) -> Tensor:
    """The states after T more tokens, without their outputs: one block, for a few dozen tokens of several layers.

    k, v: [L, T, A, D]; slopes: [L, A] fp32; state: [L, A, D, D] fp32, not modified. Returns [L, A, D, D] fp32.
    Raises ValueError for shapes that don't fit.
    """
    layers, tokens, heads, dim = k.shape
    if v.shape != k.shape or slopes.shape != (layers, heads) or state.shape != (layers, heads, dim, dim):
        shapes = [tuple(x.shape) for x in (k, v, slopes, state)]
        raise ValueError(f"k, v [L, T, A, D], slopes [L, A] and state [L, A, D, D] do not fit: {shapes}")
    slopes = slopes.float()[..., None]
    back = torch.arange(tokens - 1, -1, -1, device=k.device, dtype=torch.float32)
    keys = k.float().transpose(1, 2) * torch.exp(-slopes * back)[..., None]  # [L, A, T, D]
    update = keys.transpose(2, 3) @ v.float().transpose(1, 2)
    return torch.addcmul(state + update, torch.expm1(-slopes * tokens)[..., None], state)


def decay_slopes(num_heads: int, layer: int, num_layers: int) -> Tensor:
    """Decay exponents of one layer, [num_heads] fp32 on the CPU: ALiBi's slopes * (1 - layer/(num_layers-1) + 1e-5).

    layer: absolute index among all num_layers layers, softmax layers included. A head count that is no power of two
    interpolates as ALiBi does (arXiv 2108.12409, and MiniMax's modeling code). A single layer has the factor 1 + 1e-5.
    Raises ValueError when layer is not in 0..num_layers-1 or num_heads < 1.
    """
    if num_heads < 1 or not 0 <= layer < num_layers:
        raise ValueError(f"no decay for {num_heads} heads in layer {layer} of {num_layers}")
    factor = 1 - layer / max(num_layers - 1, 1) + 1e-5
    return torch.tensor([slope * factor for slope in _alibi(num_heads)], dtype=torch.float32)


def _alibi(num_heads: int) -> list[float]:
    power = 1 << int(math.log2(num_heads))
    slopes = [2.0 ** (-8 * (j + 1) / power) for j in range(power)]
    if power == num_heads:
        return slopes
    return slopes + _alibi(2 * power)[::2][: num_heads - power]


def _check_qkv(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor) -> tuple[int, int, int]:
    if q.dim() != 3 or q.shape != k.shape or q.shape != v.shape:
        shapes = [tuple(x.shape) for x in (q, k, v)]
        raise ValueError(f"q, k and v must share one shape [tokens, heads, head dim], got {shapes}")
    tokens, heads, dim = q.shape
    if slopes.shape != (heads,):
        raise ValueError(f"slopes must be [{heads}], got {tuple(slopes.shape)}")
    return tokens, heads, dim


def _has_kernel(*inputs: Tensor) -> bool:
    needs_gradients = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
    return inputs[0].is_cuda and inputs[0].shape[-1] in _TRITON_HEAD_DIMS and not needs_gradients


def _bounds(cu_seqlens: Tensor | Sequence[int], tokens: int) -> list[int]:
    bounds = [int(b) for b in (cu_seqlens.cpu() if isinstance(cu_seqlens, Tensor) else cu_seqlens)]
    if not bounds or bounds[0] != 0 or bounds[-1] != tokens or any(a > b for a, b in pairwise(bounds)):
        raise ValueError(f"cu_seqlens must ascend from 0 to {tokens}, got {bounds}")
    return bounds


def _prefill_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    slopes: Tensor,
    bounds: list[int],
    initial_state: Tensor,
    export: Sequence[int],
    block: int,
) -> LightningOutput:
    q, k, v, slopes, initial_state = (x.float() for x in (q, k, v, slopes, initial_state))
    walk = _Walk(q, k, v, slopes, bounds, block, sorted(set(export)), list(initial_state.unbind(0)))
    by_length: defaultdict[int, list[int]] = defaultdict(list)
    for n, (a, b) in enumerate(pairwise(bounds)):
        by_length[b - a].append(n)
    for length, members in by_length.items():
        if 0 < length <= block:
            walk.together(members, length)
        elif length:
            for n in members:
                walk.alone(n)
    empty = initial_state.new_zeros(0, *initial_state.shape[1:])
    return LightningOutput(
        o=torch.cat([walk.outputs[a] for a in sorted(walk.outputs)]) if walk.outputs else q,
        state=torch.stack(walk.states) if walk.states else empty,
        exported=torch.stack([walk.exported[e] for e in export]) if len(export) else empty,
    )


@dataclass(slots=True)
class _Walk:
    """The packed sequences' way through the layer; `states` are the sequences' current ones."""

    q: Tensor
    k: Tensor
    v: Tensor
    slopes: Tensor
    bounds: list[int]
    block: int
    wanted: list[int]
    states: list[Tensor]
    outputs: dict[int, Tensor] = field(default_factory=dict[int, Tensor])  # by the first token of the piece
    exported: dict[int, Tensor] = field(default_factory=dict[int, Tensor])

    def together(self, members: list[int], m: int) -> None:
        """Sequences of one length that fit a block each: all at once, as a mixed batch's single tokens want."""
        starts = [self.bounds[n] for n in members]
        if members == list(range(members[0], members[0] + len(members))):
            runs = self._runs(starts[0], starts[-1] + m, m)
        else:
            rows = torch.tensor(starts, device=self.q.device)[:, None] + torch.arange(m, device=self.q.device)
            runs = _Runs(self.q[rows], self.k[rows], self.v[rows], self.slopes)
        befores = torch.stack([self.states[n] for n in members])
        afters = torch.addcmul(befores + runs.updates, state_fading(self.slopes, m), befores)
        o = runs.outputs(befores)
        for i, n in enumerate(members):
            self.outputs[starts[i]], self.states[n] = o[i], afters[i]
        self._export(runs, befores, starts)

    def alone(self, n: int) -> None:
        """One long sequence: its full blocks in spans, then the shorter last block."""
        start, end = self.bounds[n], self.bounds[n + 1]
        full = end - (end - start) % self.block
        for a, b in pairwise([*range(start, full, self.block * _SPAN), full, end]):
            if a < b:
                m = min(self.block, b - a)
                runs = self._runs(a, b, m)
                befores = self._advance(n, runs.updates, state_fading(self.slopes, m))
                self.outputs[a] = runs.outputs(befores).flatten(0, 1)
                self._export(runs, befores, range(a, b, m))

    def _runs(self, start: int, end: int, m: int) -> _Runs:
        q, k, v = (x[start:end].reshape(-1, m, *x.shape[1:]) for x in (self.q, self.k, self.v))
        return _Runs(q, k, v, self.slopes)

    def _advance(self, n: int, updates: Tensor, fading: Tensor) -> Tensor:
        befores: list[Tensor] = []
        state = self.states[n]
        for update in updates.unbind(0):
            befores.append(state)
            state = torch.addcmul(state + update, fading, state)
        self.states[n] = state
        return torch.stack(befores)

    def _export(self, runs: _Runs, befores: Tensor, starts: Sequence[int]) -> None:
        for e in self.wanted:
            for i, start in enumerate(starts):
                if start <= e < start + runs.m:
                    self.exported[e] = runs.after(i, e - start, befores[i])


class _Runs:
    """R runs of m consecutive tokens each, and what they make of the states before them."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, slopes: Tensor) -> None:
        """q, k, v: [R, m, A, D] fp32."""
        self.q, self.k, self.v = (x.transpose(1, 2).contiguous() for x in (q, k, v))  # [R, A, m, D]
        self.slopes = slopes
        self.m = q.shape[1]
        self.position = torch.arange(self.m, device=q.device, dtype=torch.float32)
        key_decay = _decay(slopes, self.m - 1 - self.position)
        self.updates = (self.k * key_decay[..., None]).transpose(2, 3) @ self.v  # [R, A, D, D]

    def outputs(self, befores: Tensor) -> Tensor:
        """befores: [R, A, D, D], the states before the runs; returns o [R, m, A, D]."""
        distance = self.position[:, None] - self.position
        scores = (self.q @ self.k.transpose(2, 3)) * _decay(self.slopes, distance).tril()
        o = scores @ self.v + (self.q * _decay(self.slopes, self.position + 1)[..., None]) @ befores
        return o.transpose(1, 2)

    def after(self, run: int, last: int, before: Tensor) -> Tensor:
        """The state [A, D, D] after token `last` of one run."""
        back = last - self.position[: last + 1]
        keys = self.k[run, :, : last + 1] * _decay(self.slopes, back)[..., None]
        update = keys.transpose(1, 2) @ self.v[run, :, : last + 1]
        return torch.addcmul(before + update, state_fading(self.slopes, last + 1), before)


def _decay(slopes: Tensor, distance: Tensor) -> Tensor:
    """exp(-slope * distance), [A, *distance.shape]; negative distances count as 0 and are the caller's to mask."""
    distance = distance.clamp(min=0)
    return torch.exp(-slopes.view(-1, *[1] * distance.dim()) * distance)


def state_fading(slopes: Tensor, tokens: int) -> Tensor:
    """What a state loses over some tokens, exp(-slope * tokens) - 1, [A, 1, 1]."""
    return torch.expm1(-slopes.float() * tokens)[:, None, None]


def _first_of_run(slots: Tensor) -> int | None:
    """The first slot when they ascend one by one, so that the states can be updated without a copy; else None."""
    if not len(slots):
        return 0
    first = int(slots[0])
    run = torch.arange(first, first + len(slots), dtype=slots.dtype, device=slots.device)
    return first if torch.equal(slots, run) else None


def _decode_reference(q: Tensor, k: Tensor, v: Tensor, fading: Tensor, states: Tensor, slots: Tensor | None) -> Tensor:
    count = q.shape[0]
    first = _first_of_run(slots) if slots is not None else 0
    rows = states[slots] if first is None else states[first : first + count]
    rows.addcmul_(fading, rows)
    rows.addcmul_(k.float()[..., :, None], v.float()[..., None, :])
    if first is None:
        states[slots] = rows
    return (q.float()[..., None, :] @ rows).squeeze(-2)

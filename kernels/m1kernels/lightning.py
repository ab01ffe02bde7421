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
from collections.abc import Sequence
from dataclasses import dataclass
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
    q: Tensor, k: Tensor, v: Tensor, slopes: Tensor, states: Tensor, slots: Tensor | Sequence[int] | None = None
) -> Tensor:
    """One token of N sequences: updates their states in place and returns o [N, A, D] fp32.

    q, k, v: [N, A, D], any floating dtype; slopes: [A] fp32; states: [S, A, D, D] fp32, key dimension first.
    slots: [N] distinct row indices into `states`; None means rows 0..N-1.

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
    return _decode_reference(q, k, v, slopes, states, slots)


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
    states: list[Tensor] = list(initial_state.unbind(0))
    outputs: list[Tensor] = [q[:0]] * len(states)
    exported: dict[int, Tensor] = {}
    single = [n for n, (a, b) in enumerate(pairwise(bounds)) if b - a == 1]
    if single:
        _single_tokens(q, k, v, slopes, bounds, initial_state, single, outputs, states)
        exported.update((bounds[n], states[n]) for n in single)
    for n, (a, b) in enumerate(pairwise(bounds)):
        if b - a < 2:
            continue
        wanted = sorted({e - a for e in export if a <= e < b})
        sequence = _Sequence(slopes, states[n], wanted, block)
        outputs[n] = sequence.run(q[a:b], k[a:b], v[a:b])
        states[n] = sequence.state
        exported.update((a + e, state) for e, state in sequence.exported.items())
    empty = initial_state.new_zeros(0, *initial_state.shape[1:])
    return LightningOutput(
        o=torch.cat(outputs) if outputs else q,
        state=torch.stack(states) if states else empty,
        exported=torch.stack([exported[e] for e in export]) if len(export) else empty,
    )


def _single_tokens(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    slopes: Tensor,
    bounds: list[int],
    initial_state: Tensor,
    single: list[int],
    outputs: list[Tensor],
    states: list[Tensor],
) -> None:
    rows = torch.tensor([bounds[n] for n in single], device=q.device)
    before = initial_state[torch.tensor(single, device=q.device)]
    update = k[rows][..., :, None] * v[rows][..., None, :]
    state = torch.addcmul(before + update, _fading(slopes, 1), before)
    o = q[rows][..., None, :] @ state
    for i, n in enumerate(single):
        outputs[n], states[n] = o[i].transpose(0, 1), state[i]


class _Sequence:
    """One sequence's walk over its blocks: full blocks in spans, then the shorter last block."""

    def __init__(self, slopes: Tensor, state: Tensor, wanted: list[int], block: int) -> None:
        self.slopes = slopes
        self.state = state
        self.wanted = wanted
        self.block = block
        self.exported: dict[int, Tensor] = {}

    def run(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q, k, v: [T, A, D] fp32; returns o [T, A, D]."""
        tokens = q.shape[0]
        full = tokens - tokens % self.block
        edges = [*range(0, full, self.block * _SPAN), full, tokens]
        parts: list[Tensor] = []
        for a, b in pairwise(edges):
            if a < b:
                parts.append(self._span(q[a:b], k[a:b], v[a:b], a, min(self.block, b - a)))
        return torch.cat(parts)

    def _span(self, q: Tensor, k: Tensor, v: Tensor, start: int, m: int) -> Tensor:
        tokens, heads, dim = q.shape
        qb, kb, vb = (x.reshape(-1, m, heads, dim).transpose(1, 2).contiguous() for x in (q, k, v))  # [blocks, A, m, D]
        i = torch.arange(m, device=q.device, dtype=torch.float32)
        key_decay = _decay(self.slopes, m - 1 - i)
        updates = (kb * key_decay[..., None]).transpose(2, 3) @ vb
        befores = self._advance(updates, _fading(self.slopes, m))
        self._export(kb, vb, befores, start, m)
        distance = i[:, None] - i[None, :]
        scores = (qb @ kb.transpose(2, 3)) * _decay(self.slopes, distance).tril()
        o = scores @ vb + (qb * _decay(self.slopes, i + 1)[..., None]) @ befores
        return o.transpose(1, 2).reshape(tokens, heads, dim)

    def _advance(self, updates: Tensor, fading: Tensor) -> Tensor:
        befores: list[Tensor] = []
        for update in updates.unbind(0):
            befores.append(self.state)
            self.state = torch.addcmul(self.state + update, fading, self.state)
        return torch.stack(befores)

    def _export(self, kb: Tensor, vb: Tensor, befores: Tensor, start: int, m: int) -> None:
        for e in self.wanted:
            b, last = divmod(e - start, m)
            if not 0 <= b < len(befores):
                continue
            back = torch.arange(last, -1, -1, device=kb.device, dtype=torch.float32)
            keys = kb[b, :, : last + 1] * _decay(self.slopes, back)[..., None]
            update = keys.transpose(1, 2) @ vb[b, :, : last + 1]
            self.exported[e] = torch.addcmul(befores[b] + update, _fading(self.slopes, last + 1), befores[b])


def _decay(slopes: Tensor, distance: Tensor) -> Tensor:
    """exp(-slope * distance), [A, *distance.shape]; negative distances count as 0 and are the caller's to mask."""
    distance = distance.clamp(min=0)
    return torch.exp(-slopes.view(-1, *[1] * distance.dim()) * distance)


def _fading(slopes: Tensor, tokens: int) -> Tensor:
    """What a state loses over some tokens, exp(-slope * tokens) - 1, [A, 1, 1]."""
    return torch.expm1(-slopes.float() * tokens)[:, None, None]


def _first_of_run(slots: Tensor) -> int | None:
    """The first slot when they ascend one by one, so that the states can be updated without a copy; else None."""
    if not len(slots):
        return 0
    first = int(slots[0])
    run = torch.arange(first, first + len(slots), dtype=slots.dtype, device=slots.device)
    return first if torch.equal(slots, run) else None


def _decode_reference(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor, states: Tensor, slots: Tensor | None) -> Tensor:
    count = q.shape[0]
    first = _first_of_run(slots) if slots is not None else 0
    rows = states[slots] if first is None else states[first : first + count]
    rows.addcmul_(_fading(slopes, 1), rows)
    rows.addcmul_(k.float()[..., :, None], v.float()[..., None, :])
    if first is None:
        states[slots] = rows
    return (q.float()[..., None, :] @ rows).squeeze(-2)

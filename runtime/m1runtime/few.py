"""A few tokens of any sequences on a CPU: a draft beside its token, or one token each of a handful of replies.

The packed pass spends more on the number of its operations than on so few rows. Here attention runs over all sequences
at once where they have as many tokens each, decays are looked up, and small experts are computed for every row, with a
weight of zero where a row did not choose them: cheaper than sorting rows by expert.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from m1kernels.lightning import state_fading
from m1kernels.norm import rms_norm, rms_norm_gate
from m1kernels.quant import Int8Weight, Rounded, Weight, plain_linear
from m1kernels.rotary import Rotation
from m1runtime.cache import PagePool, StatePool
from m1runtime.config import ModelConfig
from m1runtime.layers import Batch, Experts, LightningAttention

if TYPE_CHECKING:
    from m1runtime.model import Layer

_int_mm = torch._int_mm  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]

MOST = 24
"""Tokens of a pass, up to which this is the cheaper way."""
_FEW_EXPERTS = 8
_SMALL = 1 << 17  # numbers of an expert's larger matrix, up to which all experts cost less than sorting


class _Rows:
    """Rows [R, C] fp32, and in 8 bits once a map wants them so."""

    __slots__ = ("_rounded", "rows")

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows
        self._rounded: Rounded | None = None

    def by(self, weight: Weight) -> Tensor:
        """`m1kernels.quant.linear`."""
        if not isinstance(weight, Int8Weight):
            return plain_linear(self.rows, weight)
        if self._rounded is None:
            self._rounded = Rounded.of(self.rows)
        return self._rounded.linear(weight)


@dataclass(frozen=True, slots=True, eq=False)
class _Decay:
    """Of one layer over T tokens: since the state before [A, T, 1], until the state after [A, T, 1], between each two
    [A, T, T], and what the state loses [A, 1, 1]."""

    since: Tensor
    until: Tensor
    between: Tensor
    fading: Tensor

    @classmethod
    def over(cls, tokens: int, slopes: Tensor) -> _Decay:
        """slopes: [A]."""
        place = torch.arange(tokens, dtype=torch.float32)
        slopes = slopes[:, None, None]
        distance = place[:, None] - place
        return cls(
            since=torch.exp(-slopes * (place[:, None] + 1)),
            until=torch.exp(-slopes * (tokens - 1 - place[:, None])),
            between=torch.exp(-slopes * distance.clamp(min=0)).tril(),
            fading=state_fading(slopes.flatten(), tokens),
        )


class _Lightning:
    def __init__(self, attention: LightningAttention) -> None:
        self._qkv, self._gate, self._out = attention.qkv, attention.gate, attention.out
        self._norm, self._eps = attention.norm, attention.eps
        self._heads, self._slopes = attention.heads, attention.slopes
        self._decays: dict[int, _Decay] = {}

    def __call__(self, n: Tensor, batch: Batch, states: Tensor) -> tuple[Tensor, Tensor]:
        """n [R, H] and states [slots, A, D, D], written in place → [R, H], and the keys and values [R, A, 2, D] before
        the activation."""
        x = _Rows(n)
        raw = x.by(self._qkv).view(len(n), self._heads, 3, -1)
        q, k, v = F.silu(raw).unbind(2)
        o = self._attend(q, k, v, batch, states)
        gated = rms_norm_gate(o, self._norm, x.by(self._gate), self._eps)
        return _Rows(gated).by(self._out), raw[:, :, 1:]

    def _decay(self, tokens: int) -> _Decay:
        if tokens not in self._decays:
            self._decays[tokens] = _Decay.over(tokens, self._slopes)
        return self._decays[tokens]

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, batch: Batch, states: Tensor) -> Tensor:
        """[R, A, D] each → [R, AD], contiguous."""
        each = max(1, len(q) // len(batch.slots))
        if batch.bounds != tuple(range(0, len(q) + 1, each)):
            parts = [
                self._together(q[a:b], k[a:b], v[a:b], states[slot : slot + 1])
                for (a, b), slot in zip(pairwise(batch.bounds), _integers(batch.slots), strict=True)
                if a < b
            ]
            return torch.cat(parts)
        if batch.slot_run is not None:
            return self._together(q, k, v, states[batch.slot_run])
        own = states[batch.slots]
        o = self._together(q, k, v, own)
        states[batch.slots] = own
        return o

    def _together(self, q: Tensor, k: Tensor, v: Tensor, states: Tensor) -> Tensor:
        """N sequences of T tokens each: [NT, A, D], and states [N, A, D, D] written in place → [NT, AD]."""
        count, heads, dim = len(states), self._heads, q.shape[-1]
        tokens = len(q) // count
        q, k, v = (x.view(count, tokens, heads, dim).transpose(1, 2).reshape(-1, tokens, dim) for x in (q, k, v))
        decay = self._decay(tokens)
        state = states.flatten(0, 1)  # a view: whoever took the states took them in a row
        if tokens == 1:
            states.addcmul_(decay.fading, states)
            o = torch.bmm(q, state.addcmul_(k.transpose(1, 2), v))
            return o.view(count, -1)
        scores = torch.bmm(q, k.transpose(1, 2))
        scores.view(count, heads, tokens, tokens).mul_(decay.between)
        if count > 1:
            decay = _Decay(*(x.repeat(count, 1, 1) for x in (decay.since, decay.until, decay.between, decay.fading)))
        o = torch.bmm(q * decay.since, state).baddbmm_(scores, v)
        state.addcmul_(decay.fading, state).baddbmm_((k * decay.until).transpose(1, 2), v)
        return o.view(count, heads, tokens, dim).transpose(1, 2).reshape(count * tokens, -1)


class _Experts:
    """Every row through every expert."""

    def __init__(self, experts: Experts) -> None:
        assert experts.gate is not None
        self._gate, self._top_k = experts.gate.float().t(), experts.top_k
        self._w13, self._w2 = experts.w13, experts.w2

    @staticmethod
    def fits(experts: Experts) -> bool:
        """Whether that is less than choosing: few experts, and small ones or in 8 bits."""
        w13, w2 = experts.w13, experts.w2
        if experts.gate is None or len(experts.gate) > _FEW_EXPERTS:
            return False
        if isinstance(w13, Int8Weight) and isinstance(w2, Int8Weight):
            return True
        return isinstance(w13, Tensor) and isinstance(w2, Tensor) and w13[0].numel() <= _SMALL

    def __call__(self, n: Tensor) -> Tensor:
        """n [R, H] → [R, H]."""
        values, ids = torch.mm(n, self._gate).topk(self._top_k)
        weights = n.new_zeros(len(n), self._gate.shape[1]).scatter_(1, ids, values.softmax(-1))
        w13, w2 = self._w13, self._w2
        if isinstance(w13, Int8Weight):
            assert isinstance(w2, Int8Weight)
            return _in_8_bits(n, w13, w2, weights)
        assert isinstance(w13, Tensor) and isinstance(w2, Tensor)
        return _plain(n, w13, w2, weights)


def _plain(n: Tensor, w13: Tensor, w2: Tensor, weights: Tensor) -> Tensor:
    """n [R, H], w13 [E, 2F, H], w2 [E, H, F], weights [R, E] → [R, H]."""
    gate, up = torch.bmm(n.expand(len(w13), -1, -1), w13.transpose(1, 2)).chunk(2, -1)  # [E, R, F]
    inside = F.silu(gate).mul_(up).mul_(weights.t()[..., None])
    return torch.bmm(inside, w2.transpose(1, 2)).sum(0)


def _in_8_bits(n: Tensor, w13: Int8Weight, w2: Int8Weight, weights: Tensor) -> Tensor:
    """The same; rows are rounded expert by expert, so that a row's result is that of its own experts alone."""
    experts, _, inner = w2.shape
    x = Rounded.of(n)
    h = x.linear(Int8Weight(w13.values.flatten(0, 1), w13.scales.flatten()))
    gate, up = h.view(-1, experts, 2, inner).unbind(2)  # [R, E, F]
    inside = Rounded.of((F.silu(gate) * up).transpose(0, 1).reshape(-1, inner))
    scales = (inside.scales.view(experts, -1, 1) * weights.t()[..., None]) * w2.scales[:, None]  # [E, R, H]
    rows = inside.values.view(experts, -1, inner)
    sums = torch.stack([_int_mm(x, w.t()) for x, w in zip(rows.unbind(0), w2.values.unbind(0), strict=True)])
    return (sums * scales).sum(0)


class FewTokens:
    """The pass of a model whose layers are `layers`. Takes what `takes` says, and leaves the pools as the packed pass
    does."""

    def __init__(self, config: ModelConfig, embed: Tensor, layers: Sequence[Layer]) -> None:
        self._config, self._embed = config, embed
        self._layers = [
            (
                layer.input_norm,
                _Lightning(layer.attention) if isinstance(layer.attention, LightningAttention) else layer.attention,
                layer.post_norm,
                _Experts(layer.experts) if _Experts.fits(layer.experts) else layer.experts,
                layer.alpha,
                layer.beta,
            )
            for layer in layers
        ]

    @staticmethod
    def takes(batch: Batch) -> bool:
        """Whether the batch is small enough, and no states are to be brought out of it."""
        return 0 < len(batch.ids) <= MOST and not batch.export

    def __call__(self, batch: Batch, states: StatePool, pages: PagePool) -> Tensor:
        """The last hidden rows, [R, H], before the last norm."""
        c, eps = self._config, self._config.rms_norm_eps
        turn: Rotation | None = None
        h = self._embed[batch.ids]
        rings: list[Tensor] = []
        softmax = 0
        for input_norm, attention, post_norm, experts, alpha, beta in self._layers:
            n = rms_norm(h, input_norm, eps)
            if isinstance(attention, _Lightning):
                a, ring = attention(n, batch, states.states[len(rings)])
                rings.append(ring)
            else:
                turn = turn or Rotation.at(batch.positions, c.rotary_dim, c.rope_theta)
                a = attention(n, batch, turn, pages.kv[softmax])
                softmax += 1
            n = rms_norm(_residual(n, a, alpha, beta), post_norm, eps)
            h = _residual(n, experts(n), c.mlp_alpha, c.mlp_beta)
        if rings:
            states.ring.kv.flatten(1, 2).index_copy_(1, batch.ring_rows, torch.stack(rings))
        batch.remember(states.ring.hidden, h)
        return h


def _residual(skip: Tensor, branch: Tensor, alpha: float, beta: float) -> Tensor:
    """alpha * skip + beta * branch."""
    return torch.add(branch if beta == 1 else branch.mul_(beta), skip, alpha=alpha)


def _integers(x: Tensor) -> list[int]:
    return x.tolist()  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]

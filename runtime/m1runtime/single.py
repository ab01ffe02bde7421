"""One token of one sequence on a CPU: the model's equations in the fewest operations.

A token's products read every weight once, and what an operation costs beside that is most of the rest. So numbers that
the packed pass keeps in tensors are Python's here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from m1kernels.quant import Int8Weight, Weight, linear
from m1kernels.rotary import Rotation
from m1runtime.cache import PagePool, StatePool
from m1runtime.config import ModelConfig
from m1runtime.layers import Batch, Experts, LightningAttention
from m1runtime.ring import ROWS

if TYPE_CHECKING:
    from m1runtime.model import Layer

_TINY = 1e-30
_int_mm = torch._int_mm  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
_ZERO = torch.zeros(())


class _Input:
    """A row [1, C] fp32, and in 8 bits once a map wants it so."""

    __slots__ = ("rounded", "row", "scale")

    def __init__(self, row: Tensor) -> None:
        self.row = row
        self.rounded: Tensor | None = None
        self.scale = 0.0

    def in_8_bits(self) -> tuple[Tensor, float]:
        """As `m1kernels.quant.Rounded` rounds it: values [1, C] int8 and their scale."""
        if self.rounded is None:
            low, high = torch.aminmax(self.row)
            self.scale = max(high.item(), -low.item(), _TINY) / 127
            self.rounded = torch.div(self.row, self.scale).round_().char()
        return self.rounded, self.scale


class _Map(Protocol):
    """A linear map of one row."""

    def __call__(self, x: _Input) -> Tensor:
        """[1, R]."""
        ...


class _Plain:
    def __init__(self, weight: Tensor) -> None:
        self._weight = weight.t()

    def __call__(self, x: _Input) -> Tensor:
        return torch.mm(x.row, self._weight)


class _Int8:
    def __init__(self, weight: Int8Weight) -> None:
        self._values, self._scales = weight.values.t(), weight.scales[None]

    def __call__(self, x: _Input) -> Tensor:
        values, scale = x.in_8_bits()
        return torch.addcmul(_ZERO, _int_mm(values, self._values), self._scales, value=scale)


class _Other:
    def __init__(self, weight: Weight) -> None:
        self._weight = weight

    def __call__(self, x: _Input) -> Tensor:
        return linear(x.row, self._weight)


def _map(weight: Weight) -> _Map:
    if isinstance(weight, Tensor):
        return _Plain(weight)
    return _Int8(weight) if isinstance(weight, Int8Weight) else _Other(weight)


def _normalised(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`m1kernels.norm.rms_norm` of one row [1, C]."""
    row = x.view(-1)
    return torch.addcmul(_ZERO, x, weight, value=1 / math.sqrt(torch.dot(row, row).item() / row.numel() + eps))


def _residual(skip: Tensor, branch: Tensor, alpha: float, beta: float) -> Tensor:
    """alpha * skip + beta * branch. Never by the product that makes the branch: sums begun at the skip round more."""
    return torch.add(branch if beta == 1 else branch.mul_(beta), skip, alpha=alpha)


class _Lightning:
    def __init__(self, attention: LightningAttention) -> None:
        self._qkv, self._gate, self._out = _map(attention.qkv), _map(attention.gate), _map(attention.out)
        self._norm, self._fading, self._eps = attention.norm[None], attention.fading, attention.eps
        self._heads = attention.heads

    def __call__(self, n: Tensor, state: Tensor, ring: Tensor) -> Tensor:
        """n [1, H], a state [A, D, D] and a ring's row [A, 2, D], both written in place → [1, H]."""
        x = _Input(n)
        raw = self._qkv(x)
        heads = raw.view(self._heads, 3, -1)
        ring.copy_(heads[:, 1:])
        q, k, v = F.silu(heads).split_with_sizes((1, 1, 1), 1)  # [A, 1, D] each
        state.addcmul_(self._fading, state).addcmul_(k.transpose(1, 2), v)
        o = torch.bmm(q, state).view(1, -1)
        gate = torch.sigmoid(self._gate(x)).mul_(self._norm)
        return self._out(_Input(_normalised(o, gate, self._eps)))


class _Experts:
    def __init__(self, experts: Experts) -> None:
        self._gate = None if experts.gate is None else experts.gate.float().t()
        self._top_k = experts.top_k
        self._maps = [(_map(experts.w13[i]), _map(experts.w2[i])) for i in range(experts.w13.shape[0])]

    def __call__(self, n: Tensor) -> Tensor:
        """n [1, H] → [1, H]."""
        x = _Input(n)
        total: Tensor | None = None
        for expert, weight in self._route(n):
            w13, w2 = self._maps[expert]
            gate, up = w13(x).chunk(2, -1)
            part = w2(_Input(F.silu(gate).mul_(up)))
            total = part.mul_(weight) if total is None else total.add_(part, alpha=weight)
        assert total is not None
        return total

    def _route(self, n: Tensor) -> list[tuple[int, float]]:
        """`m1kernels.moe.route` of one token."""
        if self._gate is None:
            return [(0, 1.0)]
        values, ids = torch.mm(n, self._gate).topk(self._top_k)
        chosen = _numbers(values)
        weights = [math.exp(value - chosen[0]) for value in chosen]
        whole = sum(weights)
        return list(zip(_integers(ids), (weight / whole for weight in weights), strict=True))


def _numbers(x: Tensor) -> list[float]:
    return x.view(-1).tolist()  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


def _integers(x: Tensor) -> list[int]:
    return x.view(-1).tolist()  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


class OneToken:
    """The pass of a model whose layers are `layers`. Takes what `accepts` says, and leaves the pools as the packed pass
    does."""

    def __init__(self, config: ModelConfig, embed: Tensor, layers: Sequence[Layer]) -> None:
        self._config, self._embed = config, embed
        self._layers = [
            (
                layer.input_norm[None],
                _Lightning(layer.attention) if isinstance(layer.attention, LightningAttention) else layer.attention,
                layer.post_norm[None],
                _Experts(layer.experts),
                layer.alpha,
                layer.beta,
            )
            for layer in layers
        ]

    @staticmethod
    def fits(config: ModelConfig, embed: Tensor) -> bool:
        """Whether there is such a pass: on a CPU, in fp32, with DeepNorm's residuals and no shared expert."""
        shared = config.shared_intermediate_size
        return embed.is_cpu and embed.dtype == torch.float32 and config.postnorm and not shared

    def __call__(self, batch: Batch, states: StatePool, pages: PagePool) -> Tensor:
        """The last hidden row, [1, H], before the last norm."""
        c, eps = self._config, self._config.rms_norm_eps
        slot, row = int(batch.slots), int(batch.ring_rows) % ROWS
        own, ring = states.states[:, slot].unbind(0), states.ring.kv[:, slot, row].unbind(0)
        turn: Rotation | None = None
        h = self._embed[batch.ids]
        lightning = softmax = 0
        for input_norm, attention, post_norm, experts, alpha, beta in self._layers:
            n = _normalised(h, input_norm, eps)
            if isinstance(attention, _Lightning):
                a = attention(n, own[lightning], ring[lightning])
                lightning += 1
            else:
                turn = turn or Rotation.at(batch.positions, c.rotary_dim, c.rope_theta)
                a = attention(n, batch, turn, pages.kv[softmax])
                softmax += 1
            n = _normalised(_residual(n, a, alpha, beta), post_norm, eps)
            h = _residual(n, experts(n), c.mlp_alpha, c.mlp_beta)
        states.ring.hidden[slot, row].copy_(h[0])
        return h

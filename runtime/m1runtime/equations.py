"""A layer's equations for one token, as plain operations of one row: what `compiled.py` has compiled.

Weights come as the tensors they are made of (`m1kernels.quant.parts`). A product is a sum over a matrix times a row,
which is what a compiler makes one loop of; an int8 matrix meets a row rounded to int8, as `m1kernels.quant` does it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from m1kernels.quant import Int4Weight
from m1runtime.config import ModelConfig

Parts = tuple[Tensor, ...]
Mixture = tuple[Tensor | None, Parts, Parts, Tensor | None, tuple[Parts, Parts] | None]
"""The router's gate [E, H], w13 [E, 2F, H], w2 [E, H, F], and the shared expert's coefficient [1, H], w13 and w2."""

_TINY = 1e-30


@dataclass(frozen=True, slots=True)
class Constants:
    """What a layer of one kind computes with besides tensors."""

    heads: int
    kv_heads: int
    dim: int
    top_k: int
    eps: float
    inner_eps: float
    postnorm: bool
    alpha: float
    beta: float
    mlp_alpha: float
    mlp_beta: float

    @classmethod
    def of(cls, c: ModelConfig, alpha: float, beta: float) -> Constants:
        """alpha, beta: of the layer's attention."""
        return cls(
            heads=c.num_attention_heads,
            kv_heads=c.num_key_value_heads,
            dim=c.head_dim,
            top_k=c.num_experts_per_tok,
            eps=c.rms_norm_eps,
            inner_eps=c.inner_norm_eps,
            postnorm=c.postnorm,
            alpha=alpha,
            beta=beta,
            mlp_alpha=c.mlp_alpha,
            mlp_beta=c.mlp_beta,
        )


def lightning(
    c: Constants,
    h: Tensor,
    state: Tensor,
    ring: Tensor,
    input_norm: Tensor,
    qkv: Parts,
    gate: Parts,
    out: Parts,
    norm: Tensor,
    fading: Tensor,
    post_norm: Tensor,
    mixture: Mixture,
) -> Tensor:
    """h [H], state [A, D, D] and a ring's row [A, 2, D], both written in place → h [H] after the layer."""
    n = _rms(h, input_norm, c.eps)
    heads = _product(n, qkv).view(c.heads, 3, c.dim)
    ring.copy_(heads[:, 1:])
    q, k, v = F.silu(heads).unbind(1)
    new = state + fading * state + k[:, :, None] * v[:, None]
    state.copy_(new)
    o = (q[:, :, None] * new).sum(1).view(-1)
    o = _rms(o, norm, c.inner_eps) * torch.sigmoid(_product(n, gate))
    return _rest(c, n if c.postnorm else h, _product(o, out), post_norm, mixture)


def before_attention(
    c: Constants, h: Tensor, cos: Tensor, sin: Tensor, input_norm: Tensor, qkv: Parts
) -> tuple[Tensor, Tensor, Tensor]:
    """h [H], cos and sin [1, rotary_dim / 2] → the residual's skip [H], q [A, D], and key and value [2, K, D]."""
    n = _rms(h, input_norm, c.eps)
    heads = _product(n, qkv).view(c.heads + 2 * c.kv_heads, c.dim)
    turning, half = heads[: c.heads + c.kv_heads], cos.shape[-1]
    first, second = turning[:, :half], turning[:, half : 2 * half]
    turned = torch.cat((first * cos - second * sin, second * cos + first * sin, turning[:, 2 * half :]), -1)
    kv = torch.stack((turned[c.heads :], heads[c.heads + c.kv_heads :]))
    return (n if c.postnorm else h).clone(), turned[: c.heads].contiguous(), kv


def after_attention(c: Constants, skip: Tensor, o: Tensor, out: Parts, post_norm: Tensor, mixture: Mixture) -> Tensor:
    """skip [H], o [A * D] → h [H] after the layer."""
    return _rest(c, skip, _product(o, out), post_norm, mixture)


def head(eps: float, h: Tensor, norm: Tensor, weight: Tensor, unused: Tensor | None) -> Tensor:
    """h [H] → logits [1, V] fp32."""
    logits = _product(_rms(h, norm, eps), (weight,))
    return (logits if unused is None else logits.masked_fill(unused, float("-inf")))[None]


def _rest(c: Constants, skip: Tensor, attended: Tensor, post_norm: Tensor, mixture: Mixture) -> Tensor:
    h = c.alpha * skip + c.beta * attended
    n = _rms(h, post_norm, c.eps)
    return c.mlp_alpha * (n if c.postnorm else h) + c.mlp_beta * _experts(c.top_k, n, mixture)


def _experts(top_k: int, n: Tensor, mixture: Mixture) -> Tensor:
    gate, w13, w2, coefficient, shared = mixture
    if gate is None:
        routed = _swiglu(n, tuple(part[0] for part in w13), tuple(part[0] for part in w2))
    else:
        ids, weights = _route(top_k, _product(n, (gate,)))
        each = _swiglu(n.expand(top_k, -1), tuple(part[ids] for part in w13), tuple(part[ids] for part in w2))
        routed = (each * weights[:, None]).sum(0)
    if shared is None or coefficient is None:
        return routed
    share = torch.sigmoid(_product(n, (coefficient,)))
    return routed * (1 - share) + _swiglu(n, *shared) * share


def _route(top_k: int, logits: Tensor) -> tuple[Tensor, Tensor]:
    """`m1kernels.moe.route` of one token, the largest taken out one after the other: a sort would end the loop nest."""
    places = torch.arange(len(logits), device=logits.device)
    ids: list[Tensor] = []
    chosen: list[Tensor] = []
    for _ in range(top_k):
        found = logits.argmax(0, keepdim=True)
        ids.append(found)
        chosen.append(logits.amax(0, keepdim=True))
        logits = logits.masked_fill(places == found, float("-inf"))
    return torch.cat(ids), torch.cat(chosen).softmax(0)


def _swiglu(n: Tensor, w13: Parts, w2: Parts) -> Tensor:
    gate, up = _product(n, w13).chunk(2, -1)
    return _product(F.silu(gate) * up, w2)


def _product(x: Tensor, weight: Parts) -> Tensor:
    """x [..., C], weight [..., R, C] → [..., R]."""
    values = weight[0]
    if values.dtype == torch.int8:
        scale = x.abs().amax(-1, keepdim=True).clamp(min=_TINY) / 127
        whole = torch.round(x / scale)  # whole numbers: their products with int8 lose nothing in fp32
        return (values.float() * whole[..., None, :]).sum(-1) * weight[1] * scale
    if values.dtype == torch.uint8:
        values = Int4Weight(values, weight[1]).dequantize()
    return (values.float() * x[..., None, :]).sum(-1)


def _rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight

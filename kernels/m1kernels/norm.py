"""RMS norm, alone and with the sigmoid output gate of a lightning layer."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

_length: Callable[..., Tensor] = torch.linalg.vector_norm  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """weight * x / sqrt(mean(x^2) + eps) over the last dimension (arXiv 1910.07467), fp32 inside.

    x: [..., C]; weight: [C]; returns x's shape and dtype.
    """
    return _normalise(x, weight, eps).to(x.dtype)


def rms_norm_gate(x: Tensor, weight: Tensor, gate: Tensor, eps: float, mean_square: Tensor | None = None) -> Tensor:
    """sigmoid(gate) * rms_norm(x), fp32 inside: a lightning layer's output norm spans all heads' channels at once.

    x: [..., C]; weight: [C]; gate: x's shape, before the sigmoid; returns x's shape and dtype.
    mean_square: [..., 1] fp32, of all channels where x has a share of them; None is that of x.
    """
    return (_normalise(x, weight, eps, mean_square) * torch.sigmoid(gate.float())).to(x.dtype)


def _normalise(x: Tensor, weight: Tensor, eps: float, mean_square: Tensor | None = None) -> Tensor:
    x = x.float()
    if mean_square is not None:
        return x * torch.rsqrt(mean_square + eps) * weight.float()
    length = _length(x, dim=-1, keepdim=True)  # a tenth of the time that mean() takes on a CPU
    return x * torch.addcmul(_constant(eps, x.device), length, length, value=1 / x.shape[-1]).rsqrt() * weight.float()


@cache
def _constant(value: float, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(value, device=device)

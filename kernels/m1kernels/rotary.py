"""Partial rotary position embedding."""

from __future__ import annotations

import torch
from torch import Tensor


def apply_rotary(x: Tensor, positions: Tensor, rotary_dim: int, theta: float) -> Tensor:
    """Rotates the pairs (x[i], x[i + rotary_dim/2]) of the first rotary_dim dims by position * theta^(-2i/rotary_dim).

    x: [T, h, D]; positions: [T] int64, absolute; dims from rotary_dim up pass through. Returns x's shape and dtype.
    Angles are float64, so position 1M keeps full precision; the rotation is fp32. RoFormer (arXiv 2104.09864) with
    GPT-NeoX's pairs.
    Raises ValueError when rotary_dim is odd, negative or beyond D.
    """
    if rotary_dim % 2 or not 0 <= rotary_dim <= x.shape[-1]:
        raise ValueError(f"rotary_dim must be even and at most the head dim {x.shape[-1]}, got {rotary_dim}")
    half = rotary_dim // 2
    angles = positions.double()[:, None] * inverse_frequencies(rotary_dim, theta).to(x.device)
    cos, sin = angles.cos().float()[:, None], angles.sin().float()[:, None]
    first, second, rest = x[..., :half].float(), x[..., half:rotary_dim].float(), x[..., rotary_dim:]
    turned = torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
    return torch.cat([turned.to(x.dtype), rest], -1)


def inverse_frequencies(rotary_dim: int, theta: float) -> Tensor:
    """theta^(-2i/rotary_dim) for i < rotary_dim/2, [rotary_dim/2] float64 on the CPU."""
    exponents = torch.arange(0, rotary_dim, 2, dtype=torch.float64)
    return theta ** (-exponents / max(rotary_dim, 1))

"""Partial rotary position embedding."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

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
    return Rotation.at(positions, rotary_dim, theta)(x)


@dataclass(frozen=True, slots=True, eq=False)
class Rotation:
    """The turn at T positions, for every layer alike; cos, sin: [T, 1, rotary_dim / 2] fp32."""

    cos: Tensor
    sin: Tensor

    @classmethod
    def at(cls, positions: Tensor, rotary_dim: int, theta: float) -> Rotation:
        """positions: [T] int64, absolute."""
        angles = positions.double()[:, None] * inverse_frequencies(rotary_dim, theta, positions.device)
        return cls(angles.cos().float()[:, None], angles.sin().float()[:, None])

    def __call__(self, x: Tensor) -> Tensor:
        """x [T, h, D], turned; its shape and dtype."""
        half = self.cos.shape[-1]
        first, second, rest = x[..., :half].float(), x[..., half : 2 * half].float(), x[..., 2 * half :]
        turned = (first * self.cos - second * self.sin, second * self.cos + first * self.sin)
        return torch.cat([part.to(x.dtype) for part in turned] + [rest], -1)


@cache
def inverse_frequencies(rotary_dim: int, theta: float, device: torch.device | None = None) -> Tensor:
    """theta^(-2i/rotary_dim) for i < rotary_dim/2, [rotary_dim/2] float64 on the CPU unless a device is given."""
    with torch.inference_mode(False):
        exponents = torch.arange(0, rotary_dim, 2, dtype=torch.float64)
        return (theta ** (-exponents / max(rotary_dim, 1))).to(device)

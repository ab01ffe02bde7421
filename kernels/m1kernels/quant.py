"""Weights of 8 or 4 bits, and the linear map over plain and quantised weights alike.

    int8: one scale a row, absmax / 127                        w[r, c] = scale[r] * value[r, c]
    int4: one scale for `group` columns of a row, absmax / 7   w[r, c] = scale[r, c // group] * value[r, c]

Both are symmetric. On a CPU an int8 weight meets activations rounded to int8 too, one scale a token (dynamic
quantisation, as in LLM.int8(), arXiv 2208.07339, without its outlier columns): sums of integers are exact, so a token's
result depends on nothing beside it. Everywhere else the weight is dequantised and multiplied in the activations' dtype.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

GROUP = 128
_TINY = 1e-30
_MANY_ROWS = 16  # from here on oneDNN's product beats BLAS's, by 5 to 30 %
_LARGE = 1 << 19  # numbers of a matrix from which on it does so for a few rows, too
_int_mm = torch._int_mm  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
_onednn_linear: Any = torch.ops.mkldnn._linear_pointwise


@dataclass(frozen=True, slots=True, eq=False)
class Int8Weight:
    """values: [..., R, C] int8; scales: [..., R] fp32."""

    values: Tensor
    scales: Tensor

    @property
    def shape(self) -> torch.Size:
        """That of the plain weight, [..., R, C]."""
        return self.values.shape

    def __getitem__(self, index: Any) -> Int8Weight:
        """Experts or rows: an index into all dimensions but the columns."""
        return Int8Weight(self.values[index], self.scales[index])

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The plain weight, [..., R, C]; products are rounded once, from fp32."""
        return (self.values * self.scales[..., None]).to(dtype)

    def fill(self, weight: Tensor) -> None:
        """Quantises a plain weight of the same shape into this one's memory."""
        weight = weight.to(self.scales)
        scales = _scales(weight, 127)
        self.scales.copy_(scales)
        self.values.copy_((weight / scales[..., None]).round_())


@dataclass(frozen=True, slots=True, eq=False)
class Int4Weight:
    """values: [..., R, C/2] uint8, column c < C/2 in the low and c + C/2 in the high half; scales: [..., R, G] fp32."""

    values: Tensor
    scales: Tensor

    @property
    def shape(self) -> torch.Size:
        """That of the plain weight, [..., R, C]."""
        return torch.Size((*self.values.shape[:-1], 2 * self.values.shape[-1]))

    def __getitem__(self, index: Any) -> Int4Weight:
        """Experts or rows: an index into all dimensions but the columns."""
        return Int4Weight(self.values[index], self.scales[index])

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The plain weight, [..., R, C]; products are rounded once, from fp32."""
        values = torch.cat([self.values & 15, self.values >> 4], -1).to(torch.int8).sub_(8)
        groups = values.view(*self.scales.shape, -1)
        return (groups * self.scales[..., None]).view(values.shape).to(dtype)

    def fill(self, weight: Tensor) -> None:
        """Quantises a plain weight of the same shape into this one's memory."""
        groups = weight.to(self.scales).reshape(*self.scales.shape, -1)
        scales = _scales(groups, 7)
        self.scales.copy_(scales)
        values = (groups / scales[..., None]).round_().add_(8).to(torch.uint8).view(weight.shape)
        low, high = values.chunk(2, -1)
        self.values.copy_(low | high << 4)


QuantizedWeight = Int8Weight | Int4Weight
Weight = Tensor | QuantizedWeight
"""[..., R, C] for an output of R and an input of C channels; leading dimensions are experts."""


def linear(x: Tensor, weight: Weight) -> Tensor:
    """x [T, C], weight [R, C] → x weight^T, [T, R] in x's dtype."""
    return linears(x, weight)[0]


def linears(x: Tensor, *weights: Weight) -> list[Tensor]:
    """`linear` of several weights on one x, which is rounded once where they are int8."""
    rounded = Rounded.of(x) if x.is_cpu and any(isinstance(weight, Int8Weight) for weight in weights) else None
    return [
        rounded.linear(weight) if rounded and isinstance(weight, Int8Weight) else plain_linear(x, weight)
        for weight in weights
    ]


def plain_linear(x: Tensor, weight: Weight) -> Tensor:
    """The same without rounding x, by a plain or dequantised weight."""
    if not isinstance(weight, Tensor):
        weight = weight.dequantize(x.dtype)
    few = 2 if weight.numel() >= _LARGE else _MANY_ROWS
    if x.is_cpu and len(x) >= few and x.dtype == torch.float32 and not torch.is_grad_enabled():
        rows = len(x)
        padded = F.pad(x, (0, 0, 0, _rows(rows) - rows))
        return _onednn_linear(padded, weight, None, "none", [], "")[:rows]
    return torch.mm(x, weight.t()) if x.dim() == 2 else F.linear(x, weight)  # mm is what linear calls five deep


def _rows(rows: int) -> int:
    """Rows of a product: few sizes, since oneDNN keeps code of 0.6 MiB for each of the latest 1024 shapes."""
    step = 16 if rows <= 128 else 64 if rows <= 1024 else 256
    return -(-rows // step) * step if rows > 8 else rows


@dataclass(frozen=True, slots=True, eq=False)
class Rounded:
    """Activations in int8: values [T, C] int8, scales [T, 1] fp32."""

    values: Tensor
    scales: Tensor

    @classmethod
    def of(cls, x: Tensor) -> Rounded:
        """Rounds each row by its own absmax / 127, so that no row depends on the others."""
        x = x.float()
        scales = _scales(x, 127)[..., None]
        return cls((x / scales).round_().to(torch.int8), scales)

    def linear(self, weight: Int8Weight) -> Tensor:
        """x weight^T, [T, R] fp32."""
        return (self.sums(weight.values) * self.scales).mul_(weight.scales)

    def sums(self, values: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """What rows start..stop-1 make of an int8 matrix [R, C]: exact sums, [stop - start, R] int32."""
        rows = self.values if stop is None else self.values[start:stop]
        return _int_mm(rows, values.t())


def plain(weight: Weight) -> Tensor:
    """A weight that is never quantised. Raises TypeError when it is."""
    if not isinstance(weight, Tensor):
        raise TypeError(f"a plain tensor is wanted here, got a {type(weight).__name__} of {tuple(weight.shape)}")
    return weight


def parts(weight: Weight) -> tuple[Tensor, ...]:
    """The tensors that a weight is made of."""
    return (weight,) if isinstance(weight, Tensor) else (weight.values, weight.scales)


def empty_quantized(
    shape: tuple[int, ...],
    bits: int,
    device: torch.device | str = "cpu",
    *,
    empty: Callable[[tuple[int, ...], torch.dtype], Tensor] | None = None,
) -> QuantizedWeight:
    """Memory for a weight of [..., R, C] in 8 or 4 bits; `fill` it, or parts of it. empty: where to take it from.

    Raises ValueError for other widths, and for 4 bits of an odd number of columns.
    """
    *rows, columns = shape

    def memory(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device) if empty is None else empty(shape, dtype)

    if bits == 8:
        return Int8Weight(memory(shape, torch.int8), memory(tuple(rows), torch.float32))
    if bits != 4 or columns % 2:
        raise ValueError(f"weights have 8 bits, or 4 for an even number of columns; got {bits} for {columns} columns")
    values = memory((*rows, columns // 2), torch.uint8)
    return Int4Weight(values, memory((*rows, columns // group_size(columns)), torch.float32))


def quantize(weight: Tensor, bits: int) -> QuantizedWeight:
    """A plain weight [..., R, C] in 8 or 4 bits. Raises ValueError as `empty_quantized` does."""
    made = empty_quantized(tuple(weight.shape), bits, weight.device)
    made.fill(weight)
    return made


def group_size(columns: int) -> int:
    """Columns that share an int4 scale: 128, or the largest smaller power of two that divides them."""
    return columns & -columns if columns % GROUP else GROUP


def _scales(x: Tensor, largest: int) -> Tensor:
    """absmax / largest over the last dimension, and no zero."""
    return x.abs().amax(-1).clamp_(min=_TINY).div_(largest)

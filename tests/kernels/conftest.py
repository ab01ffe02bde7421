"""The oracle of lightning attention, and the packed inputs that its tests share."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from torch import Tensor

torch.set_num_threads(1)


@dataclass(frozen=True)
class Oracle:
    o: Tensor
    state: Tensor
    after: Tensor  # [T, A, D, D], the state after every token


@dataclass(frozen=True)
class Packed:
    q: Tensor
    k: Tensor
    v: Tensor
    slopes: Tensor
    cu: list[int]
    initial: Tensor

    def oracle(self) -> Oracle:
        return recurrence(self.q, self.k, self.v, self.slopes, self.cu, self.initial)


def recurrence(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor, cu: list[int], initial: Tensor) -> Oracle:
    """Token by token in float64: S = exp(-s) S + k^T v; o = q S."""
    q, k, v, decay = q.double(), k.double(), v.double(), torch.exp(-slopes.double())[:, None, None]
    outputs, after, last = [], [], []
    for n, (a, b) in enumerate(pairwise(cu)):
        state = initial[n].double()
        for t in range(a, b):
            state = decay * state + k[t][:, :, None] * v[t][:, None, :]
            outputs.append((q[t][:, None, :] @ state)[:, 0])
            after.append(state)
        last.append(state)
    empty = initial.double()[:0]
    return Oracle(torch.stack(outputs) if outputs else q, torch.stack(last), torch.stack(after) if after else empty)


def packed(
    lengths: list[int], heads: int = 2, dim: int = 16, seed: int = 0, dtype: torch.dtype = torch.float32
) -> Packed:
    generator = torch.Generator().manual_seed(seed)
    cu = [0]
    for length in lengths:
        cu.append(cu[-1] + length)
    q, k, v = (torch.randn(cu[-1], heads, dim, generator=generator) for _ in range(3))
    slopes = torch.linspace(0.917, 5e-5, heads)
    initial = torch.randn(len(lengths), heads, dim, dim, generator=generator)
    return Packed((q / dim**0.5).to(dtype), (k / dim**0.5).to(dtype), v.to(dtype), slopes, cu, initial)


def error(actual: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the expected tensor's largest entry."""
    if not expected.numel():
        return 0.0
    return float((actual.double() - expected).abs().max() / expected.abs().max().clamp(min=1e-9))


@pytest.fixture(scope="session")
def make_packed():
    return packed


@pytest.fixture(scope="session")
def relative_error():
    return error

"""Memory for weights on a CPU.

A decode step reads all of them once. In pages of 4 KiB that is a miss of the address cache every few hundred numbers, a
sixth of the time; so they lie together in huge pages, where the system gives some.
"""

from __future__ import annotations

import math
import mmap

import torch
from torch import Tensor

_HUGE = 2 << 20
_LINE = 64
_ADVICE: int | None = getattr(mmap, "MADV_HUGEPAGE", None)


class Arena:
    """`size` bytes to be given out once; what it cannot give is allocated alone."""

    def __init__(self, size: int) -> None:
        self._memory: Tensor | None = None
        self._used = 0
        if _ADVICE is None or size < _HUGE:
            return
        pages = mmap.mmap(-1, size + 2 * _HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        try:
            pages.madvise(_ADVICE)
        except OSError:
            return  # a kernel without huge pages
        self._memory = torch.frombuffer(pages, dtype=torch.uint8)
        self._used = -self._memory.data_ptr() % _HUGE

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """An uninitialised tensor."""
        size = math.prod(shape) * dtype.itemsize
        start = -(-self._used // _LINE) * _LINE
        if self._memory is None or start + size > len(self._memory):
            return torch.empty(shape, dtype=dtype)
        self._used = start + size
        return self._memory[start : start + size].view(dtype).view(shape)

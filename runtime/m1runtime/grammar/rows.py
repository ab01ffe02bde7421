"""Sets of tokens as masks, and the memory they are written to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

READY = 256

Bits: TypeAlias = NDArray[np.uint8]
"""One bit a token, least significant first: [4 * words] bytes."""


@dataclass(frozen=True, eq=False)
class Block:
    """A set of tokens, not to be changed."""

    bits: Bits

    @classmethod
    def of(cls, mask: Tensor) -> Block:
        """That of a mask int32 [words]."""
        return cls(mask.numpy().view(np.uint8))

    @cached_property
    def row(self) -> Tensor:
        """int32 [words], the same memory."""
        return torch.frombuffer(self.bits, dtype=torch.int32)

    @cached_property
    def any(self) -> bool:
        """Whether it holds a token."""
        return bool(self.bits.any())

    def without(self, tokens: Iterable[int]) -> Block:
        """The rest of it."""
        bits = self.bits.copy()
        for token in tokens:
            bits[token >> 3] &= 255 ^ 1 << (token & 7)
        return Block(bits)


class Rows:
    """Makes blocks of one vocabulary; the first of them in memory that has been touched before.

    Fresh pages from the system take several times as long as the mask that is written to them.
    """

    def __init__(self, words: int) -> None:
        self._size = 4 * words
        ready = np.empty((READY, self._size), dtype=np.uint8)
        ready.fill(0)
        self._ready: list[Bits] = list(ready)

    def block(self, tokens: Sequence[int], blocks: Sequence[Block] = ()) -> Block:
        """These tokens and all those of `blocks`."""
        try:
            bits = self._ready.pop()
        except IndexError:
            bits = np.zeros(self._size, dtype=np.uint8)
        for block in blocks:
            np.bitwise_or(bits, block.bits, out=bits)
        if len(tokens) > 64:
            ids = np.asarray(tokens)
            np.bitwise_or.at(bits, ids >> 3, (1 << (ids & 7)).astype(np.uint8))
        else:
            raw = bits.data
            for token in tokens:
                raw[token >> 3] |= 1 << (token & 7)
        return Block(bits)

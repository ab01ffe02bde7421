"""The ranks that compute one model together, as its layers see them: sums and joins of what each has a share of."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
import torch.distributed
from torch import Tensor

dist: Any = torch.distributed


class Ranks:
    """A rank among `size`; this one is alone, so its share is the whole."""

    rank = 0
    size = 1

    def sum(self, x: Tensor) -> Tensor:
        """The sum of every rank's x, the same bits on each; x may be overwritten."""
        return x

    def join(self, x: Tensor, dim: int = -1) -> Tensor:
        """Every rank's x beside each other in a dimension, in the order of ranks."""
        return x


ALONE = Ranks()


class Group(Ranks):
    """Ranks in processes of their own: NCCL between GPUs, gloo between CPUs.

    A rank that is gone, or does not answer within `timeout` seconds, makes a sum or join raise RuntimeError.
    """

    def __init__(self, store: Any, rank: int, size: int, device: torch.device, timeout: float) -> None:
        self.rank, self.size, self.device = rank, size, device
        # Not the default group of torch.distributed: that one is the program's own, and there may be several engines.
        self._limit = limit = timedelta(seconds=timeout)
        self._orders = _gloo(dist.PrefixStore("orders", store), rank, size, _FOREVER)
        shares = dist.PrefixStore("shares", store)
        self._shares = _nccl(shares, rank, size, limit) if device.type == "cuda" else _gloo(shares, rank, size, limit)
        self._first = torch.zeros(_FIRST, dtype=torch.uint8)

    def sum(self, x: Tensor) -> Tensor:
        x = x.contiguous()
        self._shares.allreduce([x]).wait()
        return x

    def join(self, x: Tensor, dim: int = -1) -> Tensor:
        x = x.contiguous()
        parts = [torch.empty_like(x) for _ in range(self.size)]
        self._shares.allgather([parts], [x]).wait()
        return torch.cat(parts, dim)

    def order(self, text: bytes) -> None:
        """Rank 0 sends bytes to all others, who wait for it in `await_order` as long as it takes."""
        self._first[:8] = torch.tensor([len(text)]).view(torch.uint8)
        data = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        head = min(len(text), _FIRST - 8)
        self._first[8 : 8 + head] = data[:head]
        self._orders.broadcast(self._first, 0, self._limit).wait()
        if head < len(text):
            self._orders.broadcast(data[head:].clone(), 0, self._limit).wait()

    def await_order(self) -> bytes:
        """What rank 0 sends next."""
        self._orders.broadcast(self._first, 0, _FOREVER).wait()
        length = int(self._first[:8].view(torch.int64))
        head = min(length, _FIRST - 8)
        text = self._first[8 : 8 + head].numpy().tobytes()
        if head < length:
            rest = torch.empty(length - head, dtype=torch.uint8)
            self._orders.broadcast(rest, 0, self._limit).wait()
            text += rest.numpy().tobytes()
        return text


_FOREVER = timedelta(days=365)
_FIRST = 8192  # bytes of an order that go at once, with its length: an ordinary decode step


def _gloo(store: Any, rank: int, size: int, limit: timedelta) -> Any:
    return dist.ProcessGroupGloo(store, rank, size, limit)


def _nccl(store: Any, rank: int, size: int, limit: timedelta) -> Any:
    options = dist.ProcessGroupNCCL.Options()
    options._timeout = limit
    return dist.ProcessGroupNCCL(store, rank, size, options)

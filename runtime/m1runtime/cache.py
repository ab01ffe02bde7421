"""Where live sequences keep what they remember: lightning states by slot, softmax keys and values by page.

Pools grow when `Memory` says so; both hand out their lowest free places, so that the end can be given back.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import torch
from torch import Tensor

from m1runtime.config import ModelConfig
from m1runtime.ring import Ring, bytes_without


class StatePool:
    """fp32 lightning states, [layers, slots, A, D, D], and the ring of each slot's last tokens beside them.

    A slot belongs to one sequence and is zeroed when taken.
    """

    def __init__(
        self, config: ModelConfig, *, device: torch.device, dtype: torch.dtype = torch.float32, slots: int = 4
    ) -> None:
        heads, dim = config.num_attention_heads, config.head_dim
        self.states = torch.zeros(len(config.lightning_layers), slots, heads, dim, dim, device=device)
        self.ring = Ring(config, device=device, dtype=dtype, slots=slots)
        self._free = list(range(slots))

    @property
    def capacity(self) -> int:
        """Slots there are."""
        return self.states.shape[1]

    @property
    def used(self) -> int:
        """Slots given out."""
        return self.capacity - len(self._free)

    @property
    def free(self) -> int:
        """Slots to be had without growing."""
        return len(self._free)

    @property
    def bytes_per_state(self) -> int:
        """Bytes of one set of lightning states."""
        return bytes_without(self.states, 1)

    @property
    def bytes_per_slot(self) -> int:
        """Bytes of one sequence: its states, those its ring starts from, and the ring."""
        return 2 * self.bytes_per_state + self.ring.bytes_per_slot

    def take(self) -> int:
        """A zeroed slot. Raises IndexError when none is free."""
        if not self._free:
            raise IndexError("no free slot")
        slot = heapq.heappop(self._free)
        self.states[:, slot].zero_()
        return slot

    def release(self, slot: int) -> None:
        """Gives a slot back."""
        heapq.heappush(self._free, slot)

    def read(self, slot: int) -> Tensor:
        """A copy of one sequence's states, [layers, A, D, D]."""
        return self.states[:, slot].clone()

    def write(self, slot: int, state: Tensor | None) -> None:
        """Replaces one sequence's states; None is the empty sequence's, zero."""
        if state is None:
            self.states[:, slot].zero_()
        else:
            self.states[:, slot].copy_(state)

    def grow(self, slots: int) -> None:
        """Adds slots."""
        old = self.capacity
        self.states = _longer(self.states, 1, slots)
        self.ring.grow(slots)
        for slot in range(old, old + slots):
            heapq.heappush(self._free, slot)

    def shrink(self) -> bool:
        """Gives back the free slots at the end; whether there were any."""
        keep = _last_used(self._free, self.capacity)
        if keep == self.capacity:
            return False
        self.states = self.states[:, :keep].clone()
        self.ring.shrink(keep)
        self._free = [slot for slot in self._free if slot < keep]
        heapq.heapify(self._free)
        return True


class PagePool:
    """Keys and values of the softmax layers, [layers, 2, pages, page_size, K, D]; pages are shared until written."""

    def __init__(
        self, config: ModelConfig, *, device: torch.device, dtype: torch.dtype, page_size: int = 64, pages: int = 16
    ) -> None:
        layers, heads, dim = len(config.softmax_layers), config.num_key_value_heads, config.head_dim
        self.page_size = page_size
        self.kv = torch.zeros(layers, 2, pages, page_size, heads, dim, device=device, dtype=dtype)
        self._free = list(range(pages))
        self._owners = [0] * pages

    @property
    def capacity(self) -> int:
        """Pages there are."""
        return self.kv.shape[2]

    @property
    def used(self) -> int:
        """Pages given out; a shared page counts once."""
        return self.capacity - len(self._free)

    @property
    def free(self) -> int:
        """Pages to be had without growing."""
        return len(self._free)

    @property
    def bytes_per_page(self) -> int:
        """Bytes of one page over all softmax layers."""
        return bytes_without(self.kv, 2)

    def pages(self, length: int) -> int:
        """Pages of so many positions."""
        return -(-length // self.page_size)

    def share(self, table: Sequence[int]) -> list[int]:
        """The same pages for one more owner."""
        for page in table:
            self._owners[page] += 1
        return list(table)

    def release(self, table: Sequence[int]) -> None:
        """Gives up one owner's hold on pages; the last one frees them."""
        for page in table:
            self._owners[page] -= 1
            if not self._owners[page]:
                heapq.heappush(self._free, page)

    def alone(self, table: Sequence[int]) -> int:
        """How many of the pages have one owner."""
        return sum(self._owners[page] == 1 for page in table)

    def wanted(self, table: Sequence[int], start: int, stop: int) -> int:
        """Free pages that `prepare` would take."""
        first, last = start // self.page_size, self.pages(stop)
        copies = sum(self._owners[page] > 1 for page in table[first:last])
        return copies + max(0, last - len(table))

    def prepare(self, table: list[int], start: int, stop: int) -> bool:
        """Makes positions start..stop-1 writable: adds pages, copies shared ones. True if the table changed.

        Raises IndexError when too few pages are free; `wanted` says how many that takes.
        """
        first, last = start // self.page_size, self.pages(stop)
        changed = False
        for i in range(first, min(last, len(table))):
            if self._owners[table[i]] > 1:
                table[i] = self._own_copy(table[i])
                changed = True
        while len(table) < last:
            table.append(self._take())
            changed = True
        return changed

    def trim(self, table: list[int], length: int) -> None:
        """Releases the pages beyond the first `length` positions."""
        keep = self.pages(length)
        self.release(table[keep:])
        del table[keep:]

    def read(self, table: Sequence[int], length: int) -> Tensor:
        """A copy of a sequence's first `length` keys and values, [layers, 2, length, K, D]."""
        pages = self.kv[:, :, list(table)]
        return pages.flatten(2, 3)[:, :, :length].contiguous()

    def write(self, table: Sequence[int], kv: Tensor) -> None:
        """Fills pages from the first position on with [layers, 2, length, K, D]."""
        for i in range(self.pages(kv.shape[2])):
            part = kv[:, :, i * self.page_size : (i + 1) * self.page_size]
            self.kv[:, :, table[i], : part.shape[2]] = part

    def grow(self, pages: int) -> None:
        """Adds pages."""
        old = self.capacity
        self.kv = _longer(self.kv, 2, pages)
        self._owners.extend([0] * pages)
        for page in range(old, old + pages):
            heapq.heappush(self._free, page)

    def shrink(self) -> bool:
        """Gives back the free pages at the end; whether there were any."""
        keep = _last_used(self._free, self.capacity)
        if keep == self.capacity:
            return False
        self.kv = self.kv[:, :, :keep].clone()
        del self._owners[keep:]
        self._free = [page for page in self._free if page < keep]
        heapq.heapify(self._free)
        return True

    def _own_copy(self, page: int) -> int:
        new = self._take()
        self.kv[:, :, new] = self.kv[:, :, page]
        self._owners[page] -= 1
        return new

    def _take(self) -> int:
        page = heapq.heappop(self._free)
        self._owners[page] = 1
        return page


def _longer(pool: Tensor, dim: int, more: int) -> Tensor:
    """A copy with more places. The new ones are not written: on a CPU they take no memory before they are used."""
    shape = list(pool.shape)
    shape[dim] += more
    made = pool.new_empty(shape)
    made.narrow(dim, 0, pool.shape[dim]).copy_(pool)
    return made


def _last_used(free: Sequence[int], capacity: int) -> int:
    """How many places there are up to the last one in use."""
    spare = set(free)
    while capacity and capacity - 1 in spare:
        capacity -= 1
    return capacity

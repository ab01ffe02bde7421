"""Where live sequences keep what they remember: lightning states by slot, softmax keys and values by page."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from m1runtime.config import ModelConfig


class StatePool:
    """fp32 lightning states, [layers, slots, A, D, D]; a slot belongs to one sequence and is zeroed when admitted."""

    def __init__(self, config: ModelConfig, *, device: torch.device, slots: int = 4) -> None:
        heads, dim = config.num_attention_heads, config.head_dim
        self.states = torch.zeros(len(config.lightning_layers), slots, heads, dim, dim, device=device)
        self._free = list(range(slots - 1, -1, -1))

    @property
    def capacity(self) -> int:
        """Slots there are."""
        return self.states.shape[1]

    @property
    def used(self) -> int:
        """Slots given out."""
        return self.capacity - len(self._free)

    @property
    def bytes_per_slot(self) -> int:
        """Bytes of one sequence's states."""
        return self.states[:, 0].numel() * self.states.element_size()

    def admit(self) -> int:
        """A zeroed slot; the pool doubles when none is free."""
        if not self._free:
            self._grow()
        slot = self._free.pop()
        self.states[:, slot].zero_()
        return slot

    def release(self, slot: int) -> None:
        """Gives a slot back."""
        self._free.append(slot)

    def read(self, slot: int) -> Tensor:
        """A copy of one sequence's states, [layers, A, D, D]."""
        return self.states[:, slot].clone()

    def write(self, slot: int, state: Tensor | None) -> None:
        """Replaces one sequence's states; None is the empty sequence's, zero."""
        if state is None:
            self.states[:, slot].zero_()
        else:
            self.states[:, slot].copy_(state)

    def copy(self, source: int, target: int) -> None:
        """One slot's states onto another's."""
        self.states[:, target].copy_(self.states[:, source])

    def _grow(self) -> None:
        old = self.capacity
        self.states = torch.cat((self.states, torch.zeros_like(self.states)), dim=1)
        self._free.extend(range(2 * old - 1, old - 1, -1))


class PagePool:
    """Keys and values of the softmax layers, [layers, 2, pages, page_size, K, D]; pages are shared until written."""

    def __init__(
        self, config: ModelConfig, *, device: torch.device, dtype: torch.dtype, page_size: int = 64, pages: int = 16
    ) -> None:
        layers, heads, dim = len(config.softmax_layers), config.num_key_value_heads, config.head_dim
        self.page_size = page_size
        self.kv = torch.zeros(layers, 2, pages, page_size, heads, dim, device=device, dtype=dtype)
        self._free = list(range(pages - 1, -1, -1))
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
    def bytes_per_page(self) -> int:
        """Bytes of one page over all softmax layers."""
        return self.kv[:, :, 0].numel() * self.kv.element_size()

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
                self._free.append(page)

    def prepare(self, table: list[int], start: int, stop: int) -> bool:
        """Makes positions start..stop-1 writable: adds pages, copies shared ones. True if the table changed."""
        first, last = start // self.page_size, -(-stop // self.page_size)
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
        keep = -(-length // self.page_size)
        self.release(table[keep:])
        del table[keep:]

    def read(self, table: Sequence[int], length: int) -> Tensor:
        """A copy of a sequence's first `length` keys and values, [layers, 2, length, K, D]."""
        pages = self.kv[:, :, list(table)]
        return pages.flatten(2, 3)[:, :, :length].contiguous()

    def write(self, table: Sequence[int], kv: Tensor) -> None:
        """Fills pages from the first position on with [layers, 2, length, K, D]."""
        for i in range(-(-kv.shape[2] // self.page_size)):
            part = kv[:, :, i * self.page_size : (i + 1) * self.page_size]
            self.kv[:, :, table[i], : part.shape[2]] = part

    def _own_copy(self, page: int) -> int:
        new = self._take()
        self.kv[:, :, new] = self.kv[:, :, page]
        self._owners[page] -= 1
        return new

    def _take(self) -> int:
        if not self._free:
            self._grow()
        page = self._free.pop()
        self._owners[page] = 1
        return page

    def _grow(self) -> None:
        old = self.capacity
        self.kv = torch.cat((self.kv, torch.zeros_like(self.kv)), dim=2)
        self._owners.extend([0] * old)
        self._free.extend(range(2 * old - 1, old - 1, -1))

"""What a model will need, before a byte of it is read."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from m1runtime.config import ModelConfig
from m1runtime.errors import MemoryPlanError
from m1runtime.layout import parameters

_CGROUP_FILES = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current")


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes needed and available; `total` is the weights plus one session of `tokens` tokens."""

    weights: dict[str, int]  # by dtype
    kv_per_token: int
    state_per_session: int
    tokens: int
    available: int
    device: str

    @property
    def total(self) -> int:
        """Weights, one lightning state and the KV of `tokens` tokens, in bytes."""
        return sum(self.weights.values()) + self.state_per_session + self.tokens * self.kv_per_token

    def check(self) -> None:
        """Raises MemoryPlanError when the total exceeds what is available."""
        if self.total > self.available:
            raise MemoryPlanError(
                f"the model needs {self.total:,} bytes ({gib(self.total)}) on {self.device}, "
                f"{self.available:,} ({gib(self.available)}) are available; "
                f"use a smaller dtype or a larger device\n{self}"
            )

    def __str__(self) -> str:
        rows = [(f"weights {dtype}", count) for dtype, count in self.weights.items()]
        rows += [
            ("lightning state, a session", self.state_per_session),
            ("KV, a token", self.kv_per_token),
            (f"KV, {self.tokens:,} tokens", self.tokens * self.kv_per_token),
            ("total", self.total),
            (f"available on {self.device}", self.available),
        ]
        return "memory plan\n" + "\n".join(f"  {name:<32}{gib(count):>14}" for name, count in rows)


def plan_memory(
    config: ModelConfig, *, dtype: torch.dtype, device: torch.device, tokens: int, limit: int | None = None
) -> MemoryPlan:
    """The plan for a model on a device; `limit` (bytes) replaces what the machine says is available."""
    weights: dict[str, int] = {}
    for parameter in parameters(config).values():
        kept = torch.float32 if parameter.full else dtype
        name = str(kept).removeprefix("torch.")
        weights[name] = weights.get(name, 0) + math.prod(parameter.shape) * kept.itemsize
    kv = 2 * len(config.softmax_layers) * config.num_key_value_heads * config.head_dim * dtype.itemsize
    state = len(config.lightning_layers) * config.num_attention_heads * config.head_dim**2 * torch.float32.itemsize
    available = limit if limit is not None else available_bytes(device)
    return MemoryPlan(weights, kv, state, tokens, available, str(device))


def available_bytes(device: torch.device) -> int:
    """Free bytes of a device; for the CPU what the system can give without swapping, within its control group."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return min(_system_available(), _cgroup_available())


def _system_available() -> int:
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _cgroup_available() -> int:
    try:
        limit, used = (Path(name).read_text(encoding="ascii").strip() for name in _CGROUP_FILES)
    except OSError:
        return 2**62
    return 2**62 if limit == "max" else int(limit) - int(used)


def gib(count: int) -> str:
    """A byte count in the unit a reader expects: B, KiB, MiB or GiB."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:,.2f} {unit}"
    return f"{count} B"

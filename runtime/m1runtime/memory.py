"""What a model will need on each device, before a byte of it is read, and the nearest plan that fits when it does not.

Checked against MiniMax-M1: 456.1 B parameters, 40 KiB of bf16 KV a token, 280 MiB of fp32 state a session.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from m1runtime.config import ModelConfig
from m1runtime.errors import MemoryPlanError
from m1runtime.layout import parameters
from m1runtime.quantize import SCHEMES, parameter_bytes, quantization
from m1runtime.ring import ROWS as RING
from m1runtime.shards import check_size, share, tensor_parallel_sizes

CARDS = {"80 GB": 80 * 10**9, "96 GB": 96 * 10**9, "141 GB": 141 * 10**9}
"""Planned bytes of a card. It has some 6 % more, which the CUDA context and the allocator's gaps take."""

QUANTIZATIONS = tuple(SCHEMES)
"""Ways to store the large matrices, the largest first; router, norms, embedding and head stay as they are."""

_GIVING_IN = ("quantization", "sessions", "context", "devices")
_CGROUP_FILES = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current")
_SHORTEST = 1024  # no plan is offered with less context


@dataclass(frozen=True, slots=True)
class Wish:
    """What is to run: `sessions` of `context` tokens each, prefilled in chunks, on `devices` tensor-parallel ranks."""

    dtype: torch.dtype
    context: int
    sessions: int = 1
    quantization: str | None = None
    devices: int = 1
    chunk: int = 4096


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes needed and available on each device."""

    wish: Wish
    parameters: int  # of the whole model
    weights: dict[str, int]  # by how they are stored
    kv_per_token: int
    state_per_session: int
    ring_per_session: int  # what its last tokens are taken back with, an older state included
    working: int  # activations of one chunk
    available: int
    device: str
    context_limit: int
    nearest: tuple[MemoryPlan, ...] = field(default=(), repr=False)  # plans that fit, when this one does not

    @property
    def total(self) -> int:
        """Weights, activations, and the state and KV of every session, in bytes."""
        return self._fixed + self.wish.sessions * self.per_session

    @property
    def per_session(self) -> int:
        """One lightning state and the KV of the whole context, in bytes."""
        return self.state_per_session + self.ring_per_session + self.wish.context * self.kv_per_token

    @property
    def fits(self) -> bool:
        """Whether the total is available."""
        return self.total <= self.available

    @property
    def most_sessions(self) -> int:
        """Sessions of this context that would fit."""
        return max(0, self.available - self._fixed) // max(1, self.per_session)

    @property
    def longest_context(self) -> int:
        """Tokens that each of this many sessions could have, up to the model's own limit."""
        room = (self.available - self._fixed) // self.wish.sessions - self.state_per_session - self.ring_per_session
        return min(max(0, room) // max(1, self.kv_per_token), self.context_limit)

    @property
    def cache_memory(self) -> int:
        """Bytes for sessions and kept prefixes unless a caller says: on a CPU, that other programs share, a quarter."""
        left = max(0, self.available - self._fixed)
        return max(self.per_session, left // 4 if self.device == "cpu" else left * 9 // 10)

    @property
    def offers(self) -> list[str]:
        """What to change to get a plan that fits, a line each; empty when this one does."""
        return [f"{_difference(self.wish, plan.wish)}: {gib(plan.total)}" for plan in self.nearest]

    @property
    def _fixed(self) -> int:
        return sum(self.weights.values()) + self.working

    def check(self) -> None:
        """Raises MemoryPlanError with the nearest plans that fit when the total exceeds what is available."""
        if self.fits:
            return
        remedy = (
            "\n  ".join(["what would fit:", *self.offers]) if self.offers else "use a larger device, or more of them"
        )
        raise MemoryPlanError(
            f"the model needs {self.total:,} bytes ({gib(self.total)}) on {self.device}, "
            f"{self.available:,} ({gib(self.available)}) are available; {remedy}\n{self}"
        )

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON values, bytes and tokens."""
        wish = asdict(self.wish) | {"dtype": _name(self.wish.dtype)}
        figures = {name: getattr(self, name) for name in _FIGURES}
        return {"asked": wish} | figures | {"nearest": [plan.to_dict() for plan in self.nearest]}

    def __str__(self) -> str:
        w = self.wish
        rows = [(f"weights {kind}", count) for kind, count in self.weights.items()]
        rows += [
            (f"activations of {w.chunk:,} tokens", self.working),
            ("lightning state, a session", self.state_per_session),
            ("ring of its last tokens", self.ring_per_session),
            ("KV, a token", self.kv_per_token),
            (f"{w.sessions} x state and KV of {w.context:,} tokens", w.sessions * self.per_session),
            ("total", self.total),
            (f"available on {self.device}", self.available),
        ]
        each = f", each of {w.devices} devices" if w.devices > 1 else ""
        size = f"{self.parameters / 1e9:,.1f} B" if self.parameters >= 1e9 else f"{self.parameters / 1e6:,.1f} M"
        head = f"memory plan: {size} parameters, {w.quantization or _name(w.dtype)}{each}"
        return head + "\n" + "\n".join(f"  {name:<44}{gib(count):>14}" for name, count in rows)


_FIGURES = (
    "parameters",
    "weights",
    "kv_per_token",
    "state_per_session",
    "ring_per_session",
    "working",
    "total",
    "available",
    "device",
    "fits",
    "most_sessions",
    "longest_context",
)


def plan_memory(config: ModelConfig, wish: Wish, *, device: str, available: int) -> MemoryPlan:
    """The plan for a model where `available` bytes can be had on each device.

    Raises ConfigError for an unknown quantization and for a number of devices that the model does not divide into.
    """
    plan = _plan(config, wish, device, available)
    return plan if plan.fits else replace(plan, nearest=tuple(_nearest(config, plan)))


def devices_needed(config: ModelConfig, wish: Wish, card: str) -> MemoryPlan | None:
    """The plan on the fewest cards of a kind (`CARDS`) that hold the wish; None when no number does."""
    plans = (_plan(config, replace(wish, devices=n), card, CARDS[card]) for n in tensor_parallel_sizes(config))
    return next((plan for plan in plans if plan.fits), None)


def _plan(config: ModelConfig, wish: Wish, device: str, available: int) -> MemoryPlan:
    check_size(config, wish.devices)
    scheme = quantization(wish.quantization)
    own = share(config, wish.devices)
    weights: dict[str, int] = {}
    for parameter in parameters(own).values():
        for kind, count in parameter_bytes(parameter, wish.dtype, scheme).items():
            weights[kind] = weights.get(kind, 0) + count
    if own.tie_word_embeddings and wish.dtype != torch.float32:
        weights["float32"] += own.vocab_size * own.hidden_size * 4  # the head's product is fp32
    state, size = len(own.lightning_layers) * own.num_attention_heads * own.head_dim**2 * 4, wish.dtype.itemsize
    return MemoryPlan(
        wish=wish,
        parameters=sum(math.prod(parameter.shape) for parameter in parameters(config).values()),
        weights=weights,
        kv_per_token=2 * len(own.softmax_layers) * own.num_key_value_heads * own.head_dim * wish.dtype.itemsize,
        state_per_session=state,
        ring_per_session=state + RING * (2 * len(own.lightning_layers) * own.inner_size + own.hidden_size) * size,
        working=min(wish.chunk, wish.context) * _bytes_per_token(own, wish.dtype.itemsize),
        available=available,
        device=device,
        context_limit=own.max_position_embeddings,
    )


def _bytes_per_token(own: ModelConfig, size: int) -> int:
    """What one token of a chunk needs at the widest moment of a layer, an upper estimate."""
    h, inner, f, k = own.hidden_size, own.inner_size, own.intermediate_size, own.num_experts_per_tok
    lightning = 3 * inner * (size + 4 * 4) + 3 * inner * size
    experts = k * (h * (size + 4 + 4) + f * (4 * size))
    return 4 * h * size + max(lightning, experts)


def _nearest(config: ModelConfig, plan: MemoryPlan) -> list[MemoryPlan]:
    """One plan that fits for each way of giving in: the fewest changes first, then in the order of `_GIVING_IN`."""
    found: dict[tuple[str, ...], MemoryPlan] = {}
    for wish in _lesser(config, plan):
        lesser = _plan(config, wish, plan.device, plan.available)
        for offer in (lesser, *(replace(lesser, wish=shorter) for shorter in _shorter(lesser))):
            changed = _changes(plan.wish, offer.wish)
            if offer.fits and not any(set(known) <= set(changed) for known in found):
                found[changed] = offer
    order = sorted(found, key=lambda changed: (len(changed), [_GIVING_IN.index(name) for name in changed]))
    return [found[changed] for changed in order[:4]]


def _lesser(config: ModelConfig, plan: MemoryPlan) -> Iterator[Wish]:
    """Smaller weights, then more devices; a CPU's ranks share one memory, so more of them would not help."""
    w = plan.wish
    schemes = [w.quantization, *QUANTIZATIONS[_rank(w.quantization) + 1 :]]
    more = [n for n in tensor_parallel_sizes(config) if n > w.devices] if plan.device != "cpu" else []
    for devices in (w.devices, *more):
        for scheme in schemes:
            yield replace(w, quantization=scheme, devices=devices)


def _shorter(plan: MemoryPlan) -> Iterator[Wish]:
    if plan.most_sessions:
        yield replace(plan.wish, sessions=plan.most_sessions)
    for sessions in {plan.wish.sessions, 1}:
        context = replace(plan, wish=replace(plan.wish, sessions=sessions)).longest_context
        if _SHORTEST <= context < plan.wish.context:
            yield replace(plan.wish, sessions=sessions, context=context // _SHORTEST * _SHORTEST)


def _changes(asked: Wish, offered: Wish) -> tuple[str, ...]:
    return tuple(name for name in _GIVING_IN if getattr(asked, name) != getattr(offered, name))


def _difference(asked: Wish, offered: Wish) -> str:
    return ", ".join(f"{name} {_shown(getattr(offered, name))}" for name in _changes(asked, offered))


def _shown(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _rank(quantization: str | None) -> int:
    return QUANTIZATIONS.index(quantization) if quantization else -1


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


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

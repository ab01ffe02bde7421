"""The model on rank 0 of several, and what the other ranks do for it."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from types import SimpleNamespace
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import Tensor

from m1kernels.quant import Weight
from m1runtime.cache import PagePool, StatePool
from m1runtime.config import ModelConfig
from m1runtime.errors import ParallelError
from m1runtime.layers import Batch
from m1runtime.mirror import Mirror, Mirrored, Ref, Shares, read_notes
from m1runtime.model import KV, Model, Output
from m1runtime.ranks import Group

T = TypeVar("T")


class Others(Protocol):
    """The processes of the other ranks."""

    def failure(self, wait: float = 0.0) -> str | None:
        """Why one ended, if one did; one that is ending is given `wait` seconds to say so."""
        ...

    def stop(self, patience: float = 5.0) -> None:
        """Ends them."""
        ...


class Leader(Model):
    """A model of which this process computes the first share, and others the rest.

    After an error in the middle of a pass the ranks may be at different places: the model is of no use any more, and
    every further call raises ParallelError.
    """

    def __init__(
        self, config: ModelConfig, weights: Mapping[str, Weight], group: Group, others: Others, threads: int | None
    ) -> None:
        self._mirror = Mirror()
        self._group = group
        self._others = others
        self._broken: str | None = None
        self._lock = threading.RLock()
        super().__init__(config, weights, threads=threads, ranks=group)
        self._slopes = self._mirror.wrap(super().slopes)
        self._mirror.note("slopes", self._slopes.handle.key)
        self._mirror.note("fingerprint")
        self._together(lambda: super(Leader, self).fingerprint)
        self._finish = weakref.finalize(self, others.stop)

    @property
    def slopes(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Decay exponents of the lightning layers, [layers, A] fp32; each rank has its own."""
        return self._slopes

    def forward(self, batch: Batch, states: StatePool, pages: PagePool) -> Output:
        """As `Model.forward`, on all ranks."""
        key = self._mirror.key() if batch.export else None
        self._mirror.note("forward", batch, [Ref(pool.handle.key) for pool in _pools(states, pages)], key)
        own: Any = _as_pools([pool.local for pool in _pools(states, pages)])
        output = self._together(lambda: super(Leader, self).forward(batch, own.states, own.pages))
        if key is None or output.exported is None:
            return output
        return Output(output.logits, self._mirror.wrap(output.exported, key))

    def logits(self, h: Tensor) -> Tensor:
        """As `Model.logits`; rows of a pool are on every rank already."""
        if not isinstance(h, Mirrored):
            return super().logits(h)  # within a pass, where every rank is
        self._mirror.note("logits", Ref(h.handle.key))
        return self._together(lambda: super(Leader, self).logits(h.local))

    def whole(self, x: Tensor, dim: int) -> Tensor:
        """A state (dim STATE) or keys and values (dim KV) with the heads of all ranks."""
        assert isinstance(x, Mirrored)
        self._mirror.note("whole", Ref(x.handle.key), dim)
        joined = self._together(lambda: self._group.join(x.local, dim))
        c = self.whole_config
        copies = joined.shape[dim] // (c.num_key_value_heads if dim == KV else c.num_attention_heads)
        kept = torch.arange(
            0, joined.shape[dim], copies, device=joined.device
        )  # ranks that share a KV head hold it each
        return joined.index_select(dim, kept)

    def share(self, x: Tensor, dim: int) -> Tensor:
        """The inverse of `whole`: each rank takes its own heads."""
        key = self._mirror.key()
        own = own_heads(x, dim, self._group)
        self._mirror.note("share", key, x, dim)
        return self._mirror.wrap(own, key)

    def adopt(self, states: StatePool, pages: PagePool) -> None:
        """Spreads the pools over the ranks."""
        states.states, pages.kv = self._mirror.like(states.states), self._mirror.like(pages.kv)
        states.ring.kv, states.ring.hidden = self._mirror.like(states.ring.kv), self._mirror.like(states.ring.hidden)

    def close(self) -> None:
        """Ends the other ranks. Closing twice is fine."""
        with self._lock:
            if self._broken is None:
                self._broken = "the engine is closed"
                with suppress(RuntimeError):
                    self._group.order(farewell())
        self._finish()

    def _together(self, work: Callable[[], T]) -> T:
        """Tells the other ranks what there is to do up to here, and does this rank's part of it."""
        with self._lock:
            if self._broken is not None:
                raise ParallelError(self._broken)
            try:
                self._group.order(self._mirror.take())
                return work()
            except BaseException as error:
                self._broken = f"a pass over {self._group.size} ranks ended with {type(error).__name__}; load it again"
                cause = self._others.failure(wait=2.0)
                self._others.stop()
                if not isinstance(error, Exception):
                    raise
                self._broken = cause or f"{self._broken} ({error})"
                raise ParallelError(self._broken) from error


def follow(model: Model, group: Group) -> None:
    """Carries out rank 0's notes on this rank's shares, until its farewell."""
    shares = Shares(group.device)
    with torch.inference_mode():
        while True:
            for name, *arguments in read_notes(group.await_order()):
                if name == "farewell":
                    return
                if not shares.do(name, *arguments):
                    _do(model, group, shares, name, arguments)


def _do(model: Model, group: Group, shares: Shares, name: str, arguments: list[Any]) -> None:
    match name, arguments:
        case "forward", [batch, refs, key]:
            own: Any = _as_pools([shares[ref] for ref in refs])
            output = model.forward(_on(batch, group.device), own.states, own.pages)
            if key is not None and output.exported is not None:
                shares.put(key, output.exported)
        case "logits", [ref]:
            model.logits(shares[ref])
        case "whole", [ref, dim]:
            group.join(shares[ref], dim)
        case "share", [key, x, dim]:
            shares.put(key, own_heads(x.to(group.device), dim, group))
        case "slopes", [key]:
            shares.put(key, model.slopes)
        case "fingerprint", []:
            _ = model.fingerprint
        case _:
            raise ValueError(f"rank 0 asks for {name!r}, which this version does not know")


def own_heads(x: Tensor, dim: int, group: Group) -> Tensor:
    """A rank's share of whole states or caches."""
    heads = x.shape[dim]
    count = max(1, heads // group.size)
    return x.narrow(dim, group.rank * heads // group.size, count).clone()


def farewell() -> bytes:
    """The last order."""
    mirror = Mirror()
    mirror.note("farewell")
    return mirror.take()


def _pools(states: StatePool, pages: PagePool) -> list[Mirrored]:
    pools: list[Any] = [states.states, states.ring.kv, states.ring.hidden, pages.kv]
    return pools


def _as_pools(tensors: Sequence[Tensor]) -> SimpleNamespace:
    """What a forward pass reads of pools, over plain tensors."""
    states, kv, hidden, pages = tensors
    ring = SimpleNamespace(kv=kv, hidden=hidden)
    return SimpleNamespace(states=SimpleNamespace(states=states, ring=ring), pages=SimpleNamespace(kv=pages))


def _on(batch: Batch, device: torch.device) -> Batch:
    if device.type == "cpu":
        return batch

    def moved(value: Any) -> Any:
        if isinstance(value, list):
            return [moved(each) for each in cast("list[Any]", value)]
        return value.to(device) if isinstance(value, Tensor) else value

    return Batch(**{f.name: moved(getattr(batch, f.name)) for f in fields(batch) if f.init})

"""Caches that are spread over ranks, handled by rank 0 as if they were its own.

Every rank keeps the same pools, with its own heads in them. What rank 0 does to a pool or to a state (copy a slot,
grow, play tokens over an anchor) depends on no value in it, and holds for each rank's share alike. So the operations
of torch on a `Mirrored` tensor are carried out at once on rank 0's share, and noted; the notes go along with the next
forward pass, in order, and the other ranks carry them out on theirs. Sequences, trees and schedulers are rank 0's.
"""

from __future__ import annotations

import io
import itertools
import pickle
import threading
from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

_READS = ("aten::_local_scalar_dense", "aten::equal", "aten::is_nonzero")
_HERE = "the rank's own device"


@dataclass(frozen=True, slots=True)
class Ref:
    """A mirrored tensor in a note."""

    key: int


class Handle:
    """Lives as long as rank 0 uses a mirrored tensor."""

    def __init__(self, key: int, dead: deque[int]) -> None:
        self.key = key
        self._dead = dead

    def __del__(self) -> None:
        self._dead.append(self.key)


class Mirrored(Tensor):
    """Rank 0's share of a tensor that every rank has a share of, all of one shape."""

    local: Tensor
    handle: Handle
    mirror: Mirror

    @staticmethod
    def __new__(cls: type[Mirrored], local: Tensor, handle: Handle, mirror: Mirror) -> Mirrored:
        make: Any = Tensor._make_wrapper_subclass  # pyright: ignore[reportPrivateUsage]
        made: Mirrored = make(cls, local.shape, strides=local.stride(), dtype=local.dtype, device=local.device)
        made.local, made.handle, made.mirror = local, handle, mirror
        return made

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return f"Mirrored({self.handle.key}, {tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        flat = pytree.tree_leaves((args, kwargs))
        mirror = next(leaf.mirror for leaf in flat if isinstance(leaf, Mirrored))
        return mirror.run(func, args, kwargs or {})


class Mirror:
    """Rank 0's notes."""

    def __init__(self) -> None:
        self._notes: list[tuple[Any, ...]] = []
        self._keys = itertools.count()
        self._dead: deque[int] = deque()
        self._lock = threading.Lock()

    def note(self, name: str, *arguments: Any) -> None:
        """Something for the others to do."""
        with self._lock:
            self._notes.append((name, *arguments))

    def take(self) -> bytes:
        """All notes up to now, for `read_notes`."""
        gone = [self._dead.popleft() for _ in range(len(self._dead))]
        with self._lock:
            notes, self._notes = self._notes, []
        return _dump([*notes, ("forget", gone)] if gone else notes)

    def key(self) -> int:
        """A new one, for what a note will make."""
        return next(self._keys)

    def wrap(self, local: Tensor, key: int | None = None) -> Mirrored:
        """A tensor that the others get as well, by the note that the caller writes."""
        with torch.inference_mode():  # so that its views need no version counters
            return Mirrored(local, Handle(self.key() if key is None else key, self._dead), self)

    def like(self, pool: Tensor) -> Mirrored:
        """A pool of zeros on every rank."""
        made = self.wrap(pool)
        self.note("zeros", made.handle.key, tuple(pool.shape), pool.dtype)
        return made

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """An operation of torch, here and later on the other ranks."""
        name = func.name()
        if name.split(".")[0] in _READS:
            raise TypeError("a rank's share is not a value; `Model.whole` joins the shares of all ranks")
        owners = {id(leaf.local): leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Mirrored)}
        local_args, local_kwargs = pytree.tree_map(_local, (args, kwargs))
        result = func(*local_args, **local_kwargs)
        made: list[int | None] = []

        def own(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            if id(value) in owners:  # changed in place
                made.append(None)
                return owners[id(value)]
            wrapped = self.wrap(value)
            made.append(wrapped.handle.key)
            return wrapped

        wrapped = pytree.tree_map(own, result)
        self.note("run", name, func._overloadname, *pytree.tree_map(_noted, (args, kwargs)), made)
        return wrapped


class Shares:
    """What another rank has: its shares by key, and how it carries out notes."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._own: dict[int, Tensor] = {}

    def __getitem__(self, ref: Ref) -> Tensor:
        return self._own[ref.key]

    def put(self, key: int, tensor: Tensor) -> None:
        """Takes a tensor under rank 0's key."""
        self._own[key] = tensor

    def do(self, name: str, *arguments: Any) -> bool:
        """Carries out a note of a mirror; False when it is another's."""
        if name == "run":
            self._run(*arguments)
        elif name == "zeros":
            key, shape, dtype = arguments
            self.put(key, torch.zeros(shape, dtype=dtype, device=self.device))
        elif name == "forget":
            for key in arguments[0]:
                self._own.pop(key, None)
        else:
            return False
        return True

    def resolve(self, value: Any) -> Any:
        """A note's argument with tensors for references."""
        return pytree.tree_map(self._resolve, value, is_leaf=lambda leaf: isinstance(leaf, Ref))

    def _resolve(self, leaf: Any) -> Any:
        if isinstance(leaf, Ref):
            return self[leaf]
        if isinstance(leaf, Tensor):
            return leaf.to(self.device)
        return self.device if isinstance(leaf, str) and leaf == _HERE else leaf

    def _run(self, name: str, overload: str, args: Any, kwargs: Any, made: list[int | None]) -> None:
        packet = getattr(torch.ops.aten, name.removeprefix("aten::").split(".")[0])
        local_args, local_kwargs = self.resolve((args, kwargs))
        result = getattr(packet, overload or "default")(*local_args, **local_kwargs)
        leaves = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]
        for key, leaf in zip(made, leaves, strict=True):
            if key is not None:
                self.put(key, leaf)


def read_notes(text: bytes) -> list[tuple[Any, ...]]:
    """The notes of `Mirror.take`. They come from rank 0 of the same engine, and are trusted as its code is."""
    return pickle.loads(text)


def _local(leaf: Any) -> Any:
    return leaf.local if isinstance(leaf, Mirrored) else leaf


def _noted(leaf: Any) -> Any:
    if isinstance(leaf, Mirrored):
        return Ref(leaf.handle.key)
    if isinstance(leaf, Tensor):
        return leaf.cpu()
    return _HERE if isinstance(leaf, torch.device) else leaf


class _Pickler(pickle.Pickler):
    """Plain tensors as numpy arrays, which takes a tenth of the time."""

    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is Tensor and obj.dtype != torch.bfloat16:
            library: Any = torch
            return library.from_numpy, (obj.detach().cpu().numpy(),)
        return NotImplemented


def _dump(notes: list[tuple[Any, ...]]) -> bytes:
    buffer = io.BytesIO()
    _Pickler(buffer, protocol=5).dump(notes)
    return buffer.getvalue()

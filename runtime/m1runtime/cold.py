"""The cold tier: boundaries on disk, found again by their tokens, in another process, too.

One safetensors file a boundary: tokens, lightning states, the logits after them, keys and values. Its name is the
digest of the tokens, so that a folder is searched without reading it: at the start only headers are read, and a file's
content when a prompt begins with its tokens. Files appear whole or not at all, and the least recently used make room.
"""

from __future__ import annotations

import hashlib
import logging
import os
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from safetensors import SafetensorError
from torch import Tensor

from m1runtime.errors import CheckpointError, ConfigError
from m1runtime.headers import read_header, read_tensors, write_tensors

log = logging.getLogger(__name__)

FORMAT = "m1runtime-boundary-1"
SUFFIX = ".safetensors"
ColdDtype: TypeAlias = Literal["float32", "int8"]


@dataclass(frozen=True, slots=True)
class Frozen:
    """A boundary off the device: state [layers, A, D, D] fp32, logits [V], kv [layers, 2, length, K, D]."""

    tokens: list[int]
    state: Tensor
    logits: Tensor
    kv: Tensor


class ColdTier:
    """Boundaries of one model in one folder.

    limit: bytes of all files. dtype: of stored states; "int8" takes a quarter, and what goes on from it is no longer
    exact. Raises ConfigError when the folder cannot be used.
    """

    def __init__(self, folder: Path, *, model: str, limit: int, dtype: ColdDtype = "float32") -> None:
        if dtype not in ("float32", "int8"):
            raise ConfigError(f"cold_dtype {dtype!r} is not supported; use float32 or int8")
        self.limit = limit
        self.dtype: ColdDtype = dtype
        self.damaged = self.written = 0
        self._model = model
        self._folder = folder / model[:16]
        self._sizes: dict[str, int] = {}  # by digest, the least recently used first
        self._lengths: dict[int, set[str]] = {}
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._scan()
        except OSError as error:
            raise ConfigError(f"cold: {folder} cannot be used as a folder ({error})") from None

    @property
    def bytes(self) -> int:
        """Bytes of all files."""
        return sum(self._sizes.values())

    def __len__(self) -> int:
        return len(self._sizes)

    def has(self, tokens: Sequence[int]) -> bool:
        """Whether there is a boundary after exactly these tokens."""
        return any(name in self._sizes for name in digests(tokens, [len(tokens)]).values())

    def find(self, tokens: Sequence[int], beyond: int) -> Frozen | None:
        """The longest boundary that `tokens` begin with, if it has more than `beyond` of them."""
        lengths = sorted(length for length in self._lengths if beyond < length <= len(tokens))
        named = digests(tokens, lengths)
        for length in reversed(lengths):
            if named[length] in self._lengths.get(length, ()):
                found = self._read(named[length], length)
                if found is not None and found.tokens == list(tokens[:length]):
                    return found
        return None

    def write(self, boundary: Frozen) -> None:
        """Adds a boundary; the least recently used make room. A full disk is told, and loses the boundary alone."""
        name = digests(boundary.tokens, [len(boundary.tokens)])[len(boundary.tokens)]
        if name in self._sizes:
            self._touch(name)
            return
        tensors = {"tokens": torch.tensor(boundary.tokens, dtype=torch.int64), "logits": boundary.logits}
        tensors |= {"kv": boundary.kv} | _pack(boundary.state, self.dtype)
        tensors = {key: tensor.cpu().contiguous() for key, tensor in tensors.items()}
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        if size > self.limit:
            return
        header = {"format": FORMAT, "model": self._model, "length": str(len(boundary.tokens)), "sha256": _hash(tensors)}
        path = self._folder / (name + SUFFIX)
        partial = path.with_name(f"{name}.{os.getpid()}.part")
        try:
            write_tensors(partial, tensors, header)
            os.replace(partial, path)
            self._add(name, len(boundary.tokens), path.stat().st_size)
            self.written += 1
        except (SafetensorError, OSError) as error:
            partial.unlink(missing_ok=True)
            log.warning("cold: %s cannot be written (%s)", path, error)
        self._shrink()

    def _scan(self) -> None:
        for partial in self._folder.glob("*.part"):
            partial.unlink(missing_ok=True)
        for path in sorted(self._folder.glob("*" + SUFFIX), key=lambda path: path.stat().st_mtime):
            try:
                metadata: dict[str, Any] = read_header(path).get("__metadata__", None) or {}
                if (metadata.get("format"), metadata.get("model")) == (FORMAT, self._model):
                    self._add(path.name.removesuffix(SUFFIX), int(metadata["length"]), path.stat().st_size)
            except (CheckpointError, ValueError, KeyError) as error:
                self._report(path, error)
        self._shrink()

    def _read(self, name: str, length: int) -> Frozen | None:
        path = self._folder / (name + SUFFIX)
        if not path.exists():  # Another process made room.
            self._forget(name, length)
            return None
        try:
            metadata: dict[str, Any] = read_header(path).get("__metadata__", None) or {}
            tensors = dict(read_tensors(path, [n for n in read_header(path) if n != "__metadata__"]))
            if _hash(tensors) != metadata.get("sha256"):
                raise CheckpointError("its content is not what was written")
            stored: Any = tensors["tokens"]
            found = Frozen(stored.tolist(), _unpack(tensors), tensors["logits"], tensors["kv"])
        except (CheckpointError, SafetensorError, KeyError, RuntimeError) as error:
            self._report(path, error)
            self._forget(name, length)
            return None
        self._touch(name)
        return found

    def _report(self, path: Path, error: Exception) -> None:
        self.damaged += 1
        log.warning("cold: %s is damaged and left out (%s); delete it", path, error)

    def _add(self, name: str, length: int, size: int) -> None:
        self._sizes[name] = size
        self._lengths.setdefault(length, set()).add(name)

    def _forget(self, name: str, length: int) -> None:
        self._sizes.pop(name, None)
        self._lengths[length].discard(name)
        if not self._lengths[length]:
            del self._lengths[length]

    def _touch(self, name: str) -> None:
        self._sizes[name] = self._sizes.pop(name)
        try:
            os.utime(self._folder / (name + SUFFIX))
        except OSError:
            pass  # Another process made room.

    def _shrink(self) -> None:
        total = self.bytes
        for name, size in list(self._sizes.items()):
            if total <= self.limit:
                return
            total -= size
            (self._folder / (name + SUFFIX)).unlink(missing_ok=True)
            self._forget(name, next(length for length, names in self._lengths.items() if name in names))


def digests(tokens: Sequence[int], lengths: Sequence[int]) -> dict[int, str]:
    """SHA-256 (hex) of the first n tokens for each of the ascending `lengths`, in one pass."""
    digest, done, found = hashlib.sha256(), 0, dict[int, str]()
    for length in lengths:
        digest.update(array("q", tokens[done:length]).tobytes())
        done, found[length] = length, digest.copy().hexdigest()
    return found


def _pack(state: Tensor, dtype: ColdDtype) -> dict[str, Tensor]:
    """int8: each column of a head's state has a scale of its own."""
    if dtype == "float32":
        return {"state": state}
    scale = state.abs().amax(dim=-2, keepdim=True) / 127
    return {"state": (state / scale.clamp(min=1e-30)).round().to(torch.int8), "scale": scale}


def _unpack(tensors: Mapping[str, Tensor]) -> Tensor:
    return tensors["state"].float() * tensors["scale"] if "scale" in tensors else tensors["state"]


def _hash(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        if tensor.numel():
            digest.update(tensor.contiguous().view(torch.uint8).flatten().numpy().data)
    return digest.hexdigest()

"""Safetensors files: names, shapes and dtypes without reading a weight, whether a file is whole, and typed I/O."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import safetensors
import safetensors.torch
from torch import Tensor

from m1runtime.errors import CheckpointError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
Part = tuple[slice, ...]
_LENGTH = 8
_LARGEST_HEADER = 100_000_000


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """Where a tensor lies and what it is; `dtype` in safetensors' spelling (F32, BF16, ...)."""

    file: Path
    dtype: str
    shape: tuple[int, ...]


def read_header(path: Path) -> dict[str, Any]:
    """The JSON header of one safetensors file, checked against the file's size.

    Raises CheckpointError for a missing, truncated or damaged file.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_LENGTH), "little")
            text = file.read(length) if size >= _LENGTH and length <= min(size, _LARGEST_HEADER) else b""
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from None
    if size < _LENGTH:
        raise CheckpointError(f"{path}: truncated: {size} bytes, shorter than any safetensors file; download it again")
    if len(text) < length:
        raise CheckpointError(
            f"{path}: truncated or not safetensors: its header needs {length:,} bytes and the file has {size:,}; "
            "download it again"
        )
    try:
        header = cast("dict[str, Any]", json.loads(text))
        end = max((_end(entry) for name, entry in header.items() if name != "__metadata__"), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise CheckpointError(f"{path}: the header is not safetensors JSON; the file is damaged") from None
    expected = _LENGTH + length + end
    if size != expected:
        state = "truncated" if size < expected else "followed by foreign bytes"
        raise CheckpointError(f"{path}: {state}: its header announces {expected:,} bytes, the file has {size:,}")
    return header


def _end(entry: Any) -> int:
    """Where a tensor's bytes end. Raises what a damaged entry causes."""
    start, end = (int(offset) for offset in entry["data_offsets"])
    if not isinstance(entry["dtype"], str) or not 0 <= start <= end or any(int(n) < 0 for n in entry["shape"]):
        raise ValueError("not a tensor")
    return end


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint folder; empty when it holds no weights.

    Raises CheckpointError when the index is damaged or names a shard that is missing.
    """
    index = folder / INDEX
    if not index.exists():
        single = folder / SINGLE
        return [single] if single.exists() else []
    names = sorted(set(read_index(index).values()))
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
        raise CheckpointError(
            f"{index}: {len(missing)} of {len(names)} shards are missing: {shorten(missing)}; download them"
        )
    return [folder / name for name in names]


def read_index(index: Path) -> dict[str, str]:
    """Tensor name → shard file name. Raises CheckpointError for a damaged index."""
    try:
        entries = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return {str(name): str(shard) for name, shard in entries.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError(f"{index}: not an index: it needs an object weight_map of name to shard") from None


def checkpoint_headers(folder: Path) -> dict[str, TensorHeader]:
    """Every tensor of a checkpoint folder, from the headers alone; empty when it holds no weights."""
    found: dict[str, TensorHeader] = {}
    for file in weight_files(folder):
        for name, entry in read_header(file).items():
            if name != "__metadata__":
                found[name] = TensorHeader(file, str(entry["dtype"]), tuple(int(n) for n in entry["shape"]))
    return found


def read_tensors(path: Path, names: list[str]) -> Iterator[tuple[str, Tensor]]:
    """The named tensors of a file, on the CPU, one at a time. Raises CheckpointError for a damaged file."""
    with _open(path) as file:
        for name in names:
            yield name, file.get_tensor(name)


def read_parts(path: Path, wanted: Mapping[str, Sequence[Part]]) -> Iterator[tuple[str, list[Tensor]]]:
    """Parts of tensors, each an index of slices, on the CPU, one tensor at a time; nothing else of a tensor is read.

    Raises CheckpointError for a damaged file.
    """
    with _open(path) as file:
        for name, parts in wanted.items():
            reader = file.get_slice(name)
            yield name, [reader[part] for part in parts]


def _open(path: Path) -> Any:
    try:
        return safetensors.safe_open(str(path), framework="pt", device="cpu")
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: damaged ({error}); download it again") from None


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes tensors and string metadata as one file."""
    safetensors.torch.save_file(dict(tensors), path, dict(metadata))  # pyright: ignore[reportUnknownMemberType]


def shorten(names: list[str], most: int = 8) -> str:
    """The first names of a long list, and how many more there are."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest

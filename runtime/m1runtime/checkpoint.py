"""Safetensors on disk → the runtime's parameters, and back; every mismatch is told before a weight is read."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from m1kernels.quant import Weight, empty_quantized
from m1runtime.arena import Arena
from m1runtime.config import ModelConfig
from m1runtime.errors import CheckpointError
from m1runtime.headers import SINGLE, TensorHeader, checkpoint_headers, read_parts, shorten, write_tensors
from m1runtime.layout import (
    HEAD,
    Parameter,
    Placement,
    expected_tensors,
    fused_placements,
    is_derived,
    parameters,
    placements,
)
from m1runtime.quantize import Quantization, parameter_bytes
from m1runtime.shards import share, sources

__all__ = ["expected_tensors", "hub_tensors", "load", "place", "save_checkpoint"]

log = logging.getLogger(__name__)
_PADDING = 128  # what the beginnings of a parameter's parts may waste of an arena
_FLOATS = ("F32", "BF16", "F16", "F64")


def load(
    folder: str | Path,
    config: ModelConfig,
    *,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    quantization: Quantization | None = None,
    progress: bool | None = None,
    rank: int = 0,
    size: int = 1,
    output_major: bool = False,
) -> dict[str, Weight]:
    """The runtime's parameters (`layout.parameters`) from a single safetensors file or a sharded index.

    Hub names and the transformers-native fused expert names are read alike. Tensors are read, and quantised, one after
    another, so that no more than one is held besides the result. `progress`: a bar on stderr; None shows it on a
    terminal only. Of `size` ranks that compute a model together, `rank` gets and reads its share alone (`shards.py`).
    `output_major`: matrices lie as in the files on a CPU, too, as compiled products read them.
    Raises CheckpointError for truncated files, missing shards and missing, unknown or misshapen tensors.
    """
    folder = Path(folder)
    headers = checkpoint_headers(folder)
    if not headers:
        raise CheckpointError(f"{folder}: no weights; expected {SINGLE} or {SINGLE}.index.json")
    placed = match_tensors(config, headers)
    device = torch.device(device)
    own_config = share(config, size)
    own = placements(own_config) | fused_placements(own_config)
    wanted = parameters(own_config)
    arena = _arena(wanted.values(), dtype, quantization) if device.type == "cpu" else None
    loaded = {name: _empty(p, dtype, device, quantization, arena, output_major) for name, p in wanted.items()}
    by_file: dict[Path, list[str]] = {}
    for name in placed:
        by_file.setdefault(headers[name].file, []).append(name)
    shown = sys.stderr.isatty() if progress is None else progress
    with tqdm(total=len(placed), desc="weights", unit="tensor", file=sys.stderr, disable=not shown) as bar:
        for file, names in by_file.items():
            wanted = {name: sources(name, placed[name].shape, own[name].shape, rank, size) for name in names}
            for name, found in read_parts(file, wanted):
                tensor = found[0] if len(found) == 1 else torch.cat(found, dim=1)
                place(loaded[own[name].parameter][own[name].where], _padded(tensor, own[name].shape))
                bar.update()
    return loaded


def match_tensors(config: ModelConfig, headers: Mapping[str, TensorHeader]) -> dict[str, Placement]:
    """Tensor in the files → its placement. Raises CheckpointError listing every tensor that does not fit."""
    hub, fused = placements(config), fused_placements(config)
    wanted = hub | fused
    present = {name: header for name, header in headers.items() if not is_derived(name)}
    if config.tie_word_embeddings:
        present.pop(HEAD, None)
    placed = {name: wanted[name] for name in present if name in wanted}
    covered = {placement.parameter for name, placement in placed.items() if name in fused}
    missing = sorted(name for name, p in hub.items() if name not in placed and p.parameter not in covered)
    unknown = sorted(set(present) - set(wanted))
    misshapen = [
        f"{name} expected {list(placed[name].shape)} found {list(present[name].shape)}"
        for name in sorted(placed)
        if placed[name].shape != present[name].shape
    ]
    twice = sorted(name for name, p in placed.items() if name not in fused and p.parameter in covered)
    odd = [f"{name} is {present[name].dtype}" for name in sorted(placed) if present[name].dtype not in _FLOATS]
    problems = [
        f"{len(names)} tensors {kind}: {shorten(names)}"
        for kind, names in (
            ("missing", [f"{name} {list(hub[name].shape)}" for name in missing]),
            ("unknown", [f"{name} {list(present[name].shape)}" for name in unknown]),
            ("misshapen", misshapen),
            ("given a second time under another name", twice),
            ("of an unsupported dtype", odd),
        )
        if names
    ]
    if problems:
        raise CheckpointError("the weights do not fit the config: " + "; ".join(problems))
    return placed


def save_checkpoint(loaded: Mapping[str, Tensor], config: ModelConfig, folder: str | Path) -> None:
    """Writes parameters as a checkpoint folder in the hub layout: config.json and model.safetensors."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config.to_dict(), indent=1) + "\n", encoding="utf-8")
    write_tensors(folder / SINGLE, hub_tensors(loaded, config), {"format": "pt"})


def hub_tensors(loaded: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """The runtime's parameters under the hub's names, one contiguous tensor each."""
    return {name: loaded[p.parameter][p.where].contiguous() for name, p in placements(config).items()}


def place(target: Weight, tensor: Tensor) -> None:
    """Fills a parameter, or a part of one, with a tensor of a file."""
    if isinstance(target, Tensor):
        target.copy_(tensor)
    elif tensor.dim() == 2:
        target.fill(tensor.to(target.scales.device))
    else:
        for i, expert in enumerate(tensor):  # one at a time: quantising needs fp32 copies
            place(target[i], expert)


def _padded(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The last ranks' tokens may be fewer than the others'; theirs are rows of zero."""
    return tensor if tensor.shape == shape else torch.cat([tensor, tensor.new_zeros(shape[0] - len(tensor), shape[1])])


def _arena(wanted: Iterable[Parameter], dtype: torch.dtype, scheme: Quantization | None) -> Arena:
    return Arena(sum(sum(parameter_bytes(p, dtype, scheme).values()) + _PADDING for p in wanted))


def _empty(
    parameter: Parameter,
    dtype: torch.dtype,
    device: torch.device,
    scheme: Quantization | None,
    arena: Arena | None,
    output_major: bool,
) -> Weight:
    bits = scheme.bits_of(parameter) if scheme else None
    if bits is not None:
        return empty_quantized(parameter.shape, bits, device, empty=arena.empty if arena else None)
    dtype = torch.float32 if parameter.full else dtype
    if arena is None:
        return torch.empty(parameter.shape, dtype=dtype, device=device)
    if parameter.product and not output_major:
        # Matrices lie input-major on a CPU: BLAS' products with one token then read memory up to twice as fast.
        *experts, rows, columns = parameter.shape
        return arena.empty((*experts, columns, rows), dtype).transpose(-1, -2)
    return arena.empty(parameter.shape, dtype)

"""Devices and dtypes by name."""

from __future__ import annotations

import torch

from m1runtime.errors import ConfigError


def as_device(device: str | torch.device | None) -> torch.device:
    """A device that is there; None is CUDA when there is one. Raises ConfigError."""
    try:
        found = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        raise ConfigError(f"device {device!r} is unknown; use cpu, cuda or cuda:<index>") from None
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device {device!r}: this machine (or this torch build) has no such GPU; use device='cpu'")
    return found


def as_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """A supported dtype; None is float32 on a CPU and bfloat16 elsewhere. Raises ConfigError."""
    if dtype is None:
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    names = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    name = str(dtype).removeprefix("torch.")
    if name not in names:
        raise ConfigError(f"dtype {name!r} is not supported; supported: {', '.join(names)}")
    return names[name]

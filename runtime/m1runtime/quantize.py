"""Which parameters are kept in 8 or 4 bits, and what they weigh.

The router, norms, embeddings, head and lightning states stay as they are; the output gates of lightning layers keep at
least 8 bits, as published quantisations of M1 do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from m1kernels.quant import group_size
from m1runtime.errors import ConfigError
from m1runtime.layout import Parameter


@dataclass(frozen=True, slots=True)
class Quantization:
    """`bits` a weight, of the experts alone or of every linear map."""

    bits: int
    experts_only: bool

    def __str__(self) -> str:
        return f"int{self.bits}" + ("-experts" if self.experts_only else "")

    def bits_of(self, parameter: Parameter) -> int | None:
        """8, 4 or None: kept plain."""
        if parameter.kind == "expert" or (parameter.kind == "linear" and not self.experts_only):
            return self.bits if parameter.shape[-1] % 2 == 0 else 8
        return 8 if parameter.kind == "gate" and not self.experts_only else None


SCHEMES = {str(q): q for q in (Quantization(bits, only) for bits in (8, 4) for only in (True, False))}
"""By name, the largest first."""


def quantization(name: str | Quantization | None) -> Quantization | None:
    """The scheme of a name: int8, int4, int8-experts, int4-experts; None is none. Raises ConfigError for any other."""
    if name is None or isinstance(name, Quantization):
        return name
    if name not in SCHEMES:
        raise ConfigError(f"quantization {name!r} is not supported; supported: {', '.join(SCHEMES)} or None")
    return SCHEMES[name]


def parameter_bytes(parameter: Parameter, dtype: torch.dtype, scheme: Quantization | None = None) -> dict[str, int]:
    """Bytes that a parameter takes, by what they hold ("int8", "bfloat16", ...); scales are float32."""
    count, rows = math.prod(parameter.shape), math.prod(parameter.shape[:-1])
    bits = scheme.bits_of(parameter) if scheme else None
    if bits is None:
        kept = torch.float32 if parameter.full else dtype
        return {str(kept).removeprefix("torch."): count * kept.itemsize}
    groups = 1 if bits == 8 else parameter.shape[-1] // group_size(parameter.shape[-1])
    return {f"int{bits}": count * bits // 8, "float32": rows * groups * 4}

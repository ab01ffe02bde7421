"""Runs the Triton kernels of lightning attention in Triton's interpreter against the oracle; prints errors as JSON.

Started by test_lightning_triton.py in its own process, because triton reads TRITON_INTERPRET once, at import.
"""

from __future__ import annotations

import json

import torch
from conftest import error, packed

from m1kernels import lightning_triton

DTYPES = {"fp32": torch.float32, "fp16": torch.float16}
PREFILL = {
    "one": ([1], 16, [0]),
    "block_edges": ([63, 64, 65], 16, [0, 62, 63, 126, 127, 190, 191]),
    "mixed": ([1, 0, 130, 1, 3], 32, [134, 0, 64, 5, 5, 130]),
    "no_export": ([70], 64, []),
    "full_width": ([100], 128, [40]),
}


def prefill_error(lengths: list[int], dim: int, export: list[int], dtype: torch.dtype) -> float:
    x = packed(lengths, dim=dim, dtype=dtype)
    expected = x.oracle()
    o, state, exported = lightning_triton.prefill(x.q, x.k, x.v, x.slopes, x.cu, x.initial, export)
    return max(error(o, expected.o), error(state, expected.state), error(exported, expected.after[export]))


def strided_error() -> float:
    """q, k and v as views of one [T, A, 3D] projection, which is how the model holds them."""
    x = packed([80], dim=16)
    q, k, v = torch.cat([x.q, x.k, x.v], -1).split(16, -1)
    expected = x.oracle()
    o, state, _ = lightning_triton.prefill(q, k, v, x.slopes, torch.tensor(x.cu), x.initial, ())
    return max(error(o, expected.o), error(state, expected.state))


def decode_error(slots: list[int] | None, dim: int, dtype: torch.dtype) -> float:
    x = packed([1, 1, 1], dim=dim, dtype=dtype)
    expected = x.oracle()
    rows = torch.tensor(slots or [0, 1, 2])
    states = torch.full((5, *x.initial.shape[1:]), 7.0)
    states[rows] = x.initial
    untouched = [row for row in range(5) if row not in rows.tolist()]
    o = lightning_triton.decode(x.q, x.k, x.v, x.slopes, states, None if slots is None else rows)
    spilled = float((states[untouched] - 7.0).abs().max())
    return max(error(o, expected.o), error(states[rows], expected.state), spilled)


def main() -> None:
    errors = {"prefill strided": strided_error()}
    for name, dtype in DTYPES.items():
        for case, (lengths, dim, export) in PREFILL.items():
            errors[f"prefill {case} {name}"] = prefill_error(lengths, dim, export, dtype)
        errors[f"decode rows {name}"] = decode_error(None, 16, dtype)
        errors[f"decode slots {name}"] = decode_error([4, 0, 2], 64, dtype)
    print(json.dumps(errors))


if __name__ == "__main__":
    main()

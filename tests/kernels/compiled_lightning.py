"""Compiles the Triton kernels of lightning attention for Hopper, without a GPU; prints their shared memory as JSON.

Started by test_lightning_triton.py in its own process with a cache folder of its own.
"""

from __future__ import annotations

import json

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from m1kernels import lightning_triton

FP32 = {"slope_ptr", "init_ptr", "o_ptr", "state_ptr", "states_ptr", "export_ptr"}
INPUTS = {"q_ptr", "k_ptr", "v_ptr"}


def shared_memory(kernel, dtype: str, constants: dict, warps: int) -> int:
    """Bytes a program of the compiled kernel holds in shared memory."""

    def kind(name: str) -> str:
        if name in constants:
            return "constexpr"
        if name.endswith("_ptr"):
            return "*" + (dtype if name in INPUTS else "fp32" if name in FP32 else "i32")
        return "i32"

    names = kernel.arg_names
    source = ASTSource(
        kernel,
        {name: kind(name) for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if name not in constants},
    )
    options = {"num_warps": warps, "num_stages": 1, "enable_fp_fusion": True}
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).metadata.shared


def prefill(dtype: str, block: int, precision: str) -> int:
    constants = {"HEADS": 64, "DIM": 128, "PART": 64, "BLOCK": block, "EXPORTS": True, "PRECISION": precision}
    return shared_memory(lightning_triton._prefill_kernel, dtype, constants, warps=8)


def decode(dtype: str) -> int:
    return shared_memory(lightning_triton._decode_kernel, dtype, {"DIM": 128, "PART": 32, "SLOTS": True}, warps=4)


if __name__ == "__main__":
    compiled = {
        "prefill bf16": prefill("bf16", 64, "tf32x3"),
        "prefill fp32": prefill("fp32", 32, "ieee"),
        "decode bf16": decode("bf16"),
        "decode fp32": decode("fp32"),
    }
    print(json.dumps(compiled))

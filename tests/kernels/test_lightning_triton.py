from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed")

CASES = ["one", "block_edges", "mixed", "no_export", "full_width"]


HOPPER_SHARED_MEMORY = 227 * 1024


def run_script(name: str, **environment: str) -> dict:
    """The JSON a sibling script prints; a process of its own, as triton reads its variables at import."""
    script = Path(__file__).with_name(name)
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def errors() -> dict[str, float]:
    """Relative errors of the interpreted kernels against the oracle."""
    return run_script("interpreted_lightning.py", TRITON_INTERPRET="1")


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
@pytest.mark.parametrize("case", CASES)
def test_interpreted_prefill_is_the_recurrence(errors, case, dtype):
    assert errors[f"prefill {case} {dtype}"] < 1e-6


def test_interpreted_prefill_reads_views_of_one_projection(errors):
    assert errors["prefill strided"] < 1e-6


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
@pytest.mark.parametrize("case", ["rows", "slots"])
def test_interpreted_decode_is_the_recurrence_and_leaves_other_slots(errors, case, dtype):
    assert errors[f"decode {case} {dtype}"] < 1e-6


@pytest.mark.skipif(sys.platform != "linux", reason="triton's compiler for CUDA ships for Linux alone")
def test_kernels_compile_for_hopper_and_fit_its_shared_memory(tmp_path):
    compiled = run_script("compiled_lightning.py", TRITON_CACHE_DIR=str(tmp_path), TRITON_INTERPRET="0")
    assert set(compiled) == {f"{op} {dtype}" for op in ("prefill", "decode") for dtype in ("bf16", "fp32")}
    assert max(compiled.values()) <= HOPPER_SHARED_MEMORY

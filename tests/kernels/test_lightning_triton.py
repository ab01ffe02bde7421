from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed")

CASES = ["one", "block_edges", "mixed", "no_export", "full_width"]


@pytest.fixture(scope="module")
def errors() -> dict[str, float]:
    """Relative errors of the interpreted kernels; a process of its own, as triton reads the variable at import."""
    script = Path(__file__).with_name("interpreted_lightning.py")
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


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

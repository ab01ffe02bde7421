from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

import m1agent

HEAVY = {"torch", "transformers", "mcp", "starlette", "pydantic", "jsonschema", "httpx", "anyio", "m1runtime"}


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_importing_loads_nothing_heavy() -> None:
    loaded = set(json.loads(python("import json, sys, m1agent; print(json.dumps(list(sys.modules)))")))
    assert not HEAVY & loaded


def test_importing_takes_less_than_150_ms() -> None:
    def seconds(code: str) -> float:
        start = time.perf_counter()
        python(code)
        return time.perf_counter() - start

    # Interleaved minima: other programs on the machine slow single runs, never speed them up.
    pairs = [(seconds("pass"), seconds("import m1agent")) for _ in range(5)]
    bare, ours = (min(column) for column in zip(*pairs, strict=True))
    assert ours - bare < 0.150


def test_the_public_names_bring_no_runtime() -> None:
    code = "import json, sys\nfrom m1agent import *\nprint(json.dumps(list(sys.modules)))"
    assert not {"torch", "transformers", "mcp", "starlette", "m1runtime"} & set(json.loads(python(code)))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        m1agent.nothing  # noqa: B018

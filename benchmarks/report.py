"""How every benchmark says what it measured: machine, versions, command line, median of N; JSON under results/."""

from __future__ import annotations

import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("m1agent", "torch", "triton", "transformers", "llguidance", "xgrammar", "mcp", "pydantic")


def seconds(work: Callable[[], object], runs: int = 5, warm_up: int = 1) -> list[float]:
    """Wall seconds of `runs` runs after `warm_up` uncounted ones."""
    for _ in range(warm_up):
        work()
    spent: list[float] = []
    for _ in range(runs):
        began = time.perf_counter()
        work()
        spent.append(time.perf_counter() - began)
    return spent


def paired(ours: Callable[[], object], peer: Callable[[], object], runs: int = 5) -> tuple[list[float], list[float]]:
    """Wall seconds of both, run in turn so that a slow moment of the machine hits both."""
    ours(), peer()
    pairs = [(seconds(ours, 1, 0)[0], seconds(peer, 1, 0)[0]) for _ in range(runs)]
    return [a for a, _ in pairs], [b for _, b in pairs]


def median(values: list[float]) -> float:
    """The middle value."""
    return statistics.median(values)


def save(name: str, figures: dict[str, Any], *, module: str | None = None) -> None:
    """Prints the figures and writes them to results/<name>.json; `module`: the benchmark, if named otherwise."""
    report = {
        "command": " ".join(["python", "-m", f"benchmarks.{module or name}", *sys.argv[1:]]),
        "machine": machine(),
        "figures": figures,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


def machine() -> dict[str, Any]:
    """Processor, accelerator and versions."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {"processor": _processor(), "python": platform.python_version(), "gpu": _gpu(), "versions": versions}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _gpu() -> str | None:
    torch = sys.modules.get("torch")
    return torch.cuda.get_device_name(0) if torch is not None and torch.cuda.is_available() else None

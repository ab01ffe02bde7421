"""What an SDK costs a step, ours and its peers in the same run: `make bench-peers`, or without peers
`python -m benchmarks.loop_overhead`.

Each framework runs in a process of its own with a fake model in memory, as `benchmarks/peers/` says; peers have an
environment of their own, `.venv-peers`. A step is one reply with one call, its validation, the tool, and its result.
Flat means: the last fifty steps of 400 cost no more than the first fifty. Figures are milliseconds, medians.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import report

ROOT = Path(__file__).parents[1]
PEERS = ROOT / ".venv-peers" / "bin" / "python"
IMPORT_RUNS = 9
SYSTEMS = {
    "m1agent": ("ours", "from m1agent import Agent, tool"),
    "pydantic-ai-slim": ("pydantic_ai", "from pydantic_ai import Agent"),
    "openai-agents": ("openai_agents", "from agents import Agent, Runner, function_tool"),
    "smolagents": ("smolagents", "from smolagents import ToolCallingAgent, tool"),
    "langchain": ("langchain", "from langchain.agents import create_agent"),
}
ROWS = {
    "async tool, 1 step": ("async", "1", "step"),
    "async tool, 50 steps": ("async", "50", "step"),
    "async tool, 400 steps": ("async", "400", "step"),
    "  without the fake model": ("async", "400", "outside"),
    "  processor time": ("async", "400", "processor"),
    "  steps 1-50 of 400": ("async", "first 50"),
    "  steps 351-400 of 400": ("async", "last 50"),
    "sync tool, 1 step": ("sync", "1", "step"),
    "sync tool, 50 steps": ("sync", "50", "step"),
    "sync tool, 400 steps": ("sync", "400", "step"),
    "  without the fake model ": ("sync", "400", "outside"),
    "  processor time ": ("sync", "400", "processor"),
    "  steps 1-50 of 400 ": ("sync", "first 50"),
    "  steps 351-400 of 400 ": ("sync", "last 50"),
    "20 parallel calls of 10 ms": ("parallel", "step"),
    "  without the fake model  ": ("parallel", "outside"),
    "import, over bare python": ("import", "wall"),
    "  processor time  ": ("import", "processor"),
}


def main() -> None:
    """Measure every framework that is there, print a table, and save the figures."""
    found = {name: system for name, system in SYSTEMS.items() if name == "m1agent" or PEERS.exists()}
    figures: dict[str, Any] = {name: _measure(name, *system) for name, system in found.items()}
    report.save("loop_overhead", figures)
    print(f"\n{_table(figures)}\n")
    if len(found) == 1:
        print("`make bench-peers` sets up the peers and measures them too.")


def _measure(name: str, module: str, imported: str) -> dict[str, Any]:
    print(f"{name} ...", file=sys.stderr, flush=True)
    python = sys.executable if name == "m1agent" else str(PEERS)
    version = _python(python, "-c", f"from importlib.metadata import version; print(version({name!r}))").strip()
    figures = json.loads(_python(python, "-W", "ignore", "-m", f"benchmarks.peers.{module}"))
    return {"version": version, **figures, "import": _import(python, imported)}


def _import(python: str, imported: str) -> dict[str, float]:
    """Milliseconds over bare Python, of fresh processes: by the clock, and on the processor."""
    bare: list[tuple[float, float]] = []
    full: list[tuple[float, float]] = []
    for _ in range(1 + IMPORT_RUNS):
        bare.append(_spent(python, "pass"))
        full.append(_spent(python, imported))
    wall, processor = (
        round(
            1000 * (report.median([one[which] for one in full[1:]]) - report.median([one[which] for one in bare[1:]])),
            1,
        )
        for which in (0, 1)
    )
    return {"wall": wall, "processor": processor}


def _spent(python: str, code: str) -> tuple[float, float]:
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    _python(python, "-c", code)
    after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - began
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _python(python: str, *arguments: str) -> str:
    done = subprocess.run([python, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


def _table(figures: dict[str, Any]) -> str:
    width = max(map(len, ROWS))
    names = [f"{name} {one['version']}" for name, one in figures.items()]
    lines = [" ".join([f"{'ms':{width}}", *(f"{name:>24}" for name in names)])]
    for row, path in ROWS.items():
        lines.append(" ".join([f"{row:{width}}", *(f"{_at(one, path):>24}" for one in figures.values())]))
    return "\n".join(lines)


def _at(figures: Any, path: tuple[str, ...]) -> str:
    for key in path:
        figures = figures.get(key) if figures is not None else None
    return "-" if figures is None else f"{figures:.3f}" if figures < 10 else f"{figures:.1f}"


if __name__ == "__main__":
    main()

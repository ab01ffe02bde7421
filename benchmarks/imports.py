"""What `import m1agent` costs over bare Python, and what it loads: `python -m benchmarks.imports`."""

from __future__ import annotations

import subprocess
import sys

from benchmarks import report

HEAVY = ("torch", "transformers", "mcp", "starlette", "pydantic")


def main() -> None:
    """Measures bare Python and the import in turn."""
    bare, ours = report.paired(lambda: _run("pass"), lambda: _run("import m1agent"), runs=15)
    _, public = report.paired(lambda: _run("pass"), lambda: _run("from m1agent import Agent, tool"), runs=15)
    loaded = _run(f"import sys, m1agent; print([name for name in {HEAVY!r} if name in sys.modules])")
    report.save("imports", {
        "bare python ms": round(1000 * report.median(bare), 1),
        "import m1agent ms over bare": round(1000 * (report.median(ours) - report.median(bare)), 1),
        "from m1agent import Agent, tool ms over bare": round(1000 * (report.median(public) - report.median(bare)), 1),
        "heavy packages loaded": loaded.strip(),
    })  # fmt: skip


def _run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    main()

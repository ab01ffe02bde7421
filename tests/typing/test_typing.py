"""The public types, as pyright sees them in strict mode."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def check(*paths: Path) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-m", "pyright", "--outputjson", *map(str, paths)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=170,
    )
    found = json.loads(done.stdout)
    assert found["summary"]["filesAnalyzed"] >= len(paths), done.stdout
    return [f"{one['range']['start']['line'] + 1}: {one['message']}" for one in found["generalDiagnostics"]]


def test_the_public_types_are_what_they_are_said_to_be(tmp_path: Path) -> None:
    assert check(ROOT / "tests" / "typing" / "api") == []


def test_a_wrong_type_is_found() -> None:
    wrong = ROOT / "tests" / "typing" / "api" / "_wrong.py"
    wrong.write_text("from m1agent import Agent\n\nx: int = Agent('m1-nano').run_sync('Go.').unwrap()\n")
    try:
        (problem,) = check(wrong)
    finally:
        wrong.unlink()
    assert '"str" is not assignable to "int"' in problem

"""Patches for a folder of code: made in a copy, tested in a sandbox, and shown only where the tests pass.

python examples/code_improver.py . --request "Make parse() faster." --test "python -m pytest -q" --model openai:...
"""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from pydantic import BaseModel

from m1agent import Agent, M1AgentError, Retry, tool
from m1agent.models.base import Model
from m1tools.files import files
from m1tools.sandbox import Bounds, Sandbox, isolation

SKIPPED = shutil.ignore_patterns(".git", ".venv", "node_modules", "__pycache__", ".*_cache")
TESTS = re.compile(r"(^|/)(tests?/|test_|conftest\.py$)|_test\.\w+$")
IMPROVER = "You improve code. Read it, edit it, run the tests until they pass, then say in a sentence what you did."


class Suggestion(BaseModel):
    """`diff` is for `git apply`, and empty where there is nothing to improve; `tests` is what the tests printed."""

    summary: str
    diff: str
    tests: str


def suggest_improvements(
    folder: str | Path, request: str, test: str, *, model: str | Path | Model, trust: bool = False
) -> Suggestion:
    """A patch for `folder` that passes the command `test`, and changes no test.

    The folder stays as it is: patches are made in a copy, and tests run in a sandbox, on a copy of that.

    Raises:
        PermissionError: this machine can't isolate the tests, which run what the model wrote; `trust` runs them anyway.
        RunStopped: no patch passed.
    """
    if not isolation().namespaces and not trust:
        raise PermissionError(f"{isolation().told} Run the tests all the same with --trust.")
    output = ""
    with tempfile.TemporaryDirectory() as place:
        before, after = Path(place, "a"), Path(place, "b")
        for copy in (before, after):
            shutil.copytree(folder, copy, symlinks=True, ignore=SKIPPED)

        async def tested() -> tuple[bool, str]:
            nonlocal output
            with tempfile.TemporaryDirectory() as scratch:
                copy = Path(scratch, "copy")
                shutil.copytree(after, copy, symlinks=True)
                homes = (Path(sys.base_prefix), Path(sys.prefix))
                box = Sandbox(Bounds(seconds=300), read=homes, write=(copy,))
                outcome = await box.run(_words(test), folder=copy)
            output = outcome.output[-4000:]
            return outcome.code == 0 and not outcome.stopped, output

        @tool
        async def run_tests() -> str:
            """Run the tests on the code as it is now."""
            passed, said = await tested()
            return f"{'passed' if passed else 'FAILED'}\n{said}"

        async def passes(_: str) -> Retry | None:
            if touched := [name for name in _changed(place) if TESTS.search(name)]:
                return Retry(f"Undo your changes to the tests: {', '.join(touched)}.")
            passed, said = await tested()
            return None if passed else Retry(f"The tests fail:\n{said}")

        tools = [files(after, approval=False), run_tests]
        with Agent(model, tools, IMPROVER, output_guards=[passes]) as agent:
            summary = agent.run_sync(request).unwrap()
        return Suggestion(summary=summary, diff=_diff(place), tests=output)


def _words(command: str) -> list[str]:
    words = shlex.split(command)
    return [sys.executable if words[0] == "python" else words[0], *words[1:]]


def _diff(place: str, *options: str) -> str:
    words = ["git", "diff", "--no-index", "--no-prefix", "--no-ext-diff", "--no-color", *options, "a", "b"]
    return subprocess.run(words, cwd=place, capture_output=True, text=True).stdout


def _changed(place: str) -> list[str]:
    names = _diff(place, "--name-only", "-z").split("\0")
    return [name.removeprefix("b/").removeprefix("a/") for name in names if name]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a checkpoint folder, hf:..., openai:...; m1-nano is too small")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--request", default="Find the worst problem of this code and fix it.")
    parser.add_argument("--test", default="python -m pytest -q")
    parser.add_argument("--trust", action="store_true", help="run tests where they cannot be isolated")
    given = parser.parse_args()
    try:
        made = suggest_improvements(given.folder, given.request, given.test, model=given.model, trust=given.trust)
    except (M1AgentError, OSError) as error:
        print(f"code_improver: {error}", file=sys.stderr)
        return 1
    print(f"{made.summary}\n\n{made.tests}\n\n{made.diff or 'Nothing was changed.'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

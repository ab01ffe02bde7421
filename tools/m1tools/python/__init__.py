"""The python toolset: `run_python`, code in a sandbox. `m1tools.sandbox` says what keeps it in, and what does not."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from m1agent import ToolError, Toolset, tool
from m1agent.messages import ToolOutput
from m1agent.render import note
from m1agent.tools import Hints, Needs
from m1tools.python.plots import read_images
from m1tools.sandbox import Bounds, Isolation, Outcome, Sandbox, isolation

DRIVER = Path(__file__).with_name("driver.py")
NO_OUTPUT = "Nothing was printed."
CONDITIONS = {"MPLBACKEND": "Agg", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
HINTS = {
    137: " It was killed.",
    139: " It crashed.",
    152: " Its processor time was used up.",
    153: " A file grew too large.",
}
STOPS = {
    "time": "The code was stopped after {bounds.seconds:g} s. Do less at once.",
    "memory": "The code was stopped: it held more than {megabytes} MB. Work on smaller pieces.",
    "processes": "The code was stopped: it had more than {bounds.processes} processes.",
    "output": "The code was stopped: it printed more than {bounds.output} bytes. Print less.",
    "cancelled": "The code was stopped.",
}


def python(
    root: str | os.PathLike[str] | None = None,
    *,
    bounds: Bounds | None = None,
    packages: Iterable[str | os.PathLike[str]] = (),
    approval: Needs | None = None,
    isolated_by: Isolation | None = None,
) -> Toolset:
    """The toolset that runs Python code.

    The code runs in this interpreter's environment, in a process of its own: without network, in an empty folder that
    vanishes afterwards, within `bounds`. Where this machine can't keep it from the user's files, the network or other
    processes, each call waits for a human's yes, and each result says what is not isolated.

    Args:
        root: a folder the code works in and may read, but not change.
        bounds: of time, memory, processes, output and files.
        packages: more folders the code may read, such as one on PYTHONPATH.
        approval: whether calls wait for a yes, in place of the rule above.
        isolated_by: what keeps the code in, in place of all that this machine has.
    """
    folder = None if root is None else Path(root).resolve(strict=True)
    bounds = bounds or Bounds()
    kept_in = isolated_by

    def sandbox() -> Sandbox:
        readable = [Path(sys.base_prefix), Path(sys.prefix), DRIVER.parent, *(Path(one).resolve() for one in packages)]
        made = Sandbox(
            bounds,
            read=(*readable, *(() if folder is None else (folder,))),
            environment={**CONDITIONS, "PYTHONPATH": os.pathsep.join(map(str, readable[3:]))},
        )
        return made if kept_in is None else replace(made, isolation=kept_in)

    def needs_approval(arguments: dict[str, Any]) -> bool:
        return not (kept_in or isolation()).complete

    @tool(approval=needs_approval if approval is None else approval, hints=Hints(read_only=True, open_world=False))
    async def run_python(code: str) -> ToolOutput:
        """Run Python code and see what it prints.

        The value of a last expression is printed too, and matplotlib figures are shown. There is no network. Each call
        starts anew: nothing is kept between calls, and no file that is written stays.

        Args:
            code: A whole program.
        """
        return await _run(code, sandbox(), folder)

    return Toolset("python", [run_python])


async def _run(code: str, sandbox: Sandbox, folder: Path | None) -> ToolOutput:
    with tempfile.TemporaryFile() as plots:
        words = [sys.executable, str(DRIVER), str(plots.fileno())]
        outcome = await sandbox.run(
            words, folder=folder, stdin=code.encode("utf-8", "replace"), handed=(plots.fileno(),)
        )
        images = tuple(read_images(plots))
    lines = [outcome.output.rstrip("\n") or NO_OUTPUT, *(note(image) for image in images)]
    if outcome.stopped:
        raise ToolError("\n".join([_stopped(outcome, sandbox.bounds), *lines, sandbox.isolation.told]).rstrip())
    if outcome.code:
        lines.append(f"Exit status {outcome.code}.{_hint(outcome)}")
    return ToolOutput("\n".join(filter(None, [*lines, sandbox.isolation.told])), images)


def _stopped(outcome: Outcome, bounds: Bounds) -> str:
    return STOPS[outcome.stopped].format(bounds=bounds, megabytes=bounds.memory >> 20)


def _hint(outcome: Outcome) -> str:
    return HINTS.get(outcome.code, "")

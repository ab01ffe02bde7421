"""A folder's own tests, run on a draft."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

from m1agent import ToolError
from m1tools.draft.drafts import Draft
from m1tools.sandbox import Bounds, Isolation, Sandbox, isolation
from m1tools.shell import command_words

BOUNDS = Bounds(seconds=300, memory=4 << 30, processes=256, file_size=1 << 30, scratch=1 << 30, shown=8_000)
STOPS = {
    "time": "The tests were stopped: they were not over after {seconds:g} s.",
    "memory": "The tests were stopped: they held too much memory.",
    "processes": "The tests were stopped: they had too many processes.",
    "output": "The tests were stopped: they printed too much.",
    "cancelled": "The tests were stopped.",
}
CONDITIONS = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
RULE = re.compile(r"^[\W_]+|[\W_]+$")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the tests said: `output` is what they printed, `stopped` why they were ended, or ''."""

    passed: bool
    output: str
    stopped: str
    seconds: float

    @property
    def told(self) -> str:
        """The verdict as a model reads it."""
        head = "The tests passed." if self.passed else self.stopped or "The tests failed."
        return f"{head}\n{self.output.strip() or 'Nothing was printed.'}"

    @property
    def line(self) -> str:
        """The verdict in a line."""
        lines = [found for line in self.output.splitlines() if (found := RULE.sub("", line))]
        last = self.stopped or (lines[-1] if lines else "nothing was printed")
        return f"{'passed' if self.passed else 'FAILED'}: {last[:100]}"


@dataclass(frozen=True, slots=True)
class Suite:
    """The command that runs a folder's tests, such as `python -m pytest -q`; `python` is this one.

    It runs in a sandbox, without network, in a copy of the draft. What is ignored stays there for the next run, so that
    builds go on from the last one.

    Args:
        command: a line as for a shell. The tests pass where its exit status is 0.
        bounds: of one run.
        read: more folders that it may read, such as a toolchain or an environment.
        isolated_by: what keeps it in, in place of all that this machine has.
    """

    command: str
    bounds: Bounds = BOUNDS
    read: tuple[Path, ...] = ()
    isolated_by: Isolation = field(default_factory=isolation)

    def __post_init__(self) -> None:
        try:
            command_words(self.command)
        except ToolError as error:
            raise ValueError(f"the tests' {error}") from None

    async def run(self, draft: Draft) -> Verdict:
        """Run the tests on a draft as it is.

        Raises:
            OSError: the command is not there, or the sandbox cannot be made.
            DraftError: the draft cannot be read.
        """
        async with draft.scratch() as folder:
            outcome = await self._sandbox(folder).run(command_words(self.command), folder=folder)
        stopped = STOPS[outcome.stopped].format(seconds=self.bounds.seconds) if outcome.stopped else ""
        return Verdict(not outcome.code and not stopped, outcome.output, stopped, outcome.seconds)

    def _sandbox(self, folder: Path) -> Sandbox:
        programs = [str(Path(sys.prefix) / "bin"), os.environ.get("PATH", os.defpath)]
        return Sandbox(
            self.bounds,
            read=(Path(sys.base_prefix), Path(sys.prefix), *self.read),
            write=(folder,),
            environment={**CONDITIONS, "PATH": os.pathsep.join(programs)},
            isolation=self.isolated_by,
        )

"""The shell toolset: `run_command`, each call with a human's yes, in a sandbox that holds one folder.

A command of plain words is started without a shell; anything more goes to `/bin/sh`.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Awaitable, Mapping
from pathlib import Path

from m1agent import ToolError, Toolset, tool
from m1agent.tools import Hints, Needs
from m1tools.sandbox import Bounds, Command, Outcome, Sandbox, clean_environment, run_bounded

SYNTAX = re.compile(r"[|&;<>()$`*?\[\]{}#~!\n=%^]")
BUILTINS = frozenset(
    """. : alias bg cd command eval exec exit export fg hash jobs read set shift source trap type ulimit umask unset
    wait""".split()
)
GRACE = 2.0
BOUNDS = Bounds(seconds=120, memory=2 << 30, processes=128, file_size=256 << 20, scratch=512 << 20)
STOPS = {
    "time": "The command was stopped after {seconds:g} s.",
    "memory": "The command was stopped: it held too much memory.",
    "processes": "The command was stopped: it had too many processes.",
    "output": "The command was stopped: it printed too much. Print less, such as with head.",
    "cancelled": "The command was stopped.",
}


def shell(
    root: str | os.PathLike[str] = ".",
    *,
    approval: Needs = True,
    network: bool = False,
    confined: bool = True,
    bounds: Bounds = BOUNDS,
    environment: Mapping[str, str] | None = None,
) -> Toolset:
    """The toolset that runs commands in `root`.

    A command may change files in `root`, but not under its `.git`, and in folders of its own that vanish. It sees this
    interpreter, the system's programs and nothing else of the user's. What it leaves running is ended.

    Args:
        root: where commands start.
        approval: whether calls wait for a yes: always, never, or by their arguments.
        network: whether commands reach the network.
        confined: False runs them with all the user's rights, in a clean environment, bounded in time and output.
        bounds: of time, memory, processes, output and files.
        environment: variables that commands are given beside those of a clean one.
    """
    folder = Path(root).resolve(strict=True)
    given = {"PATH": os.pathsep.join([str(Path(sys.prefix) / "bin"), os.environ.get("PATH", os.defpath)])}
    given |= environment or {}
    clean = clean_environment(os.path.expanduser("~"), given)

    @tool(approval=approval, hints=Hints(read_only=False, destructive=True, open_world=network))
    async def run_command(command: str) -> str:
        """Run a command line and see what it prints. Nothing it starts goes on afterwards.

        Args:
            command: Such as: python -m pytest -q tests
        """
        words = command_words(command)
        if not confined:
            started = Command(words=words, folder=folder, environment=clean, grace=GRACE)
            return _told(await _started(run_bounded(started, bounds)), bounds, "")
        frozen = tuple(path for path in [folder / ".git"] if path.exists())
        sandbox = Sandbox(
            bounds,
            read=(Path(sys.base_prefix), Path(sys.prefix)),
            write=(folder,),
            frozen=frozen,
            network=network,
            environment=given,
        )
        return _told(await _started(sandbox.run(words, folder=folder)), bounds, sandbox.isolation.told)

    return Toolset("shell", [run_command])


def command_words(command: str) -> list[str]:
    """The program and its arguments; through the shell where the line needs one.

    Raises:
        ToolError: it is no command line.
    """
    if "\0" in command:
        raise ToolError("command: a command cannot hold a NUL byte.")
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise ToolError(f"command: {error}. Close what is open.") from None
    if not words:
        raise ToolError("command: expected a command line, got nothing.")
    return ["/bin/sh", "-c", command] if SYNTAX.search(command) or words[0] in BUILTINS else words


async def _started(run: Awaitable[Outcome]) -> Outcome:
    try:
        return await run
    except OSError as error:
        raise ToolError(f"The command was not started. {error}.") from None


def _told(outcome: Outcome, bounds: Bounds, isolation: str) -> str:
    printed = outcome.output.rstrip("\n") or "Nothing was printed."
    if outcome.stopped:
        why = STOPS[outcome.stopped].format(seconds=bounds.seconds)
        raise ToolError("\n".join(filter(None, [why, printed, isolation])))
    code = f"Exit status {outcome.code}." if outcome.code else ""
    return "\n".join(filter(None, [printed, code, isolation]))

"""A work place for a coding agent: one folder's files, its history, and code that is run apart."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Literal

from m1agent import Toolset
from m1agent.toolset import gather_tools
from m1tools.files import files
from m1tools.git import git
from m1tools.python import python
from m1tools.sandbox import Bounds
from m1tools.shell import shell


def coding(
    root: str | os.PathLike[str] = ".",
    *,
    ask: Literal["changes", "commits"] = "changes",
    commands: bool = False,
    trusted: bool = False,
    bounds: Bounds | None = None,
) -> Toolset:
    """The tools of a coding agent in `root`: files with search, edits and undo; git, where there is a repository; and
    Python, which sees the folder and does not change it.

    Looking never asks. Python asks only where this machine cannot keep it in.

    Args:
        root: the folder.
        ask: "changes" asks before every change; "commits" lets files be edited, which can be undone, and asks before
            commits, applied diffs and commands.
        commands: also `run_command`, which always asks.
        trusted: whether the repository may run its hooks and filters.
        bounds: of one run of Python or of a command.
    """
    if ask not in ("changes", "commits"):
        raise ValueError(f"coding: ask must be 'changes' or 'commits', not {ask!r}")
    sets = [files(root, approval=ask == "changes")]
    if (Path(root) / ".git").exists() and shutil.which("git"):
        sets.append(git(root, trusted=trusted))
    sets.append(python(root, bounds=bounds))
    if commands:
        sets.append(shell(root) if bounds is None else shell(root, bounds=bounds))
    return gather_tools(sets, "coding")

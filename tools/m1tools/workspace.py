"""Work places for coding agents: one folder's files, its history, and code that is run apart; or a draft of them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Literal

from m1agent import Toolset, tool
from m1agent.tools import Hints, Needs
from m1agent.toolset import gather_tools
from m1tools.draft import Draft, Suite
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


HISTORY = ("git_log", "git_show", "git_blame")
READS = Hints(read_only=True, open_world=False)
SHOWN = 16_000


def drafting(draft: Draft, suite: Suite, *, approval: Needs = True, trusted: bool = False) -> Toolset:
    """The tools of a coding agent that changes a draft: its files, Python that sees it and does not change it, its
    tests, what has changed so far, and the history of the repository that it is a draft of.

    Args:
        draft: what is changed.
        suite: how its tests are run.
        approval: whether calls that change files of the draft wait for a yes: always, never, or by their arguments.
        trusted: whether the repository may run its filters.
    """

    @tool(hints=READS, approval=not suite.isolated_by.complete)
    async def run_tests() -> str:
        """Run the tests on the code as it is now."""
        state = (await draft.tree())[:7]  # Tests that fail as before, after other changes, are no loop.
        return f"{(await suite.run(draft)).told}\n[state {state}]"

    @tool(hints=READS)
    async def show_changes() -> str:
        """Show what has been changed so far, as a diff."""
        text = (await draft.diff()).decode("utf-8", "replace")
        return text[:SHOWN] + ("\n[cut off]" if len(text) > SHOWN else "") or "Nothing has changed."

    sets: list[Toolset] = [files(draft.folder, approval=approval), python(draft.folder)]
    if (draft.drafts.folder / ".git").exists():
        history = git(draft.drafts.folder, trusted=trusted, write=False)
        sets.append(history.filtered(lambda tool: tool.name in HISTORY))
    return gather_tools([*sets, run_tests, show_changes], "drafting")

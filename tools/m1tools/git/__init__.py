"""The git toolset: look at a repository's state and history, commit, and apply diffs.

A repository is not trusted unless the program says so: its hooks, filters, file system monitor, pagers, external diffs
and text conversions are not run, nothing is fetched, and it is held in a sandbox where this machine has one.
"""

from __future__ import annotations

import os
import re
from typing import Annotated

from pydantic import Field

from m1agent import ToolError, Toolset, tool
from m1agent.tools import Hints, Needs, Tool
from m1tools.git.repository import Repository

READS = Hints(read_only=True, open_world=False)
WRITES = Hints(read_only=False, destructive=True, open_world=False)
REVISION = re.compile(r"[\w@^:!/.][\w@^:!/.~{}+\- ]*")
DIFF = ("--no-ext-diff", "--no-textconv", "--no-color", "--ignore-submodules=all")

__all__ = ["git"]


def git(
    root: str | os.PathLike[str] = ".", *, approval: Needs = True, trusted: bool = False, write: bool = True
) -> Toolset:
    """The toolset of the repository whose top folder is `root`.

    Args:
        root: the folder that holds `.git`.
        approval: whether commits and applied diffs wait for a yes: always, never, or by their arguments.
        trusted: use it as its user would, with its hooks, filters and settings, and the user's.
        write: whether there are tools that change the repository at all.
    """
    repository = Repository(root, trusted=trusted)
    return Toolset("git", [*_reading(repository), *(_writing(repository, approval) if write else ())])


def _reading(repository: Repository) -> list[Tool]:
    run = repository.run

    @tool(hints=READS)
    async def git_status() -> str:
        """Show the branch and what has changed."""
        return await run("status", "--short", "--branch", "--untracked-files=normal", "--ignore-submodules=all")

    @tool(hints=READS)
    async def git_diff(revision: str = "", path: str = "", staged: bool = False) -> str:
        """Show changes as a unified diff.

        Args:
            revision: What to compare with, such as HEAD~2 or main...topic; without it, what is not staged yet.
            path: Only this file or folder.
            staged: What is staged, instead.
        """
        words = [*DIFF, *(["--cached"] if staged else []), *_checked(revision)]
        return await run("diff", *words, "--", *_only(path)) or "Nothing has changed."

    @tool(hints=READS)
    async def git_log(revision: str = "HEAD", path: str = "", count: Annotated[int, Field(ge=1, le=200)] = 20) -> str:
        """List commits, the newest first: hash, day, author and subject.

        Args:
            revision: Where to begin, or a range such as main..topic.
            path: Only commits that changed this file or folder.
            count: How many.
        """
        form = ["--format=%h %as %an: %s", f"--max-count={count}", "--no-show-signature", "--no-color"]
        return await run("log", *form, *_checked(revision), "--", *_only(path)) or "No commit."

    @tool(hints=READS)
    async def git_show(revision: str) -> str:
        """Show a commit with its changes, or a file as it was.

        Args:
            revision: A commit, such as HEAD~1, or revision:path for a file.
        """
        return await run("show", *DIFF, "--no-show-signature", *_checked(revision), "--")

    @tool(hints=READS)
    async def git_blame(
        path: str, start: Annotated[int, Field(ge=1)] = 1, lines: Annotated[int, Field(ge=1, le=1000)] = 200
    ) -> str:
        """Show which commit each line of a file is from.

        Args:
            path: The file.
            start: The first line.
            lines: How many.
        """
        span = f"-L{start},+{lines}"
        return await run("blame", "--no-textconv", "--no-progress", "--date=short", span, "HEAD", "--", *_only(path))

    return [git_status, git_diff, git_log, git_show, git_blame]


def _writing(repository: Repository, approval: Needs) -> list[Tool]:
    run = repository.run

    @tool(hints=WRITES, approval=approval)
    async def git_commit(message: str, paths: list[str] | None = None) -> str:
        """Commit changes.

        Args:
            message: A subject line; more after an empty line.
            paths: Only these files and folders; without them, all that has changed.
        """
        if not message.strip():
            raise ToolError("message: expected what the commit does, got nothing.")
        only = [word for path in paths or ["."] for word in _only(path)]
        await run("add", "--all", "--", *only, writes=True)
        await run("commit", "--quiet", "--file=-", "--", *(only if paths else []), stdin=message, writes=True)
        return await run("log", "--max-count=1", "--format=%h %s", "--shortstat", "--no-show-signature")

    @tool(hints=WRITES, approval=approval)
    async def git_apply(diff: str) -> str:
        """Apply a unified diff to the work tree: all of it, or nothing.

        Args:
            diff: As git diff prints it.
        """
        words = ("apply", "--recount", "--whitespace=nowarn")
        told = await run(*words, "--numstat", "--apply", "-", stdin=diff.rstrip("\n") + "\n", writes=True)
        counts = [line.split("\t", 2) for line in told.splitlines()]
        return "\n".join(f"{count[2]}: +{count[0]} -{count[1]}" for count in counts if len(count) == 3) or "Applied."

    return [git_commit, git_apply]


def _checked(revision: str) -> list[str]:
    """A revision as words that are no options."""
    if not revision:
        return []
    if not REVISION.fullmatch(revision):
        raise ToolError(f"revision: expected a commit, branch or range, got {revision[:40]!r}. Such as HEAD~1.")
    return ["--end-of-options", *revision.split()]


def _only(path: str) -> list[str]:
    if "\0" in path:
        raise ToolError("path: a path cannot hold a NUL byte.")
    return [path] if path else []

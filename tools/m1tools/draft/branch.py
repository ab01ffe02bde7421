"""A diff committed as a branch of a repository whose index and work tree stay as they are."""

from __future__ import annotations

from pathlib import Path

from m1agent import ToolError
from m1tools.draft.errors import DraftError
from m1tools.git.repository import Repository

NOWHERE = "0" * 40


async def check_branch(repository: Repository, name: str) -> None:
    """Whether a branch of that name can be made.

    Raises:
        DraftError: it is there, it is no name of a branch, or nobody is known who commits.
        ToolError: git refuses the repository.
    """
    try:
        await repository.run("check-ref-format", "--branch", name)
    except ToolError:
        raise DraftError(f"{name!r} is no name of a branch.") from None
    if await repository.run("for-each-ref", "--format=%(refname)", f"refs/heads/{name}"):
        raise DraftError(f"there is a branch {name!r} already: give another name.")
    await repository.run("var", "GIT_COMMITTER_IDENT")


async def make_branch(repository: Repository, name: str, message: str, diff: bytes, index: Path) -> str:
    """Commit `diff` over what is checked out, as the new branch `name`; the commit's id.

    `index` is a file for git's use where the repository has no folder `.git` of its own.

    Raises:
        DraftError: as `check_branch`, or the diff does not fit what is committed.
        ToolError: git refuses.
    """
    await check_branch(repository, name)
    place = repository.root / ".git"
    index = place / "m1agent.index" if place.is_dir() else index
    for left in (index, Path(f"{index}.lock")):
        left.unlink(missing_ok=True)
    parent = await _head(repository)
    try:
        if parent:
            await repository.run("read-tree", parent, writes=True, index=index)
        try:
            words = ("apply", "--cached", "--whitespace=nowarn", "-")
            await repository.run(*words, stdin=diff, writes=True, index=index)
        except ToolError as error:
            raise DraftError(f"The change builds on what is not committed yet, so it is no branch. {error}") from None
        tree = await repository.run("write-tree", writes=True, index=index)
    finally:
        index.unlink(missing_ok=True)
    over = ("-p", parent) if parent else ()
    commit = await repository.run("commit-tree", tree, *over, "-F", "-", stdin=message, writes=True)
    await repository.run("update-ref", f"refs/heads/{name}", commit, "", writes=True)
    return commit


async def _head(repository: Repository) -> str:
    """What is checked out; '' before the first commit."""
    try:
        return await repository.run("rev-parse", "--verify", "--quiet", "HEAD^{commit}")
    except ToolError:
        return ""

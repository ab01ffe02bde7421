"""The git toolset on repositories of real git."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from m1agent import ToolError, Toolset, load_toolset
from m1tools.git import git

from .conftest import plain_git


@pytest.fixture
def tools(repository: Path) -> Toolset:
    return git(repository)


def call(tools: Toolset, name: str, **arguments: object) -> str:
    return anyio.run(tools[name].call, arguments)


def refused(tools: Toolset, name: str, **arguments: object) -> str:
    with pytest.raises(ToolError) as caught:
        call(tools, name, **arguments)
    return str(caught.value)


def test_found_through_its_entry_point() -> None:
    assert "git_status" in load_toolset("git")


def test_only_what_writes_asks(tools: Toolset) -> None:
    assert [tool.name for tool in tools if tool.needs_approval({})] == ["git_commit", "git_apply"]


def test_status_and_diff(tools: Toolset, repository: Path) -> None:
    assert call(tools, "git_status") == "## main"
    assert call(tools, "git_diff") == "Nothing has changed."
    (repository / "a.txt").write_text("one\n2\n")
    (repository / "new.txt").write_text("x")
    assert call(tools, "git_status") == "## main\n M a.txt\n?? new.txt"
    assert "-two\n+2" in call(tools, "git_diff")
    assert call(tools, "git_diff", staged=True) == "Nothing has changed."
    assert "+2" in call(tools, "git_diff", revision="HEAD~1", path="a.txt")
    assert call(tools, "git_diff", revision="HEAD", path="new.txt") == "Nothing has changed."


def test_history(tools: Toolset) -> None:
    log = call(tools, "git_log").splitlines()
    assert [line.split(" ", 2)[2] for line in log] == ["a@author: Second", "a@author: First"]
    assert len(call(tools, "git_log", count=1).splitlines()) == 1
    assert call(tools, "git_log", revision="HEAD~1..HEAD", path="a.txt").endswith("Second")
    assert "+two" in call(tools, "git_show", revision="HEAD")
    assert call(tools, "git_show", revision="HEAD~1:a.txt") == "one"
    assert call(tools, "git_blame", path="a.txt", start=2, lines=1).endswith("two")


def test_commit(tools: Toolset, repository: Path) -> None:
    (repository / "a.txt").write_text("three\n")
    (repository / "b.txt").write_text("b\n")
    told = call(tools, "git_commit", message="Third\n\n# Why: so that it stays\n", paths=["a.txt"])
    assert "Third" in told and "1 file changed" in told
    assert plain_git(repository, "log", "-1", "--format=%an %s%n%b").strip() == "Ada Third\n# Why: so that it stays"
    assert call(tools, "git_status") == "## main\n?? b.txt"
    (repository / "a.txt").unlink()
    call(tools, "git_commit", message="All")
    assert call(tools, "git_status") == "## main"
    assert plain_git(repository, "ls-files").split() == ["b.txt"]
    assert "nothing to commit" in refused(tools, "git_commit", message="Nothing")
    assert "got nothing" in refused(tools, "git_commit", message=" ")


def test_apply(tools: Toolset, repository: Path) -> None:
    diff = "--- a/a.txt\n+++ b/a.txt\n@@ -1,7 +1,9 @@\n one\n-two\n+2\n"
    assert call(tools, "git_apply", diff=diff) == "a.txt: +1 -1"
    assert (repository / "a.txt").read_text() == "one\n2\n"
    assert "does not apply" in refused(tools, "git_apply", diff=diff)


def test_the_first_commit_of_all(tmp_path: Path) -> None:
    plain_git(tmp_path, "init", "-q", "-b", "main")
    plain_git(tmp_path, "config", "user.name", "Ada")
    plain_git(tmp_path, "config", "user.email", "ada@example.com")
    (tmp_path / "a").write_text("a")
    tools = git(tmp_path)
    assert "?? a" in call(tools, "git_status")
    assert "does not have any commits" in refused(tools, "git_log") or "bad revision" in refused(tools, "git_log")
    assert "First" in call(tools, "git_commit", message="First")


def test_what_is_no_repository(tmp_path: Path, repository: Path) -> None:
    assert "not the top of a git repository" in refused(git(tmp_path), "git_status")
    (repository / "sub").mkdir()
    assert "not the top of a git repository" in refused(git(repository / "sub"), "git_status")


def test_errors_are_short(tools: Toolset) -> None:
    assert refused(tools, "git_log", revision="nope") == "git log: bad revision 'nope'"
    assert "no such path" in refused(tools, "git_blame", path="missing.txt")


def test_what_a_repository_sets_and_is_harmless(tools: Toolset, repository: Path) -> None:
    plain_git(repository, "remote", "add", "origin", "https://example.com/x.git")
    for name, value in (
        ("branch.main.remote", "origin"),
        ("core.autocrlf", "input"),
        ("pull.rebase", "true"),
        ("alias.st", "status"),
        ("lfs.repositoryformatversion", "0"),
        ("diff.algorithm", "histogram"),
        ("submodule.x.url", "../x"),
        ("merge.conflictStyle", "diff3"),
        ("credential.https://example.com.helper", "!evil"),
    ):
        plain_git(repository, "config", name, value)
    assert call(tools, "git_status") == "## main"


def test_a_trusted_repository_runs_its_hooks(repository: Path, tmp_path: Path) -> None:
    hook = repository / ".git/hooks/pre-commit"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    hook.chmod(0o755)
    (repository / "a.txt").write_text("x")
    call(git(repository, trusted=True), "git_commit", message="Third")
    assert (tmp_path / "ran").exists()


def test_a_linked_work_tree_is_used_when_trusted(repository: Path, tmp_path: Path) -> None:
    plain_git(repository, "worktree", "add", "-q", str(tmp_path / "linked"))
    assert "A person can trust it" in refused(git(tmp_path / "linked"), "git_status")
    assert call(git(tmp_path / "linked", trusted=True), "git_status") == "## linked"

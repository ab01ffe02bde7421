"""mcp-server-git on a real repository, which git itself is asked about afterwards."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from m1agent.mcp.config import StdioServer


def test_all_tools_on_a_repository(repository: Path, git_server: StdioServer, ask: Callable[..., Any]) -> None:
    (repository / "notes.txt").write_text("first\nsecond\n")
    (repository / "new.txt").write_text("new\n")
    here = {"repo_path": str(repository)}
    status, unstaged, staged, reset, branch, _, commit, log, show, checkout, diff, branches = ask(
        git_server,
        ("git__git_status", here),
        ("git__git_diff_unstaged", here),
        ("git__git_add", {**here, "files": ["notes.txt", "new.txt"]}),
        ("git__git_reset", here),
        ("git__git_create_branch", {**here, "branch_name": "side", "base_branch": "main"}),
        ("git__git_add", {**here, "files": ["notes.txt"]}),
        ("git__git_commit", {**here, "message": "Add a second line"}),
        ("git__git_log", {**here, "max_count": 2}),
        ("git__git_show", {**here, "revision": "HEAD"}),
        ("git__git_checkout", {**here, "branch_name": "side"}),
        ("git__git_diff", {**here, "target": "main"}),
        ("git__git_branch", {**here, "branch_type": "local"}),
    )
    results = (status, unstaged, staged, reset, commit, log, show, branch, checkout, diff, branches)
    assert [result.content for result in results if result.is_error] == []
    assert "modified:   notes.txt" in status.content and "new.txt" in status.content
    assert "+second" in unstaged.content and "+second" in show.content
    assert "Add a second line" in log.content and "Begin" in log.content
    assert "-second" in diff.content
    assert "* side" in branches.content and "main" in branches.content
    assert git(repository, "log", "--format=%an: %s", "main") == "Ada: Add a second line\nAda: Begin\n"
    assert git(repository, "branch", "--show-current") == "side\n"
    assert (repository / "notes.txt").read_text() == "first\n"
    assert git(repository, "status", "--porcelain") == "?? new.txt\n"


def test_staged_changes_and_what_is_refused(repository: Path, git_server: StdioServer, ask: Callable[..., Any]) -> None:
    (repository / "notes.txt").write_text("changed\n")
    here = {"repo_path": str(repository)}
    _, staged, missing, elsewhere, incomplete = ask(
        git_server,
        ("git__git_add", {**here, "files": ["notes.txt"]}),
        ("git__git_diff_staged", here),
        ("git__git_checkout", {**here, "branch_name": "nowhere"}),
        ("git__git_status", {"repo_path": str(repository.parent)}),
        ("git__git_commit", here),
    )
    assert "+changed" in staged.content and not staged.is_error
    assert missing.is_error and "nowhere" in missing.content
    assert elsewhere.is_error
    assert incomplete.is_error and "message: missing" in incomplete.content
    assert git(repository, "log", "--format=%s") == "Begin\n"


def git(folder: Path, *args: str) -> str:
    return subprocess.run(["git", *args], cwd=folder, check=True, capture_output=True, text=True).stdout

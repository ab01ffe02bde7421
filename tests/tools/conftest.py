"""Repositories for the tests of the git and coding toolsets."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

WHO = {f"GIT_{role}_{what}": f"a@{role.lower()}" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}


def plain_git(root: Path, *words: str, check: bool = True) -> str:
    """git as its user runs it, with nothing switched off but the user's own settings."""
    environment = {**os.environ, **WHO, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    done = subprocess.run(
        ["git", *words], cwd=root, env=environment, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL
    )
    assert not check or done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Two commits of a.txt, the second with the line `two`; who commits is set."""
    root = tmp_path / "repository"
    root.mkdir()
    plain_git(root, "init", "-q", "-b", "main")
    plain_git(root, "config", "user.name", "Ada")
    plain_git(root, "config", "user.email", "ada@example.com")
    for text, subject in (("one\n", "First"), ("one\ntwo\n", "Second")):
        (root / "a.txt").write_text(text)
        plain_git(root, "add", ".")
        plain_git(root, "commit", "-q", "-m", subject)
    return root

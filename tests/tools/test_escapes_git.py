"""Repositories made to run programs, and words made to be options: each attack is shown to work on plain git."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import anyio
import pytest

from m1agent import ToolError, Toolset
from m1tools.git import git
from m1tools.sandbox import Isolation, isolation

from .conftest import plain_git


@pytest.fixture(params=["sandbox", "bare"])
def tools(request: pytest.FixtureRequest, repository: Path, monkeypatch: pytest.MonkeyPatch) -> Toolset:
    """The tools with what this machine isolates, and with their own precautions alone."""
    if request.param == "bare":
        monkeypatch.setattr("m1tools.git.repository.isolation", lambda: Isolation())
    elif not isolation().namespaces:
        pytest.skip("no namespaces here")
    return git(repository)


def call(tools: Toolset, name: str, **arguments: object) -> str:
    return anyio.run(tools[name].call, arguments)


def refused(tools: Toolset, name: str, **arguments: object) -> str:
    with pytest.raises(ToolError) as caught:
        call(tools, name, **arguments)
    return str(caught.value)


@pytest.fixture
def bare(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Toolset:
    """The tools with their own precautions alone, which are what is to hold."""
    monkeypatch.setattr("m1tools.git.repository.isolation", lambda: Isolation())
    return git(repository)


@pytest.fixture
def trap(repository: Path) -> Iterator[str]:
    """A program that leaves a trace in the repository when it is run."""
    script = repository / ".git/trap.sh"
    script.write_text(f"#!/bin/sh\necho ran >> {repository}/.git/trace\nexit 1\n")
    script.chmod(0o755)
    yield str(script)


def sprung(repository: Path) -> bool:
    trace = repository / ".git/trace"
    found = trace.exists()
    trace.unlink(missing_ok=True)
    return found


def use_all(tools: Toolset, repository: Path) -> None:
    """Every tool once, on a changed file."""
    diff = "--- a/a.txt\n+++ b/a.txt\n@@ -1,2 +1,2 @@\n one\n-two\n+2\n"
    with suppress(ToolError):
        call(tools, "git_apply", diff=diff)
    (repository / "a.txt").write_text("changed\n")
    os.utime(repository / "a.txt", (1, 1))
    for name, arguments in (
        ("git_status", {}),
        ("git_diff", {}),
        ("git_diff", {"revision": "HEAD~1"}),
        ("git_log", {"path": "a.txt"}),
        ("git_show", {"revision": "HEAD"}),
        ("git_blame", {"path": "a.txt"}),
        ("git_commit", {"message": "Third"}),
    ):
        with suppress(ToolError):
            call(tools, name, **arguments)


ATTRIBUTES = "*.txt filter=trap diff=trap merge=trap\n"
SETTINGS: dict[str, tuple[dict[str, str], list[str]]] = {
    "fsmonitor": ({"core.fsmonitor": "{trap}"}, ["status"]),
    "hooks elsewhere": ({"core.hooksPath": "{folder}/hooks"}, ["commit", "-qm", "x", "--allow-empty"]),
    "external diff": ({"diff.external": "{trap}"}, ["diff"]),
    "diff command": ({"diff.trap.command": "{trap}"}, ["diff"]),
    "textconv": ({"diff.trap.textconv": "{trap}"}, ["diff"]),
    "textconv of blame": ({"diff.trap.textconv": "{trap}"}, ["blame", "a.txt"]),
    "clean filter": ({"filter.trap.clean": "{trap}"}, ["add", "-A"]),
    "smudge filter": ({"filter.trap.smudge": "{trap}"}, ["checkout", "-f", "HEAD~1", "--", "a.txt"]),
    "process filter": ({"filter.trap.process": "{trap}", "filter.trap.required": "true"}, ["add", "-A"]),
    "signing": ({"gpg.program": "{trap}", "commit.gpgSign": "true"}, ["commit", "-qm", "x", "--allow-empty"]),
    "ssh signing": (
        {"gpg.format": "ssh", "gpg.ssh.program": "{trap}", "user.signingKey": "/dev/null", "commit.gpgSign": "true"},
        ["commit", "-qm", "x", "--allow-empty"],
    ),
    "editor": ({"core.editor": "{trap}"}, ["commit", "--allow-empty"]),
    "ssh": ({"core.sshCommand": "{trap}", "remote.o.url": "x@y:z"}, ["fetch", "o"]),
    "included": ({"include.path": "{folder}/more"}, ["status"]),
}


def test_the_settings_of_a_repository_run_nothing(bare: Toolset, repository: Path, trap: str) -> None:
    """Each is shown to work before."""
    (repository / ".gitattributes").write_text(ATTRIBUTES)
    folder = repository / ".git/extra"
    (folder / "hooks").mkdir(parents=True)
    (folder / "more").write_text(f"[core]\nfsmonitor = {trap}\n")
    for name in ("pre-commit", "post-index-change", "reference-transaction", "commit-msg", "prepare-commit-msg"):
        for where in (folder / "hooks", repository / ".git/hooks"):
            where.mkdir(exist_ok=True)
            (where / name).symlink_to(trap)
    plain = repository / ".git/config"
    before = plain.read_text()
    for what, (settings, attack) in SETTINGS.items():
        for name, value in settings.items():
            plain_git(repository, "config", name, value.format(trap=trap, folder=folder))
        sprung(repository)
        (repository / "a.txt").write_text(f"{what}\n")
        plain_git(repository, *attack, check=False)
        assert sprung(repository), f"{what} is no attack on this git"
        use_all(bare, repository)
        assert not sprung(repository), what
        plain.write_text(before)


def test_hooks(tools: Toolset, repository: Path, trap: str) -> None:
    hooks = repository / ".git/hooks"
    hooks.mkdir(exist_ok=True)
    for name in (
        "pre-commit",
        "commit-msg",
        "post-commit",
        "applypatch-msg",
        "post-index-change",
        "reference-transaction",
    ):
        (hooks / name).symlink_to(trap)
    plain_git(repository, "commit", "-qm", "x", "--allow-empty", check=False)
    assert sprung(repository)
    use_all(tools, repository)
    assert not sprung(repository)


@pytest.mark.parametrize(
    "name",
    [
        "nobody.knows",
        "core.inventedCommand",
        "diff.trap.inventedCommand",
        "trailer.x.command",
        "difftool.x.cmd",
        "man.x.cmd",
    ],
)
def test_a_setting_that_nobody_knows_is_refused_by_name(tools: Toolset, repository: Path, name: str) -> None:
    plain_git(repository, "config", name, "value")
    told = refused(tools, "git_status")
    assert name.lower() in told.lower() and "A person can trust it" in told


def test_settings_hidden_behind_many_others(tools: Toolset, repository: Path, trap: str) -> None:
    lines = "".join(f'[branch "b{number}"]\n\tremote = origin\n' for number in range(3000))
    (repository / ".git/config").write_text(
        (repository / ".git/config").read_text() + lines + f"[core]\n\tfsmonitor = {trap}\n" + lines
    )
    plain_git(repository, "status")
    assert sprung(repository)
    use_all(tools, repository)
    assert not sprung(repository)
    assert "too long" in refused(tools, "git_status")


@pytest.mark.parametrize("name", ["a.b", "x=y", "\x1b[31mx", "a\\x00b", 'q"q', "ü", "a b"])
def test_filters_of_strange_names(bare: Toolset, repository: Path, trap: str, name: str) -> None:
    quoted = name.replace("\\", "\\\\").replace('"', '\\"')
    plain = repository / ".git/config"
    plain.write_text(plain.read_text() + f'[filter "{quoted}"]\n\tclean = {trap}\n')
    if " " not in name and '"' not in name:
        (repository / ".gitattributes").write_text(f"*.txt filter={name}\n", encoding="utf-8")
        (repository / "a.txt").write_text("changed\n")
        plain_git(repository, "add", "-A")
        assert sprung(repository)
    use_all(bare, repository)
    assert not sprung(repository)


# Words


WORDS = [
    "--output={root}/written",
    "-O{root}/order",
    "--ext-diff",
    "-c core.pager=x",
    "HEAD --output={root}/written",
    "HEAD\n--output={root}/written",
    "--no-index /etc/passwd /dev/null",
    "$(touch {root}/written)",
    "HEAD; touch {root}/written",
    "`touch {root}/written`",
    "\0",
    "-",
    "--",
]


@pytest.mark.parametrize("word", WORDS, ids=range(len(WORDS)))
def test_revisions_are_no_options(bare: Toolset, repository: Path, word: str) -> None:
    word = word.format(root=repository)
    for name in ("git_diff", "git_log", "git_show"):
        told = refused(bare, name, revision=word)
        assert "root:" not in told and len(told) < 300
    assert not (repository / "written").exists()


PATHS = [
    "--output={root}/written",
    "-L1,1:/etc/passwd",
    "../outside.txt",
    "/etc/passwd",
    ":(top,exclude)a.txt",
    ":/",
    "a\0b",
]


@pytest.mark.parametrize("path", PATHS, ids=range(len(PATHS)))
def test_paths_are_no_options(bare: Toolset, repository: Path, path: str) -> None:
    (repository.parent / "outside.txt").write_text("swordfish")
    path = path.format(root=repository)
    for name, arguments in (
        ("git_diff", {"revision": "HEAD~1"}),
        ("git_log", {}),
        ("git_blame", {}),
        ("git_commit", {"message": "x", "paths": [path]}),
    ):
        given = arguments if name == "git_commit" else {**arguments, "path": path}
        try:
            told = call(bare, name, **given)
        except ToolError as error:
            told = str(error)
        assert "swordfish" not in told and "root:x" not in told
    assert not (repository / "written").exists()


BODIES: dict[str, str] = {
    "dots": "../outside.txt",
    "absolute": "/tmp/m1-escape-git.txt",
    "a hook": ".git/hooks/pre-commit",
    "settings": ".git/config",
    "capitals": ".GIT/hooks/pre-commit",
    "through a link": "link/planted.txt",
}


@pytest.mark.parametrize("path", BODIES.values(), ids=BODIES.keys())
def test_diffs_stay_inside(tools: Toolset, repository: Path, path: str) -> None:
    outside = repository.parent / "outside"
    outside.mkdir()
    (repository / "link").symlink_to(outside)
    config = (repository / ".git/config").read_text()
    refused(tools, "git_apply", diff=f"--- /dev/null\n+++ b/{path}\n@@ -0,0 +1 @@\n+planted\n")
    refused(
        tools,
        "git_apply",
        diff=f"diff --git a/{path} b/{path}\nnew file mode 100755\n--- /dev/null\n+++ b/{path}\n@@ -0,0 +1 @@\n+x\n",
    )
    assert list(outside.iterdir()) == [] and not Path("/tmp/m1-escape-git.txt").exists()
    assert not (repository.parent / "outside.txt").exists()
    assert not (repository / ".git/hooks/pre-commit").exists()
    assert (repository / ".git/config").read_text() == config


def test_a_diff_that_makes_a_link_and_writes_through_it(tools: Toolset, repository: Path) -> None:
    outside = repository.parent / "outside"
    outside.mkdir()
    diff = (
        f"diff --git a/way b/way\nnew file mode 120000\n--- /dev/null\n+++ b/way\n@@ -0,0 +1 @@\n+{outside}\n"
        "\\ No newline at end of file\n"
        "diff --git a/way/x b/way/x\nnew file mode 100644\n--- /dev/null\n+++ b/way/x\n@@ -0,0 +1 @@\n+planted\n"
    )
    refused(tools, "git_apply", diff=diff)
    assert list(outside.iterdir()) == []


# Places


def lead_file(repository: Path, other: Path) -> None:
    (repository / ".git").rename(repository.parent / "put-away")
    (repository / ".git").write_text(f"gitdir: {other}/.git\n")


def lead_link(repository: Path, other: Path) -> None:
    (repository / ".git").rename(repository.parent / "put-away")
    (repository / ".git").symlink_to(other / ".git")


def lead_common(repository: Path, other: Path) -> None:
    (repository / ".git/commondir").write_text(f"{other}/.git\n")


def lead_objects(repository: Path, other: Path) -> None:
    (repository / ".git/objects/info").mkdir(exist_ok=True)
    (repository / ".git/objects/info/alternates").write_text(f"{other}/.git/objects\n")


def lead_refs(repository: Path, other: Path) -> None:
    (repository / ".git/refs").rename(repository / ".git/old-refs")
    (repository / ".git/refs").symlink_to(other / ".git/refs")


@pytest.mark.parametrize("lead", [lead_file, lead_link, lead_common, lead_objects, lead_refs])
def test_another_repository_is_not_read(tools: Toolset, repository: Path, lead: Callable[[Path, Path], None]) -> None:
    other = repository.parent / "other"
    other.mkdir()
    plain_git(other, "init", "-q")
    plain_git(other, "commit", "-q", "--allow-empty", "-m", "swordfish")
    lead(repository, other)
    told = refused(tools, "git_log")
    assert "leads to another repository" in told and "swordfish" not in told


def test_a_work_tree_elsewhere_is_not_used(tools: Toolset, repository: Path) -> None:
    plain_git(repository, "config", "core.worktree", str(repository.parent))
    (repository.parent / "outside.txt").write_text("swordfish")
    assert "outside" not in call(tools, "git_status")
    call(tools, "git_apply", diff="--- /dev/null\n+++ b/made.txt\n@@ -0,0 +1 @@\n+x\n")
    assert (repository / "made.txt").exists() and not (repository.parent / "made.txt").exists()


def test_a_bare_repository_inside_is_not_found(tools: Toolset, repository: Path, trap: str) -> None:
    """What is committed can look like a repository of its own, settings and all."""
    inner = repository / "inner"
    inner.mkdir()
    plain_git(inner, "init", "-q", "--bare", ".")
    plain_git(repository, "config", "--file", str(inner / "config"), "core.fsmonitor", trap)
    use_all(tools, repository)
    assert not sprung(repository)


def test_submodules_are_not_entered(tools: Toolset, repository: Path, trap: str) -> None:
    inner = repository / "inner"
    inner.mkdir()
    plain_git(inner, "init", "-q")
    plain_git(inner, "commit", "-q", "--allow-empty", "-m", "x")
    plain_git(repository, "add", "inner")
    plain_git(repository, "commit", "-qm", "Submodule")
    plain_git(inner, "config", "core.fsmonitor", trap)
    (inner / "x").write_text("x")
    plain_git(repository, "status")
    assert sprung(repository)
    use_all(tools, repository)
    assert not sprung(repository)


def test_secrets_of_the_environment_do_not_reach_git(
    repository: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Not even the hooks of a trusted repository."""
    monkeypatch.setenv("SOME_API_KEY", "swordfish")
    hook = repository / ".git/hooks/pre-commit"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\nenv > {tmp_path}/seen\n")
    hook.chmod(0o755)
    (repository / "a.txt").write_text("x")
    call(git(repository, trusted=True), "git_commit", message="x")
    assert "PATH=" in (tmp_path / "seen").read_text() and "swordfish" not in (tmp_path / "seen").read_text()


def test_variables_of_the_environment_do_not_lead_git(
    tools: Toolset, repository: Path, trap: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GIT_EXTERNAL_DIFF", "GIT_PAGER", "GIT_SSH_COMMAND", "GIT_EDITOR", "PAGER"):
        monkeypatch.setenv(name, trap)
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    use_all(tools, repository)
    assert not sprung(repository)


def test_a_lazy_fetch_of_missing_objects_starts_nothing(tools: Toolset, repository: Path, trap: str) -> None:
    for name, value in (
        ("core.repositoryFormatVersion", "1"),
        ("extensions.partialClone", "o"),
        ("remote.o.url", f"ext::{trap}"),
        ("remote.o.promisor", "true"),
        ("protocol.ext.allow", "always"),
    ):
        plain_git(repository, "config", name, value)
    missing = "0123456789" * 4
    plain_git(repository, "show", missing, check=False)
    assert sprung(repository)
    with suppress(ToolError):
        call(tools, "git_show", revision=missing)
    assert not sprung(repository)


def test_a_history_without_end_is_cut(tools: Toolset, repository: Path) -> None:
    (repository / "big.txt").write_text("line of text\n" * 200_000)
    plain_git(repository, "add", "-A")
    began = time.monotonic()
    told = call(tools, "git_diff", staged=True)
    assert "bytes left out" in told and len(told) < 17_000
    assert time.monotonic() - began < 30

"""Attempts to read or change what lies outside of a root, or to make a tool hang: all of it real."""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import anyio
import pytest

from m1agent import ToolError, Toolset
from m1tools.files import files
from m1tools.files import search as searching

SECRET = "the word is swordfish"


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "secret.txt").write_text(SECRET)
    yield folder
    assert (folder / "secret.txt").read_text() == SECRET
    assert [path.name for path in folder.iterdir()] == ["secret.txt"]


@pytest.fixture
def root(tmp_path: Path, outside: Path) -> Path:
    folder = tmp_path / "root"
    (folder / "sub").mkdir(parents=True)
    (folder / "mine.txt").write_text("mine\n")
    return folder


@pytest.fixture
def tools(root: Path) -> Toolset:
    return files(root, read_bytes=1 << 20)


def call(tools: Toolset, name: str, **arguments: object) -> str:
    return anyio.run(tools[name].call, arguments)


def refused(tools: Toolset, name: str, **arguments: object) -> str:
    began = time.monotonic()
    with pytest.raises(ToolError) as caught:
        call(tools, name, **arguments)
    assert time.monotonic() - began < 10
    assert "swordfish" not in str(caught.value)
    return str(caught.value)


DIFF = "--- {old}\n+++ {new}\n@@ -1 +1 @@\n-the word is swordfish\n+changed\n"
USES: dict[str, Callable[[str], dict[str, object]]] = {
    "list_files": lambda path: {"path": os.path.dirname(path) or "."},
    "read_file": lambda path: {"path": path},
    "search_files": lambda path: {"pattern": "word", "path": os.path.dirname(path) or "."},
    "write_file": lambda path: {"path": path, "content": "changed"},
    "edit_file": lambda path: {"path": path, "old_text": "word", "new_text": "changed"},
    "patch_files": lambda path: {"diff": DIFF.format(old=path, new=path)},
    "move_file": lambda path: {"source": path, "target": "stolen.txt"},
}
WAYS = {
    "dots": "../outside/secret.txt",
    "dots inside": "sub/../../outside/secret.txt",
    "dots over what is not there": "no/../../outside/secret.txt",
    "absolute": "{outside}/secret.txt",
    "absolute with dots": "{root}/../outside/secret.txt",
    "a link to a folder": "link/secret.txt",
    "a relative link": "relative/secret.txt",
    "a link to a link": "chain/secret.txt",
    "a link and dots": "inner/../../outside/secret.txt",
    "the root in proc": "/proc/self/root{outside}/secret.txt",
    "this process's folder": "proc/self/root{outside}/secret.txt",
    "doubled slashes": "//{outside}//secret.txt",
}


@pytest.mark.parametrize("name", USES)
@pytest.mark.parametrize("way", WAYS)
def test_no_path_leads_out(tools: Toolset, root: Path, outside: Path, way: str, name: str) -> None:
    (root / "link").symlink_to(outside)
    (root / "relative").symlink_to("../outside")
    (root / "chain").symlink_to("relative")
    (root / "inner").symlink_to("sub")
    (root / "proc").symlink_to("/proc")
    path = WAYS[way].format(root=root, outside=outside)
    told = refused(tools, name, **USES[name](path))
    assert len(told) < 300
    assert not (root / "stolen.txt").exists()


@pytest.mark.parametrize("name", ["read_file", "edit_file", "write_file", "patch_files"])
def test_a_link_at_the_end(tools: Toolset, root: Path, outside: Path, name: str) -> None:
    (root / "direct.txt").symlink_to(outside / "secret.txt")
    assert "outside" in refused(tools, name, **USES[name]("direct.txt"))


def test_a_dangling_link_makes_nothing_outside(tools: Toolset, root: Path, outside: Path) -> None:
    (root / "new.txt").symlink_to(outside / "new.txt")
    refused(tools, "write_file", path="new.txt", content="x")
    (root / "near.txt").symlink_to("../outside/near.txt")
    refused(tools, "write_file", path="near.txt", content="x")


def test_a_move_takes_the_link_and_not_its_target(tools: Toolset, root: Path, outside: Path) -> None:
    (root / "direct.txt").symlink_to(outside / "secret.txt")
    call(tools, "move_file", source="direct.txt", target="moved.txt")
    assert (root / "moved.txt").is_symlink()


def test_nothing_is_moved_out(tools: Toolset, root: Path, outside: Path) -> None:
    (root / "link").symlink_to(outside)
    for target in ("../outside/mine.txt", "link/mine.txt", str(outside / "mine.txt")):
        refused(tools, "move_file", source="mine.txt", target=target)
    assert (root / "mine.txt").exists()


def test_links_that_go_round(tools: Toolset, root: Path) -> None:
    (root / "a").symlink_to("b")
    (root / "b").symlink_to("a")
    (root / "self").symlink_to("self/self")
    for path in ("a", "a/x", "self", "self/x"):
        assert "too many symbolic links" in refused(tools, "read_file", path=path)


@pytest.mark.parametrize("name", ["ripgrep", "python"])
def test_searches_and_listings_stay_inside(
    tools: Toolset, root: Path, outside: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "python":
        monkeypatch.setattr("m1tools.files.ripgrep", lambda: None)
    elif searching.ripgrep() is None:
        pytest.skip("ripgrep is not here, or nothing to hold it")
    (root / "link").symlink_to(outside)
    (root / "direct.txt").symlink_to(outside / "secret.txt")
    assert call(tools, "search_files", pattern="swordfish") == "No line matches."
    assert "secret" not in call(tools, "list_files", pattern="*.txt")


INJECTED = ["--pre=cat", "--files", "-f/etc/passwd", "--no-ignore --hidden", "--hostname-bin=/bin/id", "-e", "--", "-"]


@pytest.mark.parametrize("word", INJECTED)
def test_search_words_are_no_options(tools: Toolset, word: str) -> None:
    assert call(tools, "search_files", pattern=word, literal=True) == "No line matches."
    assert call(tools, "search_files", pattern="nothing", glob=word) == "No line matches."
    refused(tools, "search_files", pattern="x", path=word)


def test_a_pattern_that_never_ends(tools: Toolset, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("m1tools.files.ripgrep", lambda: None)
    (root / "a.txt").write_text("a" * 5000 + "b")
    told = refused(tools, "search_files", pattern=r"(a|aa)+\1$")
    assert "takes too long" in told


# Races


@contextmanager
def swapping(path: Path, first: Callable[[], None], second: Callable[[], None]) -> Iterator[None]:
    """Something that is by turns one thing and another, as fast as it goes."""
    end = threading.Event()

    def swap() -> None:
        while not end.is_set():
            for make in (first, second):
                with suppress(OSError):
                    make()

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


@pytest.fixture
def racing(root: Path, outside: Path) -> Iterator[None]:
    """`root/door` is by turns a folder with a harmless secret.txt and a link to the outside."""
    harmless, link, door = root / "harmless", root / "link", root / "door"
    harmless.mkdir()
    (harmless / "secret.txt").write_text("nothing\n")
    link.symlink_to(outside)

    def folder() -> None:
        os.rename(door, link)
        while not door.is_dir() or harmless.exists():
            try:
                os.rename(harmless, door)
            except OSError:  # a write between both has made a folder of that name
                shutil.rmtree(door, ignore_errors=True)

    def out() -> None:
        os.rename(door, harmless)
        while not door.is_symlink():
            try:
                os.rename(link, door)
            except OSError:
                shutil.rmtree(door, ignore_errors=True)

    os.rename(link, door)
    with swapping(door, folder, out):
        yield


def tried(seconds: float, attempt: Callable[[], str], *, both: bool = False) -> tuple[int, int]:
    """How often an attempt got through and was refused; what it is told never holds the secret.

    `both`: goes on for up to 20 s until both happened, at uneven times: two threads can fall into step.
    """
    through = refusals = 0
    uneven = random.Random(1)
    began = time.monotonic()
    while (spent := time.monotonic() - began) < seconds or (both and not (through and refusals) and spent < 20):
        if both and spent > seconds:
            time.sleep(uneven.random() / 1000)
        try:
            told = attempt()
            through += 1
        except ToolError as error:
            told = str(error)
            refusals += 1
        assert "swordfish" not in told
    return through, refusals


def test_a_race_for_reading(tools: Toolset, racing: None) -> None:
    through, refusals = tried(2, lambda: tools["read_file"].handler("door/secret.txt"), both=True)
    assert through and refusals, "both sides of the race were met"


def test_a_race_for_listing(tools: Toolset, racing: None) -> None:
    tried(1, lambda: tools["list_files"].handler("door"))
    tried(1, lambda: tools["list_files"].handler(".", "*.txt"))


def test_a_race_for_searching(tools: Toolset, root: Path, racing: None) -> None:
    tried(1, lambda: "\n".join(searching.by_python(searching.Root(root), searching.Query("s", ".", "", False, False))))


def test_a_race_for_writing(tools: Toolset, racing: None) -> None:
    through, refusals = tried(2, lambda: tools["write_file"].handler("door/new/planted.txt", "x"), both=True)
    assert through and refusals, "both sides of the race were met"


def test_a_race_at_the_last_name(tools: Toolset, root: Path, outside: Path) -> None:
    path = root / "file.txt"

    def file() -> None:
        path.unlink(missing_ok=True)
        path.write_text("the word is harmless")

    def link() -> None:
        path.unlink(missing_ok=True)
        path.symlink_to("../outside/secret.txt")

    with swapping(path, file, link):
        tried(1, lambda: tools["read_file"].handler("file.txt"))
        tried(1, lambda: tools["edit_file"].handler("file.txt", "word", "changed"))
        tried(1, lambda: tools["write_file"].handler("file.txt", "x"))


# What is no plain file


def test_hard_links_are_not_written_through(tools: Toolset, root: Path, outside: Path) -> None:
    os.link(outside / "secret.txt", root / "hard.txt")
    call(tools, "write_file", path="hard.txt", content="changed")
    assert (root / "hard.txt").read_text() == "changed"  # And outside it is as it was: the fixture looks.


def test_pipes_sockets_and_folders_are_no_files(tools: Toolset, root: Path) -> None:
    os.mkfifo(root / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(root / "s"))
        for name in ("read_file", "write_file", "edit_file", "patch_files"):
            assert "got a pipe" in refused(tools, name, **USES[name]("pipe"))
            assert "got a socket" in refused(tools, name, **USES[name]("s"))
            assert "got a folder" in refused(tools, name, **USES[name]("sub"))
    assert call(tools, "search_files", pattern="x") == "No line matches."


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="only root makes devices")
def test_devices_are_not_opened(tools: Toolset, root: Path) -> None:
    os.mknod(root / "zero", 0o666 | 0o020000, os.makedev(1, 5))
    os.mknod(root / "disk", 0o666 | 0o060000, os.makedev(7, 200))
    assert "got a device" in refused(tools, "read_file", path="zero")
    assert "got a device" in refused(tools, "write_file", path="zero", content="x")
    assert "got a device" in refused(tools, "read_file", path="disk")
    assert call(tools, "search_files", pattern="x") == "No line matches."


def test_huge_and_sparse_files(tools: Toolset, root: Path) -> None:
    with open(root / "huge", "wb") as file:
        file.truncate(1 << 40)
    assert "got 1099511627776" in refused(tools, "read_file", path="huge")
    assert "at most" in refused(tools, "edit_file", path="huge", old_text="a", new_text="b")
    assert call(tools, "search_files", pattern="x") == "No line matches."


def test_binary_files_are_told(tools: Toolset, root: Path) -> None:
    (root / "b").write_bytes(b"\x7fELF\x02\x01\x01\x00" * 100)
    assert refused(tools, "read_file", path="b") == "b: expected text, got 800 bytes of something else."
    refused(tools, "edit_file", path="b", old_text="ELF", new_text="x")


STRANGE = [
    "a\0b",
    "\0",
    "\ud800",
    "x" * 300,
    "a/" * 3000 + "b",
    "",
    ".",
    "..",
    "/",
    "mine.txt/",
    "mine.txt/x",
    "\n",
    "~/x",
]


@pytest.mark.parametrize("path", STRANGE, ids=range(len(STRANGE)))
def test_strange_names(tools: Toolset, root: Path, path: str) -> None:
    for name in ("read_file", "edit_file"):
        with suppress(ToolError):
            told = call(tools, name, **USES[name](path))
            assert told.startswith("1\tmine"), told
    with suppress(ToolError):
        call(tools, "write_file", path=path, content="x")
    assert sorted(entry.name for entry in root.iterdir() if entry.name not in ("\n", "~", "a")) == ["mine.txt", "sub"]
    assert not (root / "a").exists(), "made, where no other program could open it"


def test_a_name_that_is_no_text(tools: Toolset, root: Path) -> None:
    (Path(os.fsdecode(os.fsencode(root) + b"/\xff\xfe.txt"))).write_text("odd")
    assert "(3 bytes)" in call(tools, "list_files")
    call(tools, "list_files", pattern="*.txt")
    call(tools, "search_files", pattern="odd")


# What runs later


HOOKS = [
    ".git/hooks/pre-commit",
    ".GIT/config",
    ".git./config",
    "sub/.git/config",
    ".git",
    "./.git//HEAD",
    ".g\u200cit/x",
    "git~1/x",
]


@pytest.mark.parametrize("path", HOOKS)
def test_nothing_under_git_is_touched(tools: Toolset, root: Path, path: str) -> None:
    (root / ".git/hooks").mkdir(parents=True)
    (root / ".git/config").write_text("[remote]\nurl = https://me:swordfish@example.com\n")
    assert "left alone" in refused(tools, "write_file", path=path, content="#!/bin/sh\n")
    assert "left alone" in refused(tools, "read_file", path=path)
    assert "left alone" in refused(tools, "move_file", source="mine.txt", target=path)
    assert list((root / ".git/hooks").iterdir()) == []
    assert call(tools, "search_files", pattern="swordfish") == "No line matches."


def test_no_way_into_git_through_a_link(tools: Toolset, root: Path) -> None:
    (root / ".git/hooks").mkdir(parents=True)
    (root / "hooks").symlink_to(".git/hooks")
    assert "left alone" in refused(tools, "write_file", path="hooks/pre-commit", content="x")
    assert "left alone" in refused(tools, "move_file", source="hooks/x", target="y")
    assert "left alone" in refused(tools, "list_files", path="hooks")


# Bounds


def test_a_folder_of_many_files(tools: Toolset, root: Path) -> None:
    for number in range(3000):
        (root / "sub" / f"{number:05}.txt").touch()
    began = time.monotonic()
    assert len(call(tools, "list_files", path="sub").splitlines()) == 301
    assert len(call(tools, "list_files", pattern="*").splitlines()) <= 301
    assert time.monotonic() - began < 20


def test_a_deep_folder(tools: Toolset, root: Path) -> None:
    deep = "/".join(["d"] * 200)
    call(tools, "write_file", path=f"{deep}/x.txt", content="deep")
    assert "deep" in call(tools, "read_file", path=f"{deep}/x.txt")
    assert "deep" in call(tools, "search_files", pattern="deep")
    subprocess.run(["rm", "-r", str(root / "d")], check=True)  # Too deep for what removes the folders of old tests.


def test_no_descriptor_is_left_open(tools: Toolset, root: Path, outside: Path) -> None:
    (root / "link").symlink_to(outside)
    call(tools, "read_file", path="mine.txt")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        for path in ("link/secret.txt", "sub/../mine.txt", "sub/x", "mine.txt/x", "a" * 300):
            with suppress(ToolError):
                call(tools, "read_file", path=path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_failed_write_leaves_what_was_there(tools: Toolset, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "rename", full)
    assert "the disk is full" in refused(tools, "write_file", path="mine.txt", content="x")
    monkeypatch.undo()
    assert (root / "mine.txt").read_text() == "mine\n"
    assert sorted(entry.name for entry in root.iterdir()) == ["mine.txt", "sub"]

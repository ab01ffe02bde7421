"""Every code block of the README and the guides runs, and prints what the page says it prints."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```(\w*)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TITLE = re.compile(r'title="([\w./-]+)"')
COMPILERS = ("g++", "clang++", "c++")
SHELL = ("sh", "bash", "console", "shell")


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    language: str
    code: str
    output: str | None  # the `text` block right after it
    title: str | None = None  # the name of the file that it is

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def _blocks() -> list[Block]:
    found: list[Block] = []
    for page in sorted([ROOT / "README.md", *(ROOT / "docs").glob("**/*.md"), *ROOT.glob("*/m1*/**/README.md")]):
        matches = list(FENCE.finditer(text := page.read_text()))
        for i, match in enumerate(matches):
            after = matches[i + 1] if i + 1 < len(matches) else None
            follows = after and after[1] == "text" and len(text[match.end() : after.start()].strip()) < 80
            found.append(
                Block(
                    page,
                    text.count("\n", 0, match.start()) + 1,
                    match[1],
                    match[3],
                    after[3] if after and follows else None,
                    title[1] if (title := TITLE.search(match[2])) else None,
                )
            )
    return found


BLOCKS = _blocks()
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])


def _run(command: list[str], folder: Path, seconds: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PATH": PATH},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
    )


def _write_files(page: Path, folder: Path) -> None:
    for block in BLOCKS:
        if block.page == page and block.title:
            target = folder / block.title
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(block.code)


def test_blocks_say_their_language() -> None:
    known = {"python", "text", "json", "toml", *SHELL}
    assert [str(block) for block in BLOCKS if block.language not in known] == []


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "python"], ids=str)
def test_python_block(block: Block, tmp_path: Path) -> None:
    if "compile=True" in block.code and not any(map(shutil.which, COMPILERS)):
        pytest.skip("there is no C++ compiler here")
    _write_files(block.page, tmp_path)
    done = _run([sys.executable, "-c", block.code], tmp_path, 120)
    assert done.returncode == 0, done.stderr
    if block.output is not None:
        assert _settled(done.stdout) == _settled(block.output)


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language in SHELL], ids=str)
def test_shell_block(block: Block, tmp_path: Path) -> None:
    _write_files(block.page, tmp_path)
    for line in block.code.splitlines():
        command = line.removeprefix("$ ").split("  #")[0].strip()
        if not command or command.startswith("#"):
            continue
        first = shlex.split(command)[0]
        if first == "make":  # would install and test again: that the target exists is what can be checked here
            subprocess.run(["make", "--dry-run", *shlex.split(command)[1:]], cwd=ROOT, check=True, capture_output=True)
        elif first in ("m1agent", "python"):
            _run_here(command, block, tmp_path)
        else:
            assert first in ("git", "cd", "pip"), f"{block}: nothing runs {command!r}"


def _run_here(command: str, block: Block, folder: Path) -> None:
    words = shlex.split(command)
    program = [str(Path(sys.executable).parent / words[0])] if words[0] == "m1agent" else [sys.executable]
    local = words[1:2] == ["-m"] or (len(words) > 1 and (ROOT / words[1]).exists())
    done = _run(program + words[1:], ROOT if local else folder, 170)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    if block.output is not None:
        assert _settled(done.stdout) == _settled(block.output)


def _settled(text: str) -> str:
    """Without what differs from run to run: times and trailing spaces."""
    text = re.sub(r"\d+(\.\d+)? (s|ms|seconds)\b", "_ s", text)
    return "\n".join(line.rstrip() for line in text.strip().splitlines())

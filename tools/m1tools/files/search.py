"""Search in the files of a root: by ripgrep in a sandbox where both are there, else by Python, file by file."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import regex

from m1agent import ToolError
from m1tools.files.beneath import Root, Spot, private, read_spot
from m1tools.files.text import is_binary, read_text
from m1tools.sandbox import Bounds, Sandbox, isolation

HITS = 100
PER_FILE = 50
SECONDS = 20.0
MATCH_SECONDS = 1.0
COLUMNS = 200
FILE_BYTES = 5 << 20
SKIPPED = frozenset({".git", "node_modules", "__pycache__", ".venv", "venv", ".mypy_cache", ".ruff_cache", ".tox"})


@dataclass(frozen=True, slots=True)
class Query:
    """What is looked for. `glob` narrows it to names of files; `literal` takes the pattern as plain text."""

    pattern: str
    path: str
    glob: str
    literal: bool
    ignore_case: bool


async def by_ripgrep(root: Root, query: Query, program: str) -> list[str] | None:
    """The lines found, as `path:line:text`, sorted by path; None where ripgrep could not do it.

    It runs in a sandbox that holds the root alone, so that a file swapped for a link leads nowhere.

    Raises:
        ToolError: the pattern is none.
    """
    with root.folder(query.path) as (_, where):
        pass
    flags = [
        "--no-config",
        "--line-number",
        "--with-filename",
        "--no-heading",
        "--color=never",
        "--hidden",
        "--no-mmap",
    ]
    flags += ["--sort=path", f"--max-count={PER_FILE}", f"--max-columns={COLUMNS}", "--max-columns-preview"]
    flags += [f"--max-filesize={FILE_BYTES}", "--glob=!.git", *([f"--glob={query.glob}"] if query.glob else [])]
    flags += [*(["--fixed-strings"] if query.literal else []), *(["--ignore-case"] if query.ignore_case else [])]
    sandbox = Sandbox(
        Bounds(seconds=SECONDS, shown=HITS * (COLUMNS + 100), output=32 << 20),
        read=(root.path, Path(program).parent),
    )
    words = [program, *flags, f"--regexp={query.pattern}", "--", where]
    outcome = await sandbox.run(words, folder=root.path)
    if outcome.code == 2 and "regex parse error" in outcome.output:
        raise ToolError(_not_a_pattern(query.pattern, outcome.output.strip().splitlines()[-1]))
    if outcome.code not in (0, 1) or outcome.stopped:
        return None
    return [line.removeprefix("./") for line in outcome.output.splitlines()]


def ripgrep() -> str | None:
    """Where ripgrep is, if it is to be used: only where a sandbox can hold it."""
    found = shutil.which("rg") if isolation().namespaces or isolation().landlock else None
    return found and os.path.realpath(found)


def by_python(root: Root, query: Query) -> list[str]:
    """The lines found, as `path:line:text`, sorted by path: `HITS` and a few more at most.

    Raises:
        ToolError: the pattern is none, or the search takes too long.
    """
    try:
        source = regex.escape(query.pattern) if query.literal else query.pattern
        pattern = regex.compile(source, regex.IGNORECASE if query.ignore_case else 0)
    except regex.error as error:
        raise ToolError(_not_a_pattern(query.pattern, str(error))) from None
    ends, found = time.monotonic() + SECONDS, list[str]()
    for spot in walk(root, query.path):
        if time.monotonic() > ends:
            raise ToolError(f"The search took more than {SECONDS:g} s. Narrow it with path or glob.")
        if query.glob and not (fnmatchcase(spot.path, query.glob) or fnmatchcase(spot.name, query.glob)):
            continue
        found += _lines(spot, pattern)
        if len(found) > HITS:
            break
    return found


def walk(root: Root, path: str) -> Iterator[Spot]:
    """The files beneath a folder, sorted, without those of folders that hold other people's code."""
    with root.folder(path) as (opened, where):
        for folder, folders, files, handle in os.fwalk(".", dir_fd=opened, follow_symlinks=False):
            folders[:] = sorted(name for name in folders if name not in SKIPPED and not private(name))
            prefix = os.path.normpath(os.path.join(where, folder))
            for name in sorted(files):
                yield Spot(handle, name, os.path.normpath(os.path.join(prefix, name)))


def _lines(spot: Spot, pattern: regex.Pattern[str]) -> list[str]:
    found: list[str] = []
    try:
        data = read_spot(spot, FILE_BYTES)
    except ToolError:
        return found
    if is_binary(data):
        return found
    for number, line in enumerate(read_text(spot.path, data).text.split("\n"), 1):
        try:
            matched = pattern.search(line, timeout=MATCH_SECONDS)
        except TimeoutError:
            raise ToolError("pattern: it takes too long. Use a simpler one, or literal=true.") from None
        if matched:
            found.append(f"{spot.path}:{number}:{line[:COLUMNS]}")
            if len(found) >= PER_FILE:
                break
    return found


def _not_a_pattern(pattern: str, why: str) -> str:
    return f"pattern: expected a regular expression, got {pattern[:40]!r} ({why}). Set literal to true for plain text."

"""What is in a folder, for a model to read."""

from __future__ import annotations

import os
import stat
from fnmatch import fnmatchcase

from m1tools.files.beneath import Root, kind, private
from m1tools.files.search import walk

ENTRIES = 300


def list_folder(root: Root, path: str) -> list[str]:
    """One line for each entry: folders first, with a slash; files with their sizes; what else there is by its kind."""
    with root.folder(path) as (opened, _):
        names = [name for name in os.listdir(opened) if not private(name)]
        entries = [_entry(opened, name) for name in names]
    return [line for _, line in sorted(entries)]


def _entry(folder: int, name: str) -> tuple[tuple[bool, str], str]:
    try:
        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except OSError:
        return (True, name), name
    if stat.S_ISDIR(found.st_mode):
        return (False, name), f"{name}/"
    if stat.S_ISREG(found.st_mode):
        return (True, name), f"{name} ({found.st_size} bytes)"
    if stat.S_ISLNK(found.st_mode):
        return (True, name), f"{name} -> {os.readlink(name, dir_fd=folder)}"
    return (True, name), f"{name} ({kind(found)})"


def find(root: Root, path: str, pattern: str) -> list[str]:
    """The files beneath a folder whose name or path fits a pattern."""
    found: list[str] = []
    for spot in walk(root, path):
        if fnmatchcase(spot.name, pattern) or fnmatchcase(spot.path, pattern):
            found.append(spot.path)
            if len(found) > ENTRIES:
                break
    return found

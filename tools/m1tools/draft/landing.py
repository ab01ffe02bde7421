"""Changed files put into a folder: each at once, all of them or none, and gone on with after a kill."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import stat
from collections.abc import Awaitable, Callable, Sequence, Set
from contextlib import suppress
from pathlib import Path, PurePosixPath

from m1agent import ToolError
from m1tools.draft.errors import DraftConflict, DraftError
from m1tools.draft.shadow import Change, Entry
from m1tools.files.beneath import Root, Spot, read_spot, write_spot

LINK = "120000"
STRANGE = "These files have been changed meanwhile, and are left as they are"
SOMETHING_ELSE = Entry("", "")
UNFINISHED = re.compile(r"\.m1agent-[0-9a-f]{16}")


def check(root: Root, changes: Sequence[Change]) -> list[Change]:
    """The changes that are still to be made; those that a killed program had made are not among them.

    Raises:
        DraftConflict: files are neither as they were before the changes nor as they are to be.
        DraftError: a folder cannot be written.
    """
    found = {change.path: _look(root, change, changes) for change in changes}
    if strange := [one.path for one in changes if found[one.path] not in (one.before, one.after)]:
        raise DraftConflict(STRANGE, strange)
    left = [one for one in changes if found[one.path] != one.after]
    going = {root.path / change.path for change in left if change.after is None}
    for change in left:
        _check_folder(root, change.path, going)
    return left


async def put(root: Root, changes: Sequence[Change], bytes_of: Callable[[Entry], Awaitable[bytes]]) -> None:
    """Make the changes, each file at once; what is removed goes first, so that a folder can follow a file.

    Raises:
        DraftConflict: a file has been changed since `check`; those before it are put in.
    """
    for change in changes:
        if change.after is None and _is_left(root, change, changes):
            root.remove(change.path)
            _prune(root, change.path)
    for change in changes:
        if change.after is not None:
            data = await bytes_of(change.after)
            if _is_left(root, change, changes):
                with root.spot(change.path, follow=False, make=True) as spot:
                    _replace(spot, change.after, data)


def sweep(root: Root, changes: Sequence[Change]) -> None:
    """Remove the files that a killed program had begun to write."""
    for folder in {str(PurePosixPath(change.path).parent) for change in changes}:
        with suppress(ToolError), root.folder(folder) as (opened, _):
            for name in os.listdir(opened):
                if UNFINISHED.fullmatch(name):
                    os.unlink(name, dir_fd=opened)


def _is_left(root: Root, change: Change, changes: Sequence[Change]) -> bool:
    """Whether a change is still to be made. Raises DraftConflict."""
    found = _look(root, change, changes)
    if found not in (change.before, change.after):
        raise DraftConflict(STRANGE, [change.path])
    return found != change.after


def _look(root: Root, change: Change, changes: Sequence[Change]) -> Entry | None:
    if not root.exists(change.path):
        return None
    with suppress(ToolError), root.spot(change.path, follow=False) as spot:
        found = os.stat(spot.name, dir_fd=spot.folder, follow_symlinks=False)
        if stat.S_ISLNK(found.st_mode):
            return Entry(LINK, _named(os.fsencode(os.readlink(spot.name, dir_fd=spot.folder))))
        if stat.S_ISREG(found.st_mode):
            mode = "100755" if found.st_mode & stat.S_IXUSR else "100644"
            return Entry(mode, _named(read_spot(spot, found.st_size)))
        if stat.S_ISDIR(found.st_mode) and _goes(root, change.path, changes):
            return None
    return SOMETHING_ELSE


def _goes(root: Root, path: str, changes: Sequence[Change]) -> bool:
    """Whether a folder holds nothing but files that are to be removed."""
    removed = {change.path for change in changes if change.after is None}
    walked = os.walk(root.path / path)
    return all(os.path.relpath(os.path.join(folder, name), root.path) in removed for folder, _, names in walked
               for name in names)  # fmt: skip


def _named(data: bytes) -> str:
    """What git calls these bytes."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _check_folder(root: Root, path: str, going: Set[Path]) -> None:
    """`going` are files and links that are removed first, so that a folder can take their place."""
    parents = [one for name in PurePosixPath(path).parents if (one := root.path / name) not in going]
    if any(folder.is_symlink() for folder in parents[:-1]):
        raise DraftConflict("A folder has become a link meanwhile", [path])
    folder = next(one for one in parents if one.exists())
    if not folder.is_dir():
        raise DraftConflict("A file is in the way of a folder that was made", [str(folder.relative_to(root.path))])
    if not os.access(folder, os.W_OK | os.X_OK):
        raise DraftError(f"{folder} cannot be written, so nothing is put in.")


def _replace(spot: Spot, entry: Entry, data: bytes) -> None:
    before = spot.stat()
    if entry.mode == LINK:
        draft = f".m1agent-{secrets.token_hex(8)}"
        os.symlink(data, os.fsencode(draft), dir_fd=spot.folder)
        os.rename(draft, spot.name, src_dir_fd=spot.folder, dst_dir_fd=spot.folder)
        return
    regular = before is not None and stat.S_ISREG(before.st_mode)
    mode = stat.S_IMODE(before.st_mode) if before is not None and regular else 0o644
    write_spot(spot, data, mode | (mode & 0o444) >> 2 if entry.mode == "100755" else mode & ~0o111)


def _prune(root: Root, path: str) -> None:
    """Remove the folders on the way to a removed file that are empty now."""
    for folder in PurePosixPath(path).parents:
        if str(folder) == ".":
            return
        with suppress(ToolError), root.spot(str(folder), follow=False) as spot:
            try:
                os.rmdir(spot.name, dir_fd=spot.folder)
            except OSError:
                return

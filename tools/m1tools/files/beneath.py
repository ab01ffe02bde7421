"""A folder that cannot be left.

Every path is walked from the root's own descriptor, one name at a time and never through a symbolic link; a link is
read and its target walked in the same way. `..` goes back to a descriptor that was walked before. So no path, no link
and no swap of a folder for a link in between leads to anything outside: there is no moment between a check and its use.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from m1agent import ToolError

LINKS = 40
LONGEST = 4000  # Characters; other programs can open paths of 4,095 bytes.
FOLDER = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
PLAIN = sum(getattr(os, flag, 0) for flag in ("O_NOFOLLOW", "O_CLOEXEC", "O_NONBLOCK", "O_NOCTTY"))
KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISLNK, "a symbolic link"),
)


@dataclass(frozen=True, slots=True)
class Spot:
    """A name in an open folder; `path` is how it is called from the root."""

    folder: int
    name: str
    path: str

    def stat(self) -> os.stat_result | None:
        """What is there, links not followed; None where nothing is."""
        try:
            return os.stat(self.name, dir_fd=self.folder, follow_symlinks=False)
        except FileNotFoundError:
            return None


class Root:
    """The folder. Everything under a folder called `.git` is left alone.

    Raises:
        NotADirectoryError: there is no such folder.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).resolve()
        if not self.path.is_dir():
            raise NotADirectoryError(f"{path} is no folder")

    @contextmanager
    def spot(self, path: str, *, follow: bool = True, make: bool = False) -> Generator[Spot]:
        """Where `path` leads. With `follow` a link at its end is followed; with `make` missing folders are made.

        Raises:
            ToolError: it leads out of the root, through something that is no folder, or nowhere; or this system cannot
                open files relative to a folder (Windows).
        """
        if os.open not in os.supports_dir_fd:
            raise ToolError("This system cannot keep files in a folder, so they are not touched.")
        if len(path) > LONGEST:
            raise ToolError(f"{path[:40]}...: expected a path of at most {LONGEST} characters, got {len(path)}.")
        with ExitStack() as stack, _told(path):
            yield _Walk(self.path, path, stack, make=make).go(follow=follow)

    @contextmanager
    def folder(self, path: str) -> Generator[tuple[int, str]]:
        """An open folder, and how it is called from the root. Raises ToolError where there is none."""
        with self.spot(path) as spot, _told(path):
            opened = os.open(spot.name, FOLDER, dir_fd=spot.folder)
            try:
                yield opened, spot.path
            finally:
                os.close(opened)

    def read(self, path: str, limit: int) -> bytes:
        """The bytes of a regular file. Raises ToolError where it is none, or longer than `limit`."""
        with self.spot(path) as spot:
            return read_spot(spot, limit)

    def exists(self, path: str) -> bool:
        """Whether something is there, links not followed."""
        try:
            with self.spot(path, follow=False) as spot:
                return spot.stat() is not None
        except ToolError:
            return False

    def write(self, path: str, data: bytes) -> None:
        """Replace a file, or make it with the folders on its way: at once or not at all.

        The file is a new one in the old one's place, so that another name of the old one keeps what it had.
        """
        with self.spot(path, make=True) as spot, _told(path):
            before = spot.stat()
            if before is not None and not stat.S_ISREG(before.st_mode):
                raise ToolError(f"{path}: expected a file, got {kind(before)}.")
            if before is not None and not before.st_mode & stat.S_IWUSR:
                raise ToolError(f"{path}: it is read-only.")
            write_spot(spot, data, stat.S_IMODE(before.st_mode) if before else 0o644)

    def remove(self, path: str) -> None:
        """Remove a file or a link."""
        with self.spot(path, follow=False) as spot, _told(path):
            os.unlink(spot.name, dir_fd=spot.folder)

    def move(self, source: str, target: str) -> None:
        """Move a file, a folder or a link to a name that is free.

        Raises:
            ToolError: there is nothing at `source`, or something at `target`.
        """
        with self.spot(source, follow=False) as old, self.spot(target, follow=False, make=True) as new:
            if old.stat() is None:
                raise ToolError(f"{source}: there is no such file.{self.nearest(source)}")
            if new.stat() is not None:
                raise ToolError(f"{target}: expected a free name, got {kind(new.stat())}. Choose another.")
            with _told(target):
                os.rename(old.name, new.name, src_dir_fd=old.folder, dst_dir_fd=new.folder)

    def nearest(self, path: str) -> str:
        """` Did you mean "x"?` for a name like that of `path` in its folder, or nothing."""
        from m1agent.problems import close_match

        folder, _, name = path.rstrip("/").rpartition("/")
        try:
            with self.folder(folder or ".") as (opened, where):
                names = [entry for entry in os.listdir(opened) if not private(entry)]
        except ToolError:
            return ""
        inside = {entry: f"{where}/{entry}".removeprefix("./") for entry in names}
        near = close_match(name, inside)
        return near.replace('"', f'"{where}/', 1) if near and where != "." else near


class _Walk:
    """One walk from the root; `folders` are the open ones on the way, the root first."""

    def __init__(self, root: Path, path: str, stack: ExitStack, *, make: bool) -> None:
        self._root, self._path, self._stack, self._make = root, path, stack, make
        self._folders = [self._keep(os.open(root, FOLDER))]
        self._names: list[str] = []
        self._links = 0

    def go(self, *, follow: bool) -> Spot:
        left = self._parts(self._path)
        while left:
            name = left.pop(0)
            if name == "..":
                self._up()
                continue
            if private(name):
                raise ToolError(f"{self._path}: {name} belongs to git and is left alone. Use the git tools.")
            target = self._link(name) if left or follow else None
            if target is not None:
                left = [*self._parts(target), *left]
            elif left:
                self._down(name)
            else:
                return Spot(self._folders[-1], name, "/".join([*self._names, name]))
        return Spot(self._folders[-1], ".", "/".join(self._names) or ".")

    def _parts(self, path: str) -> list[str]:
        if "\0" in path:
            raise ToolError(f"{self._path!r}: a path cannot hold a NUL byte.")
        if path.startswith("/"):
            inside = Path(os.path.normpath(path))
            if path is self._path and inside.is_relative_to(self._root):
                path = str(inside.relative_to(self._root))
            else:
                raise ToolError(f"{self._path}: expected a path inside the root, got one outside. Use a relative path.")
        return [part for part in path.split("/") if part not in ("", ".")]

    def _up(self) -> None:
        if not self._names:
            raise ToolError(f"{self._path}: expected a path inside the root, got one outside. Leave out '..'.")
        self._folders.pop()
        self._names.pop()

    def _link(self, name: str) -> str | None:
        try:
            target = os.readlink(name, dir_fd=self._folders[-1])
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOENT):
                return None
            raise
        self._links += 1
        if self._links > LINKS:
            raise ToolError(f"{self._path}: too many symbolic links.")
        return target

    def _down(self, name: str) -> None:
        try:
            opened = os.open(name, FOLDER, dir_fd=self._folders[-1])
        except FileNotFoundError:
            if not self._make:
                raise
            with suppress(FileExistsError):
                os.mkdir(name, 0o755, dir_fd=self._folders[-1])
            opened = os.open(name, FOLDER, dir_fd=self._folders[-1])
        self._folders.append(self._keep(opened))
        self._names.append(name)

    def _keep(self, opened: int) -> int:
        self._stack.callback(os.close, opened)
        return opened


def private(name: str) -> bool:
    """Whether a name is `.git` to some file system: without regard to case, trailing dots, or what is not seen."""
    seen = "".join(letter for letter in name if letter.isprintable())
    return seen.lower().rstrip(" .").split(":")[0] in (".git", "git~1")


def kind(found: os.stat_result | None) -> str:
    """What something is, in two words."""
    if found is None:
        return "nothing"
    return next((words for test, words in KINDS if test(found.st_mode)), "a file")


def read_spot(spot: Spot, limit: int) -> bytes:
    """The bytes of a regular file at a spot. Raises ToolError where it is none, or longer than `limit`."""
    with _told(spot.path):
        found = os.stat(spot.name, dir_fd=spot.folder, follow_symlinks=False)
        _check(spot, found, limit)  # Opening a device can set it going, so it is not opened to see what it is.
        opened = os.open(spot.name, os.O_RDONLY | PLAIN, dir_fd=spot.folder)
        with open(opened, "rb") as file:
            _check(spot, os.fstat(opened), limit)
            data = file.read(limit + 1)
    if len(data) > limit:
        raise ToolError(f"{spot.path}: expected at most {limit} bytes, got more.")
    return data


def _check(spot: Spot, found: os.stat_result, limit: int) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise ToolError(f"{spot.path}: expected a file, got {kind(found)}.")
    if found.st_size > limit:
        raise ToolError(f"{spot.path}: expected at most {limit} bytes, got {found.st_size}. Search in it instead.")


def write_spot(spot: Spot, data: bytes, mode: int) -> None:
    """Put a new file at a spot, in place of what is there."""
    draft = f".m1agent-{secrets.token_hex(8)}"
    opened = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | PLAIN, mode, dir_fd=spot.folder)
    try:
        with open(opened, "wb") as file:
            os.fchmod(opened, mode)
            file.write(data)
        os.rename(draft, spot.name, src_dir_fd=spot.folder, dst_dir_fd=spot.folder)
    except BaseException:
        with suppress(OSError):
            os.unlink(draft, dir_fd=spot.folder)
        raise


TOLD = {
    errno.ENOENT: "there is no such file or folder. List the folder to see what is there.",
    errno.ENOTDIR: "a part of it is no folder.",
    errno.ELOOP: "a part of it has just become a symbolic link.",
    errno.EACCES: "the system does not permit it.",
    errno.EPERM: "the system does not permit it.",
    errno.EISDIR: "expected a file, got a folder.",
    errno.ENAMETOOLONG: "the name is too long.",
    errno.ENOSPC: "the disk is full.",
    errno.EROFS: "it is read-only.",
}


@contextmanager
def _told(path: str) -> Generator[None]:
    """The system's errors as the model is told them."""
    try:
        yield
    except OSError as error:
        why = TOLD.get(error.errno or 0, (error.strerror or str(error)) + ".")
        raise ToolError(f"{path}: {why}") from None
    except UnicodeEncodeError:
        raise ToolError(f"{path!r}: this is no file name.") from None

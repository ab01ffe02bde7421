"""States of folders as git trees, in a repository of their own.

No other repository is touched or trusted: its settings, hooks and filters have no effect here, and every file is kept
byte for byte. So a folder without git has drafts like any other.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from weakref import WeakKeyDictionary

from m1tools.draft.errors import DraftConflict, DraftError
from m1tools.git.config import environment
from m1tools.sandbox import Bounds, Command, clean_environment, run_bounded

LEFT_OUT = (
    ".git", ".venv/", "venv/", "node_modules/", "__pycache__/", ".*_cache/", ".tox/", ".nox/", ".hypothesis/",
    ".m1agent-*",
)  # fmt: skip
BYTES_AS_THEY_ARE = "* -text -filter -ident -working-tree-encoding\n"
MOST_BYTES = 2 << 30
MOST_OF_A_FILE = 256 << 20
BOUNDS = Bounds(seconds=600, memory=8 << 30, file_size=8 << 30, output=1 << 30, shown=MOST_OF_A_FILE)
SETTINGS = {
    "core.autocrlf": "false",
    "core.attributesfile": os.devnull,
    "core.compression": "1",
    "core.excludesfile": os.devnull,
    "core.fsmonitor": "false",
    "core.hookspath": os.devnull,
    "core.quotepath": "false",
    "core.safecrlf": "false",
    "gc.auto": "0",
}
PLAIN = ("--no-ext-diff", "--no-textconv", "--no-color", "--src-prefix=a/", "--dst-prefix=b/")


@dataclass(frozen=True, slots=True)
class Entry:
    """A file in a tree: `mode` is 100644, 100755 or, for a link, 120000; `oid` names its bytes."""

    mode: str
    oid: str


@dataclass(frozen=True, slots=True)
class Change:
    """What a file is in one tree and in another; None where it is not there."""

    path: str
    before: Entry | None
    after: Entry | None


@dataclass(frozen=True, slots=True)
class Listing:
    """Names in a folder: those with bytes to keep, and those that are left out, such as a repository inside it."""

    names: list[bytes] = field(default_factory=list[bytes])
    others: list[bytes] = field(default_factory=list[bytes])


class Shadow:
    """The repository in the folder `place`."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._home = os.path.expanduser("~")
        self._turns: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()

    async def make(self, excludes: bytes = b"") -> None:
        """Make it, empty. `excludes` are patterns of names, as in .gitignore, that are no part of any state."""
        self._place.mkdir(exist_ok=True)
        await self._git("init", "-q", "--bare", "--template=", "--object-format=sha1", ".", bare=True)
        info = self._place / "info"
        info.mkdir(exist_ok=True)
        (info / "attributes").write_text(BYTES_AS_THEY_ARE)
        (info / "exclude").write_bytes("".join(f"{name}\n" for name in LEFT_OUT).encode() + excludes)

    async def state(self, folder: Path, index: Path, listed: Iterable[bytes] = ()) -> tuple[str, tuple[str, ...]]:
        """The tree of a folder as it is now, and the names that are left out of it.

        Args:
            folder: whose files they are.
            index: a file that remembers them, so that only changed ones are read again.
            listed: names in it; without any, all that are not ignored.

        Raises:
            DraftError: it is too large, or cannot be read.
        """
        async with self._turn:
            return await self._state(folder, index, listed)

    async def _state(self, folder: Path, index: Path, listed: Iterable[bytes]) -> tuple[str, tuple[str, ...]]:
        known = set(_names(await self._git("ls-files", "-z", folder=folder, index=index)))
        if not listed:
            words = ("ls-files", "-z", "--others", "--exclude-standard")
            listed = _names(await self._git(*words, folder=folder, index=index))
        found = _listing(folder, known.union(listed))
        gone = b"\0".join(known.difference(found.names))
        await self._git("update-index", "--force-remove", "-z", "--stdin", folder=folder, index=index, stdin=gone)
        words = ("update-index", "--add", "--remove", "--replace", "-z", "--stdin")
        await self._git(*words, folder=folder, index=index, stdin=b"\0".join(found.names))
        tree = (await self._git("write-tree", folder=folder, index=index)).decode().strip()
        return tree, tuple(sorted(map(os.fsdecode, found.others)))

    async def restore(self, tree: str, folder: Path, index: Path) -> None:
        """Make the files of a folder those of `tree`; what is ignored stays."""
        await self.state(folder, index)  # So that git knows of files which came since, and removes them.
        async with self._turn:
            await self._git("read-tree", "--reset", "-u", tree, folder=folder, index=index)

    async def diff(self, before: str, after: str) -> bytes:
        """A diff between trees, as git prints it, bytes of binary files included."""
        return await self._git("diff", *PLAIN, "--binary", "--full-index", before, after)

    async def changes(self, before: str, after: str) -> tuple[Change, ...]:
        """The files in which two trees differ."""
        raw = await self._git("diff-tree", "-r", "-z", "--no-renames", before, after)
        parts = raw.split(b"\0")
        return tuple(_change(head.decode(), path) for head, path in zip(parts[0::2], parts[1::2], strict=False))

    async def lines(self, before: str, after: str) -> int:
        """How many lines were added or removed; a binary file counts two."""
        raw = await self._git("diff", *PLAIN, "--numstat", "-z", "--no-renames", before, after)
        rows = [row.split(b"\t")[:2] for row in raw.split(b"\0") if row]
        return sum(int(number) if number.isdigit() else 1 for row in rows for number in row if number != b"0")

    async def bytes_of(self, entry: Entry) -> bytes:
        """The bytes of a file; of a link, where it leads."""
        return await self._git("cat-file", "blob", entry.oid)

    async def merge(self, base: str, ours: str, theirs: str, index: Path) -> str:
        """The tree with both the changes from `base` to `ours` and those to `theirs`.

        Raises:
            DraftConflict: both changed the same lines.
        """
        if not (diff := await self.diff(base, theirs)):
            return ours
        async with self._turn:
            await self._git("read-tree", ours, index=index)
            try:
                await self._git("apply", "--cached", "--3way", "--whitespace=nowarn", "-", index=index, stdin=diff)
            except DraftError:
                unmerged = _names(await self._git("ls-files", "-u", "-z", index=index))
                paths = sorted({os.fsdecode(name.partition(b"\t")[2]) for name in unmerged})
                raise DraftConflict("These files were changed on both sides", paths or ["the diff"]) from None
            return (await self._git("write-tree", index=index)).decode().strip()

    @property
    def _turn(self) -> asyncio.Lock:
        """Held while an index is written, which git does for one program at a time."""
        return self._turns.setdefault(asyncio.get_running_loop(), asyncio.Lock())

    async def _git(
        self,
        *words: str,
        folder: Path | None = None,
        index: Path | None = None,
        stdin: bytes = b"",
        bare: bool = False,
    ) -> bytes:
        places = {} if bare else {"GIT_DIR": str(self._place), "GIT_WORK_TREE": str(folder or self._place)}
        places |= {} if index is None else {"GIT_INDEX_FILE": str(index)}
        alone = {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull, "GIT_ATTR_NOSYSTEM": "1"}
        command = Command(
            words=["git", "--no-pager", "--literal-pathspecs", *words],
            folder=folder or self._place,
            environment=clean_environment(self._home, {**alone, **places, **environment(SETTINGS)}),
            stdin=stdin,
            apart=True,
        )
        try:
            outcome = await run_bounded(command, BOUNDS)
        except FileNotFoundError:
            if not command.folder.is_dir():
                raise DraftError(f"{command.folder} is gone.") from None
            raise DraftError("git is not installed here, which keeps the states of drafts. Install it.") from None
        if outcome.stopped:
            raise DraftError(f"git {words[0]}: stopped after {outcome.seconds:.0f} s; the folder is too large.")
        if outcome.code:
            said = next((line for line in outcome.errors.splitlines() if line.strip()), f"status {outcome.code}")
            raise DraftError(f"git {words[0]}: {said.removeprefix('fatal: ').removeprefix('error: ')}")
        if outcome.raw is None:
            raise DraftError(f"git {words[0]}: there is more of it than {BOUNDS.shown >> 20} MB.")
        return outcome.raw


def _names(raw: bytes) -> list[bytes]:
    return [name for name in raw.split(b"\0") if name]


def _listing(folder: Path, names: Iterable[bytes]) -> Listing:
    """Sorts names. Raises DraftError where the files are too large together."""
    root, found, total = os.fsencode(folder), Listing(), 0
    plain: dict[bytes, bool] = {b"": True}
    for name in sorted(names):
        if not all(_is_folder(root, parent, plain) for parent in _parents(name)):
            continue
        with suppress(FileNotFoundError):
            seen = os.lstat(os.path.join(root, name))
            if stat.S_ISREG(seen.st_mode) or stat.S_ISLNK(seen.st_mode):
                found.names.append(name)
                total += seen.st_size
            else:
                found.others.append(name)
    if total > MOST_BYTES:
        raise DraftError(f"{folder} holds {total >> 20} MB in files that are not ignored. Name some in .gitignore.")
    return found


def _parents(name: bytes) -> Iterator[bytes]:
    parts = name.rstrip(b"/").split(b"/")
    return (b"/".join(parts[:count]) for count in range(1, len(parts)))


def _is_folder(root: bytes, name: bytes, known: dict[bytes, bool]) -> bool:
    if name not in known:
        try:
            known[name] = stat.S_ISDIR(os.lstat(os.path.join(root, name)).st_mode)
        except OSError:
            known[name] = False
    return known[name]


def _change(head: str, path: bytes) -> Change:
    old_mode, new_mode, old, new, _ = head.removeprefix(":").split(" ")
    sides = [None if not int(oid, 16) else Entry(mode, oid) for mode, oid in ((old_mode, old), (new_mode, new))]
    return Change(os.fsdecode(path), *sides)

"""Copies of a folder in which changes are made."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from filelock import FileLock, Timeout

from m1agent import ToolError
from m1tools.draft import landing
from m1tools.draft.branch import check_branch, make_branch
from m1tools.draft.errors import DraftConflict, DraftError
from m1tools.draft.shadow import LEFT_OUT, MOST_OF_A_FILE, Change, Shadow
from m1tools.files.beneath import Root
from m1tools.git.repository import Repository

__all__ = ["Draft", "DraftConflict", "DraftError", "Drafts"]

FORMAT = 1
STATE = "drafts.json"
NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,40}")


class Drafts:
    """Copies of one folder, kept in another. `begin` makes them and `open` goes on; one program has them at a time.

    `folder` is what they are copies of, and `note` what the program keeps with them. `left_out` names what is in the
    folder and in no copy: repositories inside it, pipes and sockets. What is ignored (.gitignore) is in none either, as
    are environments and caches.
    """

    def __init__(self, place: Path, lock: FileLock, state: dict[str, Any]) -> None:
        self.place, self._lock, self._state = place, lock, state
        self.folder = Path(state["folder"])
        self.note: dict[str, Any] = state["note"]
        self.left_out: tuple[str, ...] = tuple(state["left_out"])
        self.busy: set[str] = set()
        self._shadow = Shadow(place / "repository")

    @classmethod
    async def begin(
        cls,
        folder: str | os.PathLike[str],
        place: str | os.PathLike[str],
        *,
        trusted: bool = False,
        note: Mapping[str, Any] | None = None,
    ) -> Self:
        """Take up a folder as it is now, with what is not committed yet.

        Args:
            folder: where the changes are to land in the end. It is only read.
            place: a new folder outside of it, for the copies and all that belongs to them; made for its user alone.
            trusted: a git repository may run what its settings name; one that names anything is refused otherwise.
            note: JSON values that a program wants to find again; `keep` changes them.

        Raises:
            DraftError: the folder cannot be copied, or `place` is inside of it or in use.
            ToolError: git refuses the repository; the text says why.
        """
        source, target = _places(folder, place)
        lock = _locked(target)
        try:
            if (target / STATE).exists():
                raise DraftError(f"{place} holds drafts already; Drafts.open goes on with them.")
            made = cls(target, lock, _new(source, dict(note or {}), trusted=trusted))
            await made._shadow.make(_excludes(source))
            made._state["base"], made.left_out = await made._now()
            made._save(left_out=list(made.left_out))
        except BaseException:
            lock.release()
            raise
        return made

    @classmethod
    def open(cls, place: str | os.PathLike[str]) -> Self:
        """The drafts of an earlier program, however it ended.

        Raises:
            DraftError: there are none, or another program has them.
        """
        target = Path(place).resolve()
        if not (target / STATE).is_file():
            raise DraftError(f"{place} holds no drafts.")
        lock = _locked(target)
        try:
            for left in (*target.glob("*.lock"), *(target / "repository").glob("*.lock")):
                left.unlink()
            return cls(target, lock, _state(target))
        except BaseException:
            lock.release()
            raise

    def close(self) -> None:
        """Let others open them. Calling it again does nothing."""
        self._lock.release()

    def remove(self) -> None:
        """Close them and delete every copy."""
        (self.place / STATE).unlink(missing_ok=True)  # First, so that what a killed program leaves is no drafts.
        self.close()
        shutil.rmtree(self.place, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def keep(self, note: Mapping[str, Any]) -> None:
        """Keep another note."""
        self.note = dict(note)
        self._save(note=self.note)

    @property
    def names(self) -> tuple[str, ...]:
        """The copies there are."""
        return tuple(self._state["drafts"])

    async def copy(self, name: str) -> Draft:
        """The copy of that name, made where there is none: of the folder as it was when the drafts were begun.

        Raises:
            DraftError: it cannot be made.
        """
        if not NAME.fullmatch(name):
            raise DraftError(f"the name of a draft is of small letters, digits and '-', not {name!r}")
        draft = Draft(self, name)
        if name not in self._state["drafts"]:
            shutil.rmtree(draft.folder, ignore_errors=True)
            draft.folder.mkdir()
            draft.index.unlink(missing_ok=True)
            await self._shadow.restore(self._state["base"], draft.folder, draft.index)
            self._save(drafts={**self._state["drafts"], name: self._state["base"]})
        return draft

    async def check_branch(self, name: str) -> None:
        """Whether `Draft.branch` can make a branch of that name.

        Raises:
            DraftError: the folder is no repository, or has such a branch.
            ToolError: git refuses, for example because it does not know who commits.
        """
        await check_branch(self._repository(), name)

    def _repository(self) -> Repository:
        if not _is_repository(self.folder):
            raise DraftError(f"{self.folder} is not the top folder of a git repository, so it has no branches.")
        return Repository(self.folder, trusted=self._state["trusted"])

    @property
    def landing(self) -> str:
        """The name of the draft whose landing a killed program did not finish, or ''."""
        begun: Mapping[str, str] | None = self._state.get("landing")
        return begun["draft"] if begun else ""

    @property
    def landed(self) -> str:
        """The name of the draft that landed last, or ''."""
        return self._state.get("landed", "")

    async def finish_landing(self) -> tuple[str, ...]:
        """Put in what is left of a landing that was begun; the names of all its files, or none where none was begun.

        Raises:
            DraftConflict: a file that is left has been changed meanwhile.
            DraftError: a folder cannot be written.
        """
        begun: Mapping[str, str] | None = self._state.get("landing")
        if not begun:
            return ()
        root = self._root()
        changes = await self._shadow.changes(begun["before"], begun["after"])
        landing.sweep(root, changes)
        try:
            await landing.put(root, landing.check(root, changes), self._shadow.bytes_of)
        except ToolError as error:  # Such as a full disk.
            raise DraftError(str(error)) from None
        drafts = {**self._state["drafts"], begun["draft"]: begun["after"]}
        self._save(landing=None, landed=begun["draft"], drafts=drafts)
        return tuple(change.path for change in changes)

    def _root(self) -> Root:
        """The folder, for `landing`. Raises DraftError where it is gone."""
        try:
            return Root(self.folder)
        except NotADirectoryError:
            raise DraftError(f"{self.folder} is gone.") from None

    async def _now(self) -> tuple[str, tuple[str, ...]]:
        """The tree of the folder as it is, and what is left out of it."""
        listed: list[bytes] = []
        if _is_repository(self.folder):
            without = [f"--exclude={name}" for name in LEFT_OUT]
            words = ("ls-files", "-z", "--cached", "--others", "--exclude-standard", *without)
            raw = await self._repository().read(*words)
            listed = [name for name in raw.split(b"\0") if name]
        return await self._shadow.state(self.folder, self.place / "folder.index", listed)

    def _save(self, **changed: Any) -> None:
        self._state |= changed
        new = self.place / f"{STATE}.new"
        with new.open("w", encoding="utf-8") as file:
            json.dump(self._state, file)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self.place / STATE)


@dataclass(frozen=True, slots=True)
class Draft:
    """One copy; change the files in its `folder` by any means. `Drafts.copy` makes it."""

    drafts: Drafts
    name: str

    @property
    def folder(self) -> Path:
        """Where its files are."""
        return self.drafts.place / self.name

    @property
    def index(self) -> Path:
        """Where git remembers its files."""
        return self.drafts.place / f"{self.name}.index"

    async def tree(self) -> str:
        """The name of its present state."""
        return (await self._shadow.state(self.folder, self.index))[0]

    async def restore(self, tree: str) -> None:
        """Go back to a state that `tree` named. What is ignored stays."""
        await self._shadow.restore(tree, self.folder, self.index)

    @asynccontextmanager
    async def scratch(self) -> AsyncGenerator[Path]:
        """A copy of it as it is now, for programs to run in: nothing that happens there changes the draft.

        What is ignored stays there for the next time, such as builds.
        """
        busy, tree = self.drafts.busy, await self.tree()
        name = next(name for count in itertools.count(1) if (name := f"{self.name}.scratch{count}") not in busy)
        busy.add(name)
        try:
            folder = self.drafts.place / name
            folder.mkdir(exist_ok=True)
            await self._shadow.restore(tree, folder, self.drafts.place / f"{name}.index")
            yield folder
        finally:
            busy.discard(name)

    async def diff(self) -> bytes:
        """What was changed, for `git apply`; empty where nothing was."""
        return await self._shadow.diff(self._base, await self.tree())

    async def changed(self) -> tuple[str, ...]:
        """The files that were changed, made or removed."""
        return tuple(change.path for change in await self._shadow.changes(self._base, await self.tree()))

    async def made(self) -> tuple[str, ...]:
        """Those of the changed files that are new."""
        changes = await self._shadow.changes(self._base, await self.tree())
        return tuple(change.path for change in changes if change.before is None)

    async def lines(self) -> int:
        """How many lines were added or removed; a binary file counts two."""
        return await self._shadow.lines(self._base, await self.tree())

    async def update(self) -> bool:
        """Take up what has changed in the folder meanwhile; whether anything had. Try the tests again if so.

        Raises:
            DraftConflict: both changed the same lines; the draft stays as it was.
        """
        now, _ = await self.drafts._now()  # pyright: ignore[reportPrivateUsage]
        if now == self._base:
            return False
        merged = await self._shadow.merge(self._base, now, await self.tree(), self.drafts.place / "merge.index")
        await self.restore(merged)
        self._save(drafts={**self._state["drafts"], self.name: now})
        return True

    async def land(self) -> tuple[str, ...]:
        """Put the changes into the folder, and nothing into git; the names of the files.

        All files are put in, or none. A program that is killed here leaves some: `Drafts.finish_landing` goes on.

        Raises:
            DraftConflict: files have been changed meanwhile; nothing is put in. `update` may help.
            DraftError: a folder cannot be written or a file is too large; nothing is put in.
        """
        before, after = self._base, await self.tree()
        changes = await self._shadow.changes(before, after)
        root = self.drafts._root()  # pyright: ignore[reportPrivateUsage]
        landing.check(root, changes)
        self._check_sizes(changes)
        self._save(landing={"draft": self.name, "before": before, "after": after})
        return await self.drafts.finish_landing()

    def _check_sizes(self, changes: Sequence[Change]) -> None:
        made = [change.path for change in changes if change.after is not None]
        if large := [name for name in made if os.lstat(self.folder / name).st_size > MOST_OF_A_FILE]:
            raise DraftError(f"{large[0]} is larger than {MOST_OF_A_FILE >> 20} MB, so nothing is put in.")

    async def branch(self, name: str, message: str) -> str:
        """Commit the changes, over what is checked out, as a new branch; the work tree stays. The commit's id.

        Raises:
            DraftError: the folder is no repository, has such a branch, or the changes build on what is not committed.
            ToolError: git refuses.
        """
        repository = self.drafts._repository()  # pyright: ignore[reportPrivateUsage]
        return await make_branch(repository, name, message, await self.diff(), self.drafts.place / "branch.index")

    @property
    def _shadow(self) -> Shadow:
        return self.drafts._shadow  # pyright: ignore[reportPrivateUsage]

    @property
    def _state(self) -> dict[str, Any]:
        return self.drafts._state  # pyright: ignore[reportPrivateUsage]

    def _save(self, **changed: Any) -> None:
        self.drafts._save(**changed)  # pyright: ignore[reportPrivateUsage]

    @property
    def _base(self) -> str:
        return self._state["drafts"][self.name]


def _new(folder: Path, note: dict[str, Any], *, trusted: bool) -> dict[str, Any]:
    return {"format": FORMAT, "folder": str(folder), "trusted": trusted, "note": note, "left_out": [], "drafts": {}}


def _state(place: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = json.loads((place / STATE).read_text(encoding="utf-8"))
        known = state["format"]
    except (ValueError, TypeError, KeyError) as error:
        raise DraftError(f"{place / STATE} cannot be read: {error}") from None
    if known != FORMAT:
        raise DraftError(f"{place} was made by another version of this program.")
    return state


def _places(folder: str | os.PathLike[str], place: str | os.PathLike[str]) -> tuple[Path, Path]:
    source, target = Path(folder).resolve(), Path(place).resolve()
    if not source.is_dir():
        raise DraftError(f"{folder} is no folder.")
    if target.is_relative_to(source):
        raise DraftError(f"{place} lies in {folder}: give a place outside of it.")
    target.mkdir(0o700, parents=True, exist_ok=True)  # Copies of files are readable for all who get here.
    return source, target


def _is_repository(folder: Path) -> bool:
    return os.path.lexists(folder / ".git")


def _locked(place: Path) -> FileLock:
    lock = FileLock(place / "lock", thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise DraftError(f"another program is using {place}: wait for it.") from None
    return lock


def _excludes(folder: Path) -> bytes:
    """What the repository ignores by a file of its own, beside .gitignore."""
    with suppress(OSError):
        return (folder / ".git" / "info" / "exclude").read_bytes()
    return b""

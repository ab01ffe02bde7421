"""What was there before each change, so that changes can be taken back, the last one first."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from m1agent import ToolError
from m1tools.files.beneath import Root

CHANGES = 200
BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Change:
    """One call's doing: `before` and `after` are the files' bytes, None for a file that is not there; `moved` is the
    old and the new path of what was moved."""

    what: str
    before: Mapping[str, bytes | None]
    after: Mapping[str, bytes | None]
    moved: tuple[str, str] | None = None

    @property
    def size(self) -> int:
        """How many bytes it remembers."""
        return sum(len(data or b"") for files in (self.before, self.after) for data in files.values())


class Journal:
    """The last changes, at most `CHANGES` and `BYTES`; older ones are forgotten and cannot be taken back."""

    def __init__(self, root: Root, limit: int) -> None:
        self._root, self._limit = root, limit
        self._changes: deque[Change] = deque()
        self.lock = threading.Lock()

    def apply(self, what: str, files: Mapping[str, bytes | None]) -> None:
        """Write files, or remove those given as None: all of them, or none where one fails. Hold `lock`."""
        before = {path: self._bytes(path) for path in files}
        done: list[str] = []
        try:
            for path, data in files.items():
                self._put(path, data)
                done.append(path)
        except BaseException:
            for path in reversed(done):
                self._put(path, before[path])
            raise
        self._remember(Change(what, before, dict(files)))

    def move(self, source: str, target: str) -> None:
        """Move a file or a folder. Hold `lock`."""
        self._root.move(source, target)
        self._remember(Change(f"move {source} to {target}", {}, {}, (source, target)))

    def undo(self) -> str:
        """Take back the last change. Hold `lock`.

        Raises:
            ToolError: there is none, or a file has changed since.
        """
        if not self._changes:
            raise ToolError("There is no change to take back.")
        change = self._changes[-1]
        for path, data in change.after.items():
            if self._bytes(path) != data:
                raise ToolError(
                    f"{path}: it has changed since '{change.what}', so that is not taken back. Edit it instead."
                )
        if change.moved:
            self._root.move(change.moved[1], change.moved[0])
        for path, data in change.before.items():
            self._put(path, data)
        self._changes.pop()
        return change.what

    def _put(self, path: str, data: bytes | None) -> None:
        if data is not None:
            self._root.write(path, data)
        elif self._root.exists(path):
            self._root.remove(path)

    def _bytes(self, path: str) -> bytes | None:
        return self._root.read(path, self._limit) if self._root.exists(path) else None

    def _remember(self, change: Change) -> None:
        self._changes.append(change)
        while len(self._changes) > CHANGES or sum(one.size for one in self._changes) > BYTES:
            self._changes.popleft()

"""What a benchmark found so far, item by item in a file, so that a run that was killed goes on where it was.

The first line says what was measured, each further line is one item. A line that a kill cut in half is dropped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from m1agent.errors import BenchError

FORMAT = 1


class Record:
    """Results by id, in memory and, where a path is given, in a file of JSON lines.

    `again` are kinds of results that are not final: such an item is asked once more, and its newer line counts.

    Raises:
        BenchError: the file exists and is not to be resumed, is none of ours, or is about something else.
    """

    def __init__(
        self, about: Mapping[str, Any], path: Path | None = None, *, resume: bool = False, again: frozenset[str]
    ) -> None:
        self.about: dict[str, Any] = {"format": FORMAT, **about}
        self.results: dict[str, dict[str, Any]] = {}
        self._file: Any = None
        if path is None:
            return
        try:
            known = path.read_bytes() if path.exists() else b""
            if known and not resume:
                raise BenchError(f"'{path}' holds results already: go on with them by --resume, or name another file")
            whole = known[: known.rfind(b"\n") + 1]
            self._read(path, whole, again)
            self._file = path.open("r+b" if path.exists() else "xb")
            self._file.truncate(len(whole))
            self._file.seek(len(whole))
        except OSError as error:
            raise BenchError(f"'{path}' cannot be written: {error.strerror or error}") from None
        if not whole:
            self._write(self.about)

    def add(self, result: dict[str, Any]) -> None:
        """Keep one item's result; it is in the file when this returns."""
        self.results[result["id"]] = result
        if self._file is not None:
            self._write(result)

    def close(self) -> None:
        """Close the file. Calling it again does nothing."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, line: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(line, ensure_ascii=False, default=str).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def _read(self, path: Path, text: bytes, again: frozenset[str]) -> None:
        if not text:
            return
        try:
            first, *lines = [json.loads(line) for line in text.splitlines()]
            results = {line["id"]: line for line in lines}
            other = {name for name in self.about.keys() | first.keys() if first.get(name) != self.about.get(name)}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise BenchError(f"'{path}' is no file of results; name another one") from None
        if other:
            name = min(other)
            raise BenchError(
                f"'{path}' is about another run: {name} was {first.get(name)!r} and is {self.about.get(name)!r}; "
                "ask for the same again, or name another file"
            )
        self.results = {name: result for name, result in results.items() if result.get("kind") not in again}

"""Results that are too long for a prompt: their ends are told, the whole goes to a file."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from pydantic import Field

from m1agent.errors import ToolError
from m1agent.messages import ToolResult, whole_text
from m1agent.tools import Tool, tool

TAIL_SHARE = 10
LEFT_OUT = "\n[... {count} of {whole} characters left out; the whole text is in {path} ...]\n"
FILE = re.compile(r"m1agent-result-[0-9a-f]{32}\.txt")
NO_LINKS = getattr(os, "O_NOFOLLOW", 0)  # Windows has none; links there need rights of their own.


@dataclass(frozen=True, slots=True)
class ResultBudget:
    """How much of one result a model is shown.

    A longer result is cut to its beginning and its end, and written to a file under `folder` that the text names; None
    is the user's own folder among the temporary ones. The file's name depends on the text alone, as a prompt must.
    With `reader` the agent gets a tool, `read_result`, for reading such files.
    """

    characters: int = 20_000
    folder: str | Path | None = None
    reader: bool = False

    def __post_init__(self) -> None:
        if self.characters < 1000:
            raise ValueError(f"ResultBudget.characters must be at least 1000, not {self.characters!r}")


class Spill:
    """Fits results into a budget. The folder is made at the first long result."""

    def __init__(self, budget: ResultBudget) -> None:
        self.budget = budget
        self._folder = _temporary() if budget.folder is None else Path(budget.folder).expanduser().resolve()

    def fit(self, result: ToolResult) -> ToolResult:
        """The result, shortened where it is over the budget."""
        text, bound = result.content, self.budget.characters
        if len(text) <= bound:
            return result
        tail = bound // TAIL_SHARE
        note = LEFT_OUT.format(count=len(text) - bound, whole=len(text), path=self._write(text))
        return replace(result, content=text[: bound - tail] + note + text[-tail:])

    def reader(self) -> Tool:
        """The tool that reads what was written here, and nothing else."""

        @tool(name="read_result")
        def read_result(
            path: str, start: Annotated[int, Field(ge=0)] = 0, length: Annotated[int, Field(ge=1)] = 8000
        ) -> str:
            """Read more of a tool result that was too long to show.

            Args:
                path: The file that the shortened result names.
                start: First character to read.
                length: How many characters.
            """
            text = self._read(path)
            end = start + min(length, self.budget.characters)
            return text[start:end] or f"The text ends before {start}: it has {len(text)} characters."

        return read_result

    def _read(self, path: str) -> str:
        file = Path(path)
        try:
            if file.parent != self._folder or not FILE.fullmatch(file.name):
                raise FileNotFoundError
            with open(os.open(file, os.O_RDONLY | NO_LINKS), encoding="utf-8", newline="") as opened:
                return opened.read()
        except (OSError, ValueError):
            raise ToolError(f"There is no saved result '{path}'. Use the path exactly as it was given.") from None

    def _write(self, text: str) -> str:
        """Write the text down and say where. Equal texts share a file, so that a repeated call has the same result."""
        data = whole_text(text).encode()
        try:
            self._make_folder()
            path = self._folder / f"m1agent-result-{hashlib.sha256(data).hexdigest()[:32]}.txt"
            with tempfile.NamedTemporaryFile(dir=self._folder, prefix=".m1agent-", delete=False) as file:
                file.write(data)
            os.replace(file.name, path)
            return str(path)
        except OSError as error:
            return f"no file ({error.strerror or error})"

    def _make_folder(self) -> None:
        own = self.budget.folder is None
        self._folder.mkdir(mode=0o700 if own else 0o777, parents=True, exist_ok=True)
        if own and hasattr(os, "getuid") and self._folder.lstat().st_uid != os.getuid():
            raise PermissionError(f"{self._folder} belongs to someone else")


def _temporary() -> Path:
    user = f"-{os.getuid()}" if hasattr(os, "getuid") else ""  # Elsewhere each user has temporary folders of their own.
    return Path(tempfile.gettempdir()).resolve() / f"m1agent-results{user}"

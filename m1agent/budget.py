"""Results that are too long for a prompt: their ends are told, the whole goes to a file."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from pydantic import Field

from m1agent.errors import ToolError
from m1agent.messages import ToolResult
from m1agent.tools import Tool, tool

TAIL_SHARE = 10
LEFT_OUT = "\n[... {count} of {whole} characters left out; the whole text is in {path} ...]\n"


@dataclass(frozen=True, slots=True)
class ResultBudget:
    """How much of one result a model is shown.

    A longer result is cut to its beginning and its end, and written to a file under `folder` (a new temporary folder
    when None) that the text names. With `reader` the agent gets a tool, `read_result`, for reading such files.
    """

    characters: int = 20_000
    folder: str | Path | None = None
    reader: bool = False

    def __post_init__(self) -> None:
        if self.characters < 1000:
            raise ValueError(f"ResultBudget.characters must be at least 1000, not {self.characters!r}")


class Spill:
    """Fits results into a budget. One object a run of an agent's life: the folder is made at the first long result."""

    def __init__(self, budget: ResultBudget) -> None:
        self.budget = budget
        self._folder: Path | None = None

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
            folder, file = self._folder, Path(path)
            if folder is None or file.parent != folder or not file.is_file():
                raise ToolError(f"There is no saved result '{path}'. Use the path exactly as the result gives it.")
            text = file.read_text(encoding="utf-8")
            return text[start : start + min(length, self.budget.characters)] or f"The text ends before {start}."

        return read_result

    def _write(self, text: str) -> str:
        try:
            folder = self._open()
            with tempfile.NamedTemporaryFile(
                "w", encoding="utf-8", errors="replace", dir=folder, prefix="result-", suffix=".txt", delete=False
            ) as file:
                file.write(text)
                return file.name
        except OSError as error:
            return f"no file ({error.strerror})"

    def _open(self) -> Path:
        if self._folder is None:
            given = self.budget.folder
            if given is None:
                self._folder = Path(tempfile.mkdtemp(prefix="m1agent-"))
            else:
                self._folder = Path(given).resolve()
                self._folder.mkdir(parents=True, exist_ok=True)
        return self._folder

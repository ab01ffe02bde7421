"""The memory toolset: short notes that outlive a conversation, found again by their words.

What a model is told by a page or a file may end up in a note, and is read again in later conversations: a note is as
trustworthy as what it was made of. Where that matters, `memory(...).approval_required()` shows each one to a person.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from pydantic import Field

from m1agent import Toolset, tool
from m1agent.tools import Hints
from m1tools.memory.notes import Bounds, Notes

READS = Hints(read_only=True, open_world=False)
ADDS = Hints(read_only=False, destructive=False, idempotent=True, open_world=False)
REMOVES = Hints(read_only=False, destructive=True, open_world=False)

__all__ = ["Bounds", "Notes", "memory"]


def memory(path: str | os.PathLike[str] | None = None, *, bounds: Bounds | None = None) -> Toolset:
    """The toolset that keeps notes. Forgetting one waits for a human's yes.

    Args:
        path: the file of the notes, which several programs may use at once; by default `m1agent/memory.db` in the
            user's folder for data (`XDG_DATA_HOME`).
        bounds: how many notes there may be, and how long.

    Raises:
        ValueError: `path` is a file of another kind.
    """
    notes = Notes(_home() if path is None else Path(path), bounds or Bounds())

    @tool(hints=ADDS)
    def remember(text: str) -> str:
        """Keep a note for later conversations: one fact, understandable by itself.

        Args:
            text: The note.
        """
        return notes.add(text)

    @tool(hints=READS)
    def recall(query: str, limit: Annotated[int, Field(ge=1, le=50)] = 8) -> str:
        """Find notes by their words, the best first.

        Args:
            query: Words, or "phrases" in quotes.
            limit: How many notes.
        """
        return notes.find(query, limit)

    @tool(hints=READS)
    def list_notes(before: Annotated[int, Field(ge=1)] | None = None) -> str:
        """List notes, the latest first.

        Args:
            before: Only notes older than the one of this number.
        """
        return notes.listed(before)

    @tool(hints=REMOVES)
    def forget_note(number: Annotated[int, Field(ge=1)]) -> str:
        """Delete a note for good.

        Args:
            number: Its number, as recall and list_notes show it.
        """
        return notes.remove(number)

    return Toolset("memory", [remember, recall, list_notes, forget_note])


def _home() -> Path:
    data = os.environ.get("XDG_DATA_HOME", "")
    folder = Path(data) if os.path.isabs(data) else Path.home() / ".local/share"
    return folder / "m1agent/memory.db"

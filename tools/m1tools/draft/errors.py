"""What can go wrong with drafts."""

from __future__ import annotations

from collections.abc import Iterable

from m1agent import M1AgentError

NAMED = 5


class DraftError(M1AgentError):
    """A draft cannot be made, seen or put back; the text says why, and nothing is lost."""


class DraftConflict(DraftError):
    """Files of the folder are no longer as the draft found them; `paths` are theirs."""

    def __init__(self, what: str, paths: Iterable[str]) -> None:
        self.paths = tuple(paths)
        more = f" and {len(self.paths) - NAMED} more" if len(self.paths) > NAMED else ""
        super().__init__(f"{what}: {', '.join(self.paths[:NAMED])}{more}")

"""An eye on models that repeat themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from m1agent.messages import ToolCall, ToolResult
from m1agent.schema import canonical_json

TOLD_AT, STOP_AT = 3, 4
REPEATED = "\n\nYou have made this call {count} times with the same result. Do something else, or answer."


@dataclass(slots=True)
class Repeats:
    """Counts calls that were made again with the same arguments and brought the same result."""

    seen: dict[tuple[str, str], tuple[str, int]] = field(default_factory=dict[tuple[str, str], tuple[str, int]])
    worst: int = 0

    @property
    def looping(self) -> bool:
        """Whether a call was repeated until there is no hope."""
        return self.worst >= STOP_AT

    def note(self, calls: Sequence[ToolCall], results: Sequence[ToolResult]) -> list[ToolResult]:
        """Count one reply's calls, twins in one reply once; the results say so where the model repeats itself."""
        counted: dict[tuple[str, str], int] = {}
        told: list[ToolResult] = []
        for call, result in zip(calls, results, strict=True):
            key = (call.name, canonical_json(call.arguments) if call.problem is None else call.problem)
            if key not in counted:
                content, count = self.seen.get(key, (result.content, 0))
                counted[key] = count + 1 if content == result.content else 1
                self.seen[key] = (result.content, counted[key])
            count = counted[key]
            self.worst = max(self.worst, count)
            note = REPEATED.format(count=count) if count >= TOLD_AT else ""
            told.append(replace(result, content=result.content + note) if note else result)
        return told

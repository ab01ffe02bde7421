"""The calls that a mask cannot promise to be valid: they are checked before they are told."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from m1agent.arguments import Checker
from m1agent.errors import SchemaError
from m1agent.messages import ToolCall, ToolSpec
from m1agent.prompt.places import place


@dataclass(frozen=True, slots=True)
class CallChecks:
    """Schemas of the tools whose arguments are not wholly enforced, by name; the original ones."""

    _schemas: dict[str, Checker] = field(default_factory=dict[str, Checker])

    @classmethod
    def of(cls, specs: Iterable[ToolSpec]) -> CallChecks:
        """The checks of these tools; one whose schema cannot be checked has none."""
        from m1agent.validation import ArgumentsSchema

        schemas: dict[str, Checker] = {}
        for spec in specs:
            try:
                schemas[spec.name] = ArgumentsSchema(spec.parameters)
            except SchemaError:
                continue
        return cls(schemas)

    def __bool__(self) -> bool:
        return bool(self._schemas)

    def __contains__(self, name: str) -> bool:
        return name in self._schemas

    def fault(self, call: ToolCall, text: str, at: int) -> tuple[int, int] | None:
        """Where the first value begins and ends that is not as the schema wants it; None if there is none.

        `text` holds the call, as it was written, from `at` on.
        """
        if call.problem is not None or call.name not in self._schemas:
            return None
        checked = self._schemas[call.name].check(call.arguments)
        if not checked.problems:
            return None
        arguments = place(text, at, ("arguments",))[0]
        return min((place(text, arguments, path) for path in checked.places), default=None)

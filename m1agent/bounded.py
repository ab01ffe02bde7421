"""JSON Schema keywords that a schema of somebody else could use to keep us busy, bounded in time.

References can double the work with every step they lead on, patterns with every letter of a text.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

from jsonschema.exceptions import ValidationError

from m1agent.patterns import SECONDS, TooSlow, matches

CHECK_SECONDS = 1.0
REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")

Keyword: TypeAlias = Callable[[Any, Any, Any, Any], Iterator[ValidationError]]


class Allowance:
    """The time one check may take: `start` it, then `left` says how much there is."""

    def __init__(self) -> None:
        self._ends = float("inf")

    def start(self) -> None:
        """Begin the time anew."""
        self._ends = time.monotonic() + CHECK_SECONDS

    def left(self) -> float:
        """Seconds left. Raises TooSlow when there are none."""
        left = self._ends - time.monotonic()
        if left <= 0:
            raise TooSlow("the time is used up")
        return left


def bounded_keywords(keywords: Mapping[str, Keyword], allowance: Allowance) -> dict[str, Keyword]:
    """Replacements for those of a draft's `keywords` that could take long; they raise TooSlow instead."""
    bounded = _Bounded(allowance)
    made: dict[str, Keyword] = {
        "pattern": bounded.pattern,
        "patternProperties": bounded.pattern_properties,
        "additionalProperties": bounded.additional_properties,
    }
    references = {name: bounded.counted(keywords[name]) for name in REFERENCES if name in keywords}
    return {name: keyword for name, keyword in made.items() if name in keywords} | references


class _Bounded:
    def __init__(self, allowance: Allowance) -> None:
        self._allowance = allowance

    def counted(self, keyword: Keyword) -> Keyword:
        """`keyword`, as long as there is time."""

        def follow(validator: Any, demand: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
            self._allowance.left()
            yield from keyword(validator, demand, instance, schema) or ()

        return follow

    def pattern(self, validator: Any, demand: str, instance: Any, schema: Any) -> Iterator[ValidationError]:
        if validator.is_type(instance, "string") and not self._found(demand, instance):
            yield ValidationError(f"{instance!r} does not match {demand!r}")

    def pattern_properties(
        self, validator: Any, demand: Mapping[str, Any], instance: Any, schema: Any
    ) -> Iterator[ValidationError]:
        for expression, sub in demand.items() if validator.is_type(instance, "object") else ():
            for name, value in instance.items():
                if self._found(expression, name):
                    yield from validator.descend(value, sub, path=name, schema_path=expression)

    def additional_properties(
        self, validator: Any, demand: Any, instance: Any, schema: Any
    ) -> Iterator[ValidationError]:
        if not validator.is_type(instance, "object"):
            return
        known, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
        extras = [
            name for name in instance if name not in known and not any(self._found(one, name) for one in patterns)
        ]
        if validator.is_type(demand, "object"):
            for name in extras:
                yield from validator.descend(instance[name], demand, path=name)
        elif not demand and extras:
            yield ValidationError(f"additional properties: {', '.join(map(repr, extras))}")

    def _found(self, pattern: str, text: str) -> bool:
        return matches(pattern, text, min(SECONDS, self._allowance.left()))

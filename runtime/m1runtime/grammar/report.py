"""What of a schema the grammar enforces, and what is left to validate afterwards."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from m1runtime.grammar.keywords import FORMATS, LOOSE_FORMATS, STANDARD_FORMATS, Node, Schema, places
from m1runtime.grammar.writer import Value


@dataclass(frozen=True, slots=True)
class Unenforced:
    """One keyword the mask does not enforce: JSON pointer of its schema, the keyword (`*` for all of it), and why."""

    path: str
    keyword: str
    why: str


@dataclass(frozen=True, slots=True)
class ToolSchemaReport:
    """What the grammar enforces of one schema; `enforced` when nothing is left to validate afterwards.

    `annotations`: formats of which the mask holds the shape at most. As JSON Schema says, a format is an annotation:
    nothing checks the rest of it. `in_order`: JSON pointers of the objects that take properties in the schema's order
    alone, though any was asked for.
    """

    name: str
    unenforced: tuple[Unenforced, ...] = ()
    in_order: tuple[str, ...] = ()
    annotations: tuple[Unenforced, ...] = ()

    @property
    def enforced(self) -> bool:
        """Every assertion of the schema is in the mask."""
        return not self.unenforced


@dataclass(frozen=True, slots=True)
class CompiledSchema:
    """A schema llguidance takes, as the text after `%json`, and its report.

    `schema`: what the text says, without its options; `names`: an instance may hold names the schema does not declare,
    so the constraint must remember them; `instance`: one that the grammar accepts; `bound`: bytes that finish an
    instance from any place, None if no bound is known; `rules`: what says the same with properties in any order;
    `texts`: strings that match its patterns, where a search finds none.
    """

    text: str
    schema: Schema
    report: ToolSchemaReport
    names: bool
    instance: bytes
    bound: int | None
    rules: Value | None = None
    texts: tuple[bytes, ...] = ()

    @property
    def value(self) -> Value:
        """What the grammar is made of."""
        return self.rules or Value.in_order(self.text)


def loose_formats(schema: Schema) -> tuple[Unenforced, ...]:
    """The standard formats in a schema that the mask does not hold in full."""
    return tuple(
        Unenforced(path, "format", f"{kind}: {'its shape alone' if kind in FORMATS else 'an annotation'}")
        for node, path in places(schema)
        if isinstance(node, dict)
        and isinstance(kind := cast("Node", node).get("format"), str)
        and kind in STANDARD_FORMATS
        and (kind in LOOSE_FORMATS or kind not in FORMATS)
    )


def short(message: str) -> str:
    lines = [line.removeprefix("error: ") for line in message.split("\n") if line.startswith("error: ")]
    return lines[0] if lines else message.split("\n")[0].split("failed to compile JSON schema: ")[-1][:200]


def blame(schema: Schema, warnings: Sequence[str]) -> list[Unenforced]:
    """llguidance's lenient warnings, each turned into the places its keywords stand at."""
    found: list[Unenforced] = []
    for warning in (line for text in warnings for line in text.splitlines()):
        keywords = _keywords_of(warning)
        found += [
            Unenforced(path, keyword, short(warning))
            for node, path in places(schema)
            if isinstance(node, dict)
            for keyword in cast("Node", node)
            if keyword in keywords
        ] or [Unenforced("", "*", warning)]
    return found


def _keywords_of(warning: str) -> set[str]:
    if warning.startswith("Unimplemented keys: "):
        return set(re.findall(r'"([^"]+)"', warning))
    if warning.startswith("oneOf"):
        return {"oneOf"}
    if warning.startswith("min/maxProperties"):
        return {"minProperties", "maxProperties"}
    return set()

"""What a document is read into."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


class Refused(Exception):
    """A document that is not read; the text says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on one document.

    `size` bytes of the file; `pages` or other sections; `characters` of text; `inflated` bytes of what a compressed
    file holds; `seconds` and `memory` bytes for reading it.

    Raises:
        ValueError: a bound is not above 0.
    """

    size: int = 50 << 20
    pages: int = 5000
    characters: int = 20_000_000
    inflated: int = 100 << 20
    seconds: float = 60.0
    memory: int = 1 << 30

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if not getattr(self, name) > 0:
                raise ValueError(f"Limits.{name} must be above 0, not {getattr(self, name)!r}")


@dataclass(frozen=True, slots=True)
class Section:
    """A page or a part under a heading: `p3` or `s3`, its title, the depth of its heading (1 is the top), its text."""

    anchor: str
    title: str
    level: int
    text: str


@dataclass(frozen=True, slots=True)
class Extracted:
    """A whole document; `notes` say what was left out."""

    title: str
    sections: tuple[Section, ...]
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        rows = [[one.anchor, one.title, one.level, one.text] for one in self.sections]
        return {"title": self.title, "sections": rows, "notes": list(self.notes)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Extracted:
        """What `to_json` gave."""
        return cls(value["title"], tuple(Section(*row) for row in value["sections"]), tuple(value["notes"]))


def bounded(found: Extracted, limits: Limits) -> Extracted:
    """The beginning of a document that fits the limits, with a note where that is not all of it."""
    kept: list[Section] = []
    left = limits.characters
    for section in found.sections[: limits.pages]:
        if left <= 0:
            break
        kept.append(Section(section.anchor, section.title[:300], section.level, section.text[:left]))
        left -= len(section.text)
    if len(kept) == len(found.sections) and left >= 0:
        return Extracted(found.title[:300], tuple(kept), found.notes)
    last = kept[-1].anchor if kept else "none"
    note = f"Only its beginning was read, up to {last} of {len(found.sections)} sections: it is over the limits."
    return Extracted(found.title[:300], tuple(kept), (*found.notes, note))

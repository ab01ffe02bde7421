"""Reads Google-style docstrings: what a function does, and what each parameter means."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

ARGUMENTS = frozenset({"args", "arguments", "parameters", "params", "keyword args", "keyword arguments"})
OTHERS = frozenset(
    "attributes example examples note notes raises references returns return see also todo warning warnings "
    "warns yields yield".split()
) | {"see also"}
ENTRY = re.compile(r"\*{0,2}(?P<name>\w+)\s*(?:\((?P<type>.*?)\))?\s*:(?:\s+(?P<text>.*))?$")


@dataclass(frozen=True, slots=True)
class Docstring:
    """`description` is everything before the first section, one paragraph a line; `parameters` by name."""

    description: str
    parameters: dict[str, str]


def parse_docstring(text: str | None) -> Docstring:
    """Read a docstring; text that follows no convention is all description."""
    lines = inspect.cleandoc(text or "").splitlines()
    description: list[str] = []
    parameters: dict[str, str] = {}
    for title, body in _sections(lines):
        if title is None:
            description += body
        elif title in ARGUMENTS:
            parameters |= dict(_entries(body))
    return Docstring("\n".join(_paragraphs(description)), parameters)


def _sections(lines: Iterable[str]) -> Iterator[tuple[str | None, list[str]]]:
    title: str | None = None
    body: list[str] = []
    for line in lines:
        heading = _heading(line)
        if heading is None:
            body.append(line)
            continue
        yield title, body
        title, body = heading, []
    yield title, body


def _heading(line: str) -> str | None:
    """The lower-case name of the section a line opens, or None. Section titles stand at the margin."""
    name = line.rstrip()
    if not name.endswith(":") or name[0].isspace():
        return None
    name = name[:-1].lower()
    return name if name in ARGUMENTS | OTHERS else None


def _entries(lines: list[str]) -> Iterator[tuple[str, str]]:
    """Parameters of an `Args:` section; deeper lines continue the entry above them."""
    margin = min((_indent(line) for line in lines if line.strip()), default=0)
    name, text = "", list[str]()
    for line in lines:
        match = ENTRY.match(line.strip()) if line.strip() and _indent(line) == margin else None
        if match is None:
            text.append(line)
            continue
        if name:
            yield name, " ".join(_paragraphs(text))
        name, text = match["name"], [match["text"] or ""]
    if name:
        yield name, " ".join(_paragraphs(text))


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _paragraphs(lines: Iterable[str]) -> list[str]:
    """Wrapped lines joined by a space; blank lines part paragraphs."""
    text = "\n".join(line.strip() for line in lines).strip()
    return [" ".join(part.split()) for part in re.split(r"\n\n+", text) if part.strip()]

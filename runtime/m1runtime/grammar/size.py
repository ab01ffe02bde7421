"""How large a schema may be, and of what: measured without recursion, for it may come from an untrusted server."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from m1runtime.grammar.keywords import pointer

MAX_DEPTH = 100
"""Nested JSON levels; llguidance's own reader stops at 128."""
MAX_NODES = 100_000
MAX_KEYS = 1000
MAX_WEIGHT = 4 * MAX_KEYS**2
"""Compile time grows with the square of the keys of one object: 0.2 s for MAX_KEYS of them."""


def too_big(schema: object) -> str | None:
    """Why a schema is not looked at; None if it is small enough."""
    level: list[object] = [schema]
    nodes = weight = 0
    for _ in range(MAX_DEPTH):
        if any(isinstance(node, dict) and len(cast("dict[str, Any]", node)) > MAX_KEYS for node in level):
            return f"more than {MAX_KEYS} keys in one object"
        weight += _weight(level)
        if weight > MAX_WEIGHT:
            return "too many keys in all"
        level = [child for node in level for child in _children(node)]
        nodes += len(level)
        if nodes > MAX_NODES:
            return f"more than {MAX_NODES} values in one schema"
        if not level:
            return None
    return f"nested deeper than {MAX_DEPTH} levels"


def no_json(schema: object) -> str | None:
    """Why a schema, not too big, is no JSON; None if it is. Numbers and None for names are JSON's own spellings."""
    waiting: list[tuple[object, str]] = [(schema, "")]
    while waiting:
        node, path = waiting.pop()
        if isinstance(node, dict):
            for name, child in cast("dict[object, object]", node).items():
                if not isinstance(name, (str, int, float, type(None))):
                    return f"a name in {path or '/'} is a {type(name).__name__}; JSON names are strings"
                waiting.append((child, f"{path}/{pointer(str(name))}"))
        elif isinstance(node, (list, tuple)):
            children = cast("Sequence[object]", node)
            waiting += [(child, f"{path}/{i}") for i, child in enumerate(children)]
        elif not isinstance(node, (str, int, float, type(None))):
            return f"{path or '/'} is a {type(node).__name__}; JSON has no such values"
    return None


def _weight(level: list[object]) -> int:
    return sum(len(cast("dict[str, Any]", node)) ** 2 for node in level if isinstance(node, dict))


def _children(node: object) -> Iterator[object]:
    if isinstance(node, Mapping):
        yield from cast("Mapping[str, object]", node).values()
    elif isinstance(node, (list, tuple)):
        yield from cast("Sequence[object]", node)

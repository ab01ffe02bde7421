"""How a problem with a call's arguments is told to the model that made the call: in one short line.

A line reads `path: expected ..., got ....` and one hint, in some 40 tokens at most: without schema dump or address, and
with no value longer than `SHOWN` characters.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, TypeAlias, cast

from m1agent.messages import JsonSchema
from m1agent.patterns import matches

SHOWN = 24
LISTED = 48
PATH = 36
PROBLEMS = 8

Path: TypeAlias = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Leaf:
    """One failed keyword: where, which, what it demanded, and what stood there."""

    path: Path
    keyword: str
    demand: Any
    instance: Any
    schema: JsonSchema


def cap(lines: Iterable[str]) -> tuple[str, ...]:
    """The first `PROBLEMS` distinct lines, and how many more there are."""
    distinct = list(dict.fromkeys(lines))
    more = len(distinct) - PROBLEMS
    return tuple(distinct[:PROBLEMS] + ([f"... and {more} more."] if more > 0 else []))


def shown(value: Any, limit: int = SHOWN) -> str:
    """A value as JSON, cut to `limit` characters."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = type(value).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."


def dotted(path: Sequence[str | int]) -> str:
    """`("filters", 0, "name")` as `filters[0].name`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")
    text = " ".join(text.split())
    return text if len(text) <= PATH else "..." + text[3 - PATH :]


def close_match(word: Any, known: Iterable[Any]) -> str:
    """` Did you mean "x"?` for the nearest known word, or nothing."""
    import difflib

    texts = {str(item).lower(): item for item in known}
    near = difflib.get_close_matches(str(word).lower()[:LISTED], list(texts), n=1)
    return f" Did you mean {shown(texts[near[0]])}?" if near else ""


def type_names(kinds: Any) -> list[Any]:
    """JSON Schema's `type` is one name or a list of names."""
    return cast("list[Any]", kinds) if isinstance(kinds, list) else [kinds]


def problem_lines(leaf: Leaf) -> Iterator[str]:
    """What the model is told of one failure; of missing or unknown arguments, one line each."""
    path = dotted(leaf.path)
    instance = leaf.instance
    if leaf.keyword == "required":
        for name in [name for name in leaf.demand if name not in instance]:
            yield f"{dotted((*leaf.path, name))}: missing, expected {_described(_property(leaf.schema, name))}."
    elif leaf.keyword == "additionalProperties":
        yield from _unknown(leaf)
    else:
        yield f"{path or 'arguments'}: expected {expectation(leaf)}, got {_got(leaf)}.{_hint(leaf)}"


def _unknown(leaf: Leaf) -> Iterator[str]:
    known = list(leaf.schema.get("properties", {}))
    patterns: list[str] = list(leaf.schema.get("patternProperties", {}))
    names: list[str] = list(leaf.instance)
    for name in names:
        if name in known or any(matches(pattern, name) for pattern in patterns):
            continue
        unused = [other for other in known if other not in leaf.instance]
        allowed = _listed(known) if known else "none"
        yield f"{dotted((*leaf.path, name))}: unknown argument.{close_match(name, unused)} Allowed: {allowed}."


def expectation(leaf: Leaf) -> str:
    """What a failed keyword demands, in a few words."""
    demand = leaf.demand
    if leaf.keyword == "type":
        return " or ".join(map(str, type_names(demand)))
    if leaf.keyword == "enum":
        return f"one of {_listed([shown(item) for item in demand])}"
    if leaf.keyword in PHRASES:
        return PHRASES[leaf.keyword].format(shown(demand, LISTED).strip('"'))
    if leaf.keyword == "const":
        return shown(demand)
    return f"a value that satisfies '{leaf.keyword}'"


PHRASES = {
    "minimum": "at least {}",
    "maximum": "at most {}",
    "exclusiveMinimum": "more than {}",
    "exclusiveMaximum": "less than {}",
    "multipleOf": "a multiple of {}",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "minItems": "at least {} items",
    "maxItems": "at most {} items",
    "uniqueItems": "items that all differ",
    "minProperties": "at least {} keys",
    "maxProperties": "at most {} keys",
    "pattern": "text matching {}",
    "anyOf": "one of the allowed forms",
    "oneOf": "exactly one of the allowed forms",
    "None": "no value at this place",
}


def _got(leaf: Leaf) -> str:
    value = leaf.instance
    if leaf.keyword in ("minItems", "maxItems"):
        return f"{len(value)} items"
    if leaf.keyword == "maxLength":
        return f"{len(value)} characters"
    if leaf.keyword == "type" and isinstance(value, str):
        return f"the string {shown(value)}"
    return shown(value)


def _hint(leaf: Leaf) -> str:
    if leaf.keyword == "enum":
        return close_match(leaf.instance, leaf.demand)
    if leaf.keyword == "type" and leaf.demand == "string" and isinstance(leaf.instance, int | float):
        return " Put it in quotes."
    if leaf.keyword == "type" and leaf.demand == "array":
        return " Put it in [ ]."
    if leaf.keyword == "type" and leaf.instance is None:
        return " Leave it out or give a value."
    return ""


def _described(schema: Any) -> str:
    """What a property wants, in a few words."""
    if not isinstance(schema, dict):
        return "a value"
    part = cast("JsonSchema", schema)
    if "enum" in part:
        return f"one of {_listed([shown(item) for item in part['enum']])}"
    if "type" in part:
        return " or ".join(map(str, type_names(part["type"])))
    return "a value"


def _property(schema: JsonSchema, name: str) -> Any:
    return cast("dict[str, Any]", schema.get("properties", {})).get(name)


def _listed(items: Sequence[str]) -> str:
    """As many items as fit in `LISTED` characters, and how many more there are."""
    ends = list(accumulate(len(item) + 2 for item in items))
    count = max(1, bisect_right(ends, LISTED + 2))
    return ", ".join(items[:count]) + (f", ... ({len(items) - count} more)" if count < len(items) else "")

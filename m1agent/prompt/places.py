"""Where a value stands in a JSON text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence

DECODER = json.JSONDecoder(strict=False)
BETWEEN = re.compile(r"[\s,:]*")


def place(text: str, at: int, path: Sequence[str | int]) -> tuple[int, int]:
    """Beginning and end of the value at `path` inside the JSON value that begins at `at`.

    Where the path leads to nothing, the value in which it stops. Raises ValueError for text that is no JSON.
    """
    for part in path:
        found = next((start for name, start in _members(text, at) if name == part), None)
        if found is None:
            break
        at = found
    return at, DECODER.raw_decode(text, at)[1]


def _members(text: str, at: int) -> Iterator[tuple[str | int, int]]:
    """The keys or indexes of an object or array, and where their values begin."""
    is_object, index = text[at] == "{", 0
    if not is_object and text[at] != "[":
        return
    at = _skip(text, at + 1)
    while text[at] not in "}]":
        name: str | int = index
        if is_object:
            name, at = DECODER.raw_decode(text, at)
            at = _skip(text, at)
        yield name, at
        at = _skip(text, DECODER.raw_decode(text, at)[1])
        index += 1


def _skip(text: str, at: int) -> int:
    blank = BETWEEN.match(text, at)
    return blank.end() if blank else at

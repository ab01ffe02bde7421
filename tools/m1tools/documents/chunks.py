"""Text in pieces of a size that a search can point to."""

from __future__ import annotations

import re
from collections.abc import Iterator

CHUNK = 2000
BREAKS = tuple(re.compile(pattern) for pattern in (r"\n\s*\n", r"\n", r"[.!?;。！？]\s*", r"\s"))


def chunks(text: str, size: int = CHUNK) -> Iterator[str]:
    """Pieces of at most `size` characters whose sum is the text, cut between paragraphs, lines, sentences or words as
    far as there are any in a piece's second half."""
    at = 0
    while len(text) - at > size:
        end = _cut(text, at, at + size)
        yield text[at:end]
        at = end
    if text[at:]:
        yield text[at:]


def _cut(text: str, begin: int, most: int) -> int:
    for pattern in BREAKS:
        if ends := [match.end() for match in pattern.finditer(text, begin + (most - begin) // 2, most)]:
            return ends[-1]
    return most

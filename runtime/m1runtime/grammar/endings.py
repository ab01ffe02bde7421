"""The shortest texts of patterns, and how they end a string.

Where a pattern asks for an end, such as `\\.csv$`, a search by bytes does not see that it comes nearer: all bytes stay
allowed. With a bound on the length, only those that lead to a text do, so any way is one; the least bound that leaves
any gives a shortest text. The same texts, or their last bytes, then end strings of the pattern that are begun.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import lru_cache

from llguidance import LLMatcher

from m1runtime.grammar.effort import Effort
from m1runtime.grammar.writer import json_value

MOST = 256
"""Characters of the shortest text that is looked for."""
MAX_ENDINGS = 32
"""Of one schema: each is tried wherever a string may not end."""


def shortest_text(pattern: str, effort: Effort) -> bytes | None:
    """A JSON string of the fewest characters that matches, quotes included; None if there is none up to MOST."""
    least, most = -1, 0
    found = _of_length(pattern, 0)
    while found is None:
        least, most = most, 2 * most or 1
        if most > MOST or effort.over:
            return None
        found = _of_length(pattern, most)
    while most - least > 1 and not effort.over:
        middle = (least + most) // 2
        shorter = _of_length(pattern, middle)
        if shorter is None:
            least = middle
        else:
            most, found = middle, shorter
    return found


@lru_cache(1024)
def _of_length(pattern: str, most: int) -> bytes | None:
    """A JSON string of at most `most` characters that matches, or None."""
    from m1runtime.grammar.reach import ending

    return ending(json_value(json.dumps({"type": "string", "pattern": pattern, "maxLength": most})))


def endings(matcher: LLMatcher, texts: tuple[bytes, ...]) -> Iterator[bytes]:
    """What ends the string that is being written with the last bytes of one of `texts`, the fewest that do."""
    for text in texts:
        for start in range(len(text) - 1, 0, -1):
            rest = text[start:]
            if matcher.validate_tokens(list(rest)) == len(rest):
                yield rest
                break

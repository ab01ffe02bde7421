"""Regular expressions for all texts but a few."""

from __future__ import annotations

import re
from collections.abc import Sequence

MAX_WORDS = 64
MAX_LETTERS = 600


def all_but(words: Sequence[str]) -> str | None:
    """A pattern found in every text but these; None where they are too many."""
    if len(words) > MAX_WORDS or sum(map(len, words)) > MAX_LETTERS:
        return None
    return f"^(?:{_after(sorted(set(words)))})$"


def _after(words: list[str]) -> str:
    """What may follow a common beginning of `words`, which are cut behind it."""
    heads = sorted({word[0] for word in words if word})
    ways = [] if "" in words else [""]
    if not heads:
        return r"[\s\S]+"
    ways.append(f"[^{''.join(map(_in_class, heads))}]" + r"[\s\S]*")
    ways += [re.escape(head) + f"(?:{_after([word[1:] for word in words if word.startswith(head)])})" for head in heads]
    return "|".join(ways)


def _in_class(letter: str) -> str:
    return f"\\{letter}" if letter in r"\]^-[&~" else letter

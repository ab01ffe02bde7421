"""Whether a grammar text that compiles can also be completed: some do neither, and only their first use would tell."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

from llguidance import LLMatcher

from m1runtime.grammar.closing import complete_fast, complete_shortest
from m1runtime.grammar.effort import UNLIMITED, Effort
from m1runtime.grammar.guided import UNBOUNDED, bytes_matcher
from m1runtime.grammar.shape import Shape

FEW_TOKENS = 64
MAX_TEXT = 10_000
"""Bytes of an instance; a call that cannot be shorter fits no budget."""


@lru_cache(128)
def unusable(lark: str) -> str | None:
    """Why a matcher of this text cannot start; None if it can."""
    matcher = bytes_matcher(lark)
    return matcher.get_error().split("\n")[0] if matcher.is_error() else None


def compiles(lark: str) -> tuple[bool, list[str]]:
    """Whether llguidance refuses a text, and its messages."""
    try:
        return LLMatcher.validate_grammar_with_warnings(LLMatcher.grammar_from_lark(lark))
    except (ValueError, UnicodeEncodeError) as error:
        return True, [str(error)]


@lru_cache(1024)
def ending(lark: str) -> bytes | None:
    """Some text of a grammar, if one is found at once: what is not would never be finished within a budget."""
    return complete_fast(bytes_matcher(lark), Shape.start(names=True), limit=FEW_TOKENS)


@dataclass(frozen=True, slots=True)
class Reach:
    """A text of a grammar, or why none is known: it does not compile (`refused`), or none was found."""

    text: bytes = b""
    why: str | None = None
    refused: bool = False


Seek: TypeAlias = Callable[[str], Reach]
"""Looks for a text of a grammar."""


def reach(lark: str, effort: Effort = UNLIMITED, texts: tuple[bytes, ...] = ()) -> Reach:
    """Looks for a JSON text of this grammar, for no longer than `effort`; `texts`: strings that match its patterns."""
    try:
        matcher = bytes_matcher(lark)
    except (ValueError, UnicodeEncodeError) as error:
        return Reach(why=str(error), refused=True)
    if matcher.is_error():
        return Reach(why=matcher.get_error(), refused=True)
    shape = Shape.start(names=True)
    text = complete_fast(matcher, shape, limit=UNBOUNDED, texts=texts, effort=effort)
    if text is None or len(text) > MAX_TEXT:
        found = complete_shortest(matcher, shape, len, limit=UNBOUNDED, merge=True, texts=texts, effort=effort)
        text = found.text if found is not None else text
    if text is None:
        return Reach(why="no instance could be found in time" if effort.over else "no instance could be found")
    if len(text) > MAX_TEXT:
        return Reach(why=f"the shortest instance found is {len(text)} bytes long")
    return Reach(text)

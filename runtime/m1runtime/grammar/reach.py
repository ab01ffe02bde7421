"""Whether a grammar text that compiles can also be completed: some do neither, and only their first use would tell."""

from __future__ import annotations

from llguidance import LLMatcher

from m1runtime.grammar.closing import complete_fast, complete_shortest
from m1runtime.grammar.guided import LIMITS, UNBOUNDED
from m1runtime.grammar.shape import Shape
from m1runtime.grammar.vocabulary import byte_tokenizer


def unusable(lark: str) -> str | None:
    """Why a matcher of this text cannot start; None if it can."""
    matcher = _matcher(lark)
    return matcher.get_error().split("\n")[0] if matcher.is_error() else None


def unreachable(lark: str) -> str | None:
    """Why no JSON text of this grammar could be found; None if one was."""
    matcher = _matcher(lark)
    if matcher.is_error():
        return matcher.get_error().split("\n")[0]
    shape = Shape.start(names=True)
    if complete_fast(matcher, shape, limit=UNBOUNDED) is not None:
        return None
    found = complete_shortest(matcher, shape, len, limit=UNBOUNDED, merge=True)
    return "no instance could be found" if found is None else None


def _matcher(lark: str) -> LLMatcher:
    return LLMatcher(byte_tokenizer(), LLMatcher.grammar_from_lark(lark), log_level=0, limits=LIMITS)

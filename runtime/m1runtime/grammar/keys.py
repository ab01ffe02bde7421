"""Lark terminals for the keys of an object whose names may be made up: none of them equals a declared one.

A made-up key has one spelling here, raw or with the shortest escape, so that no spelling of a declared name slips past
it. Beside patterns it holds no escapes at all, since there a pattern is matched on the text as it stands.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from llguidance import regex_to_lark

from m1runtime.grammar.guided import bytes_matcher
from m1runtime.grammar.references import Unwritable
from m1runtime.grammar.writer import json_text, literal

_ONE_SPELLING = r'/"([^"\\\x00-\x1f\x7f]|\\(["\\bfnrt]|u00(0[0-7be-f]|1[0-9a-f])))*"/'
_NO_ESCAPES = r'/"[^"\\\x00-\x1f\x7f]*"/'


def other_key(names: Sequence[str], patterns: Sequence[str]) -> str:
    """Any key but these names and those that match a pattern. Raises Unwritable for a pattern it cannot read."""
    taken = [literal(json_text(name)) for name in names] + [_quoted(pattern) for pattern in patterns]
    return " & ".join([_NO_ESCAPES if patterns else _ONE_SPELLING, *([_none_of(taken)] if taken else [])])


def pattern_key(pattern: str, names: Sequence[str]) -> str:
    """A key that matches a pattern and is none of these names. Raises Unwritable for a pattern it cannot read."""
    taken = [literal(json_text(name)) for name in names]
    return " & ".join([_NO_ESCAPES, _quoted(pattern), *([_none_of(taken)] if taken else [])])


def _none_of(terms: Sequence[str]) -> str:
    return f"~({' | '.join(terms)})"


def _quoted(pattern: str) -> str:
    return f'("\\"" {_searched(pattern)} "\\"")'


@lru_cache(1024)
def matches(pattern: str, name: str) -> bool:
    """Whether a name matches a pattern, as llguidance reads it. Raises Unwritable for a pattern it cannot read."""
    matcher = bytes_matcher(f"start: {_searched(pattern)}\n")
    if matcher.is_error():
        raise Unwritable(f"pattern {pattern!r} does not compile")
    text = list(name.encode(errors="surrogatepass"))
    if text and not matcher.consume_tokens(text):
        return False
    return matcher.is_accepting()


def _searched(pattern: str) -> str:
    """A Lark regex of all texts that hold a match of `pattern`."""
    begins, body, ends = _anchors(pattern)
    anything = "(?s:.*)"
    try:
        inner = regex_to_lark(body, "dw")
    except ValueError as error:
        raise Unwritable(f"pattern {pattern!r}: {error}") from None
    return f"/{'' if begins else anything}({inner}){'' if ends else anything}/"


def _anchors(pattern: str) -> tuple[bool, str, bool]:
    """Whether a pattern begins with `^`, what is between, and whether it ends with `$`."""
    outside, alternative = _outside_classes(pattern)
    begins = 0 in outside
    ends = bool(pattern) and len(pattern) - 1 in outside and pattern[-1] == "$"
    if len(outside) > begins + ends or (alternative and (begins or ends)):
        raise Unwritable(f"pattern {pattern!r} has anchors inside")
    return begins, pattern[begins : len(pattern) - ends], ends


def _outside_classes(pattern: str) -> tuple[list[int], bool]:
    """Where anchors stand, and whether the whole is an alternative."""
    anchors, alternative, depth, at, in_class = list[int](), False, 0, 0, False
    while at < len(pattern):
        char = pattern[at]
        if char == "\\":
            if pattern[at + 1 : at + 2] in tuple("bBAzZ") and not in_class:
                anchors.append(at)
            at += 1
        elif in_class:
            in_class = char != "]"
        elif char == "[":
            in_class = True
        elif char in "^$":
            anchors.append(at)
        depth += (char == "(") - (char == ")") if not in_class else 0
        alternative = alternative or (char == "|" and depth == 0 and not in_class)
        at += 1
    return anchors, alternative

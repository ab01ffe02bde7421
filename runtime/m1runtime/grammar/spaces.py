r"""`\s` and `\S` of patterns, in the characters that every dialect agrees on.

ECMAScript takes U+FEFF for a space, Python U+001C to U+001F and U+0085, llguidance only the last. What the mask writes
is valid in all of them: a character they differ on is neither `\s` nor `\S`, and in a negated class it is both.
"""

from __future__ import annotations

_AGREED = r"\t-\r \u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_DOUBTED = r"\u001c-\u001f\u0085\ufeff"
_CLASSES = {
    ("s", False): f"[{_AGREED}]",
    ("s", True): f"[{_AGREED}{_DOUBTED}]",
    ("S", False): f"[^{_AGREED}{_DOUBTED}]",
    ("S", True): f"[^{_AGREED}]",
}
r"""By letter, and by whether a negated class holds it. Classes may hold classes in llguidance's syntax."""


def agreed_spaces(pattern: str) -> str:
    r"""The pattern with `\s` and `\S` written out as classes."""
    written: list[str] = []
    negated = within = False
    at = 0
    while at < len(pattern):
        here = pattern[at : at + 2] if pattern[at] == "\\" else pattern[at]
        if here[0] == "\\":
            here = _CLASSES.get((here[1:], negated), here)
        elif here == "[" and not within:
            within, negated = True, pattern[at + 1 : at + 2] == "^"
        elif here == "]":
            within = negated = False
        at += 2 if pattern[at] == "\\" else 1
        written.append(here)
    return "".join(written)

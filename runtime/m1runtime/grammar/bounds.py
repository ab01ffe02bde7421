"""Integers between bounds, digit by digit."""

from __future__ import annotations

from m1runtime.grammar.plain import Integer


def fits(node: Integer, text: bytes) -> bool:
    """Whether the integer may end here. A negative zero is none."""
    digits = text.removeprefix(b"-")
    if not digits or text == b"-0" or (len(digits) > 1 and digits.startswith(b"0")):
        return False
    value = int(text)
    return (node.low is None or value >= node.low) and (node.high is None or value <= node.high)


def may_become(node: Integer, text: bytes) -> bool:
    """Whether `text`, with more digits or as it is, spells an integer between the bounds."""
    return _more_digits(node, text) is not None


def _more_digits(node: Integer, text: bytes) -> int | None:
    """The fewest digits that make `text` an integer between the bounds, or None."""
    negative = text.startswith(b"-")
    digits = text[negative:]
    if b"-" in digits or (len(digits) > 1 and digits.startswith(b"0")):
        return None
    if digits == b"0":
        return 0 if not negative and fits(node, text) else None
    low, high = (_negated(node.high), _negated(node.low)) if negative else (node.low, node.high)
    # Of the absolute value, which is at least 1 here unless nothing is written.
    least = max(low if low is not None else 0, 1 if negative or digits else 0)
    value = int(digits or b"0")
    for more in range(0 if digits else 1, 20):
        first, last = (
            (value * 10**more, value * 10**more + 10**more - 1) if digits else (10 ** (more - 1), 10**more - 1)
        )
        if not digits and not negative and more == 1:
            first = 0
        if last >= least and (high is None or first <= high):
            return more
        if high is not None and first > high:
            break
    return None if text else _more_digits(node, b"-")


def _negated(bound: int | None) -> int | None:
    return None if bound is None else -bound


def shortest(node: Integer, text: bytes) -> bytes:
    """The bytes that finish the integer soonest."""
    made = text
    while not fits(node, made):
        ways = [one for byte in b"0123456789-" if may_become(node, one := made + bytes((byte,)))]
        made = min(ways, key=lambda one: (_more_digits(node, one) or 0, one))
    return made[len(text) :]

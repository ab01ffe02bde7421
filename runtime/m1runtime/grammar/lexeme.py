"""The byte automata of JSON strings and numbers, as llguidance writes them.

A string ends with its quote; a number ends where a byte follows that continues none. A string spells a character in one
way: raw, or with the shortest escape that JSON has for it (control characters without a letter: `\\u00XX`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

DONE = -1
_ASCII = re.compile(rb"[ !#-\[\]-~]*")
_NO_ESCAPE = re.compile(rb'[^"\\\x00-\x1f\x7f]*')


@dataclass(frozen=True, slots=True, eq=False)
class Lexeme:
    """A deterministic automaton that starts in state 0.

    `moves`: byte → next state, per state; DONE ends the lexeme with this byte. `final`: states in which it may end
    before the next byte. `shortest`: bytes that end it soonest.
    """

    moves: tuple[dict[int, int], ...]
    final: frozenset[int]
    shortest: tuple[bytes, ...]

    def run(self, state: int, text: bytes) -> tuple[int, int]:
        """The state after the longest part of `text` that belongs to it, DONE after its end; and that part's length."""
        for at, byte in enumerate(text):
            after = self.moves[state].get(byte)
            if after is None:
                return state, at
            if after == DONE:
                return DONE, at + 1
            state = after
        return state, len(text)


def _moves(*rules: tuple[Iterable[int], int]) -> dict[int, int]:
    return {byte: after for some, after in rules for byte in some}


_HIGH = range(0x80, 0xC0)
_DIGITS = b"0123456789"
_PLAIN = [byte for byte in range(0x20, 0x7F) if byte not in b'"\\']

STRING = Lexeme(
    moves=(
        _moves((_PLAIN, 0), (b'"', DONE), (b"\\", 1), (range(0xC2, 0xE0), 7), (b"\xe0", 10), (range(0xE1, 0xED), 8))
        | _moves((b"\xed", 11), (b"\xee\xef", 8), (b"\xf0", 12), (b"\xf1\xf2\xf3", 9), (b"\xf4", 13)),
        _moves((b'"\\bfnrt', 0), (b"u", 2)),
        _moves((b"0", 3)),
        _moves((b"0", 4)),
        _moves((b"01", 5), (b"7", 6)),
        _moves((b"0123456789abcdefABCDEF", 0)),
        _moves((b"fF", 0)),
        _moves((_HIGH, 0)),
        _moves((_HIGH, 7)),
        _moves((_HIGH, 8)),
        _moves((range(0xA0, 0xC0), 7)),
        _moves((range(0x80, 0xA0), 7)),
        _moves((range(0x90, 0xC0), 8)),
        _moves((range(0x80, 0x90), 8)),
    ),
    final=frozenset(),
    shortest=(
        b'"', b'n"', b'000a"', b'00a"', b'0a"', b'a"', b'f"',
        b'\x80"', b'\x80\x80"', b'\x80\x80\x80"', b'\xa0\x80"', b'\x80\x80"', b'\x90\x80\x80"', b'\x80\x80\x80"',
    ),
)  # fmt: skip
"""The inside of a string, from after its opening quote; in state 0 anything may follow."""

_NONZERO = b"123456789"

INTEGER = Lexeme(
    moves=(
        _moves((b"-", 1), (b"0", 2), (_NONZERO, 3)),
        _moves((b"0", 2), (_NONZERO, 3)),
        {},
        _moves((_DIGITS, 3)),
    ),
    final=frozenset({2, 3}),
    shortest=(b"0", b"0", b"", b""),
)
DIGITS = 3
"""The state of INTEGER in which any digits may follow."""

NUMBER = Lexeme(
    moves=(
        _moves((b"-", 1), (b"0", 2), (_NONZERO, 3)),
        _moves((b"0", 2), (_NONZERO, 3)),
        _moves((b".", 4), (b"eE", 6)),
        _moves((_DIGITS, 3), (b".", 4), (b"eE", 6)),
        _moves((_DIGITS, 5)),
        _moves((_DIGITS, 5), (b"eE", 6)),
        _moves((b"+-", 7), (_DIGITS, 8)),
        _moves((_DIGITS, 8)),
        _moves((_DIGITS, 8)),
    ),
    final=frozenset({2, 3, 5, 8}),
    shortest=(b"0", b"0", b"", b"", b"0", b"", b"0", b"0", b""),
)


def is_free(text: bytes) -> bool:
    """Whether these bytes are whole characters inside a string, none of them escaped: a quick look."""
    if _ASCII.fullmatch(text):
        return True
    if not _NO_ESCAPE.fullmatch(text):
        return False
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True

"""What is said of a document, and whether the document bears it out."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from itertools import accumulate

from pydantic import BaseModel, Field

from m1tools.fulltext import spaced

WORD = re.compile(r"\w+")
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
GAP = re.compile(r"(?<=\d)[\s\u00a0\u202f](?=\d{3}\b)")  # 12 000 is one number.
GROUPED = re.compile(r"(?P<digits>[1-9]\d{0,2}([.,])\d{3}(?:\2\d{3})*)(?P<fraction>(?!\2)[.,]\d+)?")
LEFT_OUT = re.compile(r"\[?(?:\.\.\.|…)\]?")
ENOUGH, ENOUGH_UNSPACED = 8, 4


class Claim(BaseModel):
    """A sentence about a document, and the words of the document it rests on."""

    text: str = Field(min_length=1, max_length=600, description="One sentence.")
    anchor: str = Field(max_length=20, description="Where it stands, such as p12 or s3.2.")
    quote: str = Field(min_length=1, max_length=400, description="A few words of that place, copied exactly.")

    def __str__(self) -> str:
        return f"{self.text} [{self.anchor}]"


@dataclass(frozen=True, slots=True)
class Words:
    """The words of a text alone, without spaces: lines, hyphens, punctuation and markup do not matter. `ends` are where
    words begin or end, so that 12 is not found in 120."""

    letters: str
    ends: frozenset[int]

    @classmethod
    def of(cls, text: str) -> Words:
        """The words of a text."""
        plain = unicodedata.normalize("NFKC", text).casefold().replace("\u00ad", "").replace("_", " ")
        words = WORD.findall(spaced(plain))
        return cls("".join(words), frozenset(accumulate(map(len, words), initial=0)))

    def find(self, part: Words, start: int = 0) -> int:
        """Where another's words stand in these, or -1."""
        at = self.letters.find(part.letters, start)
        while at >= 0 and not {at, at + len(part.letters)} <= self.ends:
            at = self.letters.find(part.letters, at + 1)
        return at


def quoted(quote: str, text: str, after: str = "") -> bool:
    """Whether a quote is of a text. It may leave out words with `...`, and go on into what comes `after`."""
    own, whole = Words.of(text), Words.of(f"{text}\n{after}")
    at = 0
    parts = _parts(quote)
    for number, part in enumerate(parts):
        at = whole.find(part, at)
        if at < 0 or (number == 0 and at >= len(own.letters)):
            return False
        at += len(part.letters)
    return bool(parts)


def short(quote: str, text: str) -> bool:
    """Whether a quote, or a part of it, is so short that finding it says nothing; all of a text is long enough."""
    return Words.of(quote) != Words.of(text) and any(
        len(part.letters) < (ENOUGH if part.letters.isascii() else ENOUGH_UNSPACED) for part in _parts(quote)
    )


def _parts(quote: str) -> list[Words]:
    return [part for piece in LEFT_OUT.split(quote) if (part := Words.of(piece)).letters]


def numbers(text: str) -> set[str]:
    """The numbers of a text, however their digits are grouped: 1,500 is 1500, and 1.5 is neither that nor 15."""
    return {_plain(number) for number in NUMBER.findall(GAP.sub("", unicodedata.normalize("NFKC", text)))}


def _plain(number: str) -> str:
    if found := GROUPED.fullmatch(number):
        number = re.sub(r"\D", "", found["digits"]) + (found["fraction"] or "")
    return number.replace(",", ".")

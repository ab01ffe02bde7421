"""Books and how they are numbered."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Book:
    isbn: str
    title: str
    author: str
    copies: int = 1

    @property
    def key(self) -> str:
        """What books are sorted by: titles without their article."""
        words = self.title.lower().split()
        if len(words) > 1 and words[0] in ("a", "an", "the"):
            words = words[1:]
        return " ".join(words)


def is_isbn13(text: str) -> bool:
    """Whether the check digit of an ISBN-13 is right; hyphens do not matter."""
    digits = text.replace("-", "")
    if len(digits) != 13 or not digits.isdigit():
        return False
    total = sum(int(digit) * (3 if place % 2 else 1) for place, digit in enumerate(digits))
    return total % 10 == 0

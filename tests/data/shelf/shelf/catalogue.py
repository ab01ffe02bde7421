"""Finding books by words."""

import re
from collections.abc import Iterable

from shelf.books import Book

WORD = re.compile(r"\w+")
TITLE_WEIGHT = 3


def words_of(text: str) -> list[str]:
    return [word.lower() for word in WORD.findall(text)]


def score(book: Book, query: str) -> int:
    """0 where a word of the query is in neither title nor author; titles weigh more."""
    title, author = words_of(book.title), words_of(book.author)
    total = 0
    for word in words_of(query):
        found = TITLE_WEIGHT * title.count(word) + author.count(word)
        if not found:
            return 0
        total += found
    return total


def find(books: Iterable[Book], query: str, most: int = 10) -> list[Book]:
    """The best first, equal ones by title."""
    scored = [(score(book, query), book) for book in books]
    hits = [(points, book) for points, book in scored if points > 0]
    hits.sort(key=lambda hit: (-hit[0], hit[1].key))
    return [book for _, book in hits[:most]]

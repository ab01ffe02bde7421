"""Books in a file, one JSON object a line."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from shelf.books import Book


def save(path: Path, books: Iterable[Book]) -> None:
    lines = [json.dumps(asdict(book), ensure_ascii=False) for book in books]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def load(path: Path) -> list[Book]:
    """The books; empty lines are nothing. Raises ValueError with the number of a line that is no book."""
    books = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            books.append(Book(**json.loads(line)))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
    return books

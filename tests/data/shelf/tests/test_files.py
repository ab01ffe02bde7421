import pytest

from shelf.books import Book
from shelf.files import load, save


def test_what_is_saved_is_loaded(tmp_path):
    books = [Book("1", "Gödel", "Ö"), Book("2", "B", "C", 3)]
    save(tmp_path / "books.jsonl", books)
    assert load(tmp_path / "books.jsonl") == books


def test_a_bad_line_is_named(tmp_path):
    path = tmp_path / "books.jsonl"
    path.write_text('{"isbn": "1", "title": "A", "author": "B"}\n\n{"isbn": "2"}\n')
    with pytest.raises(ValueError, match="line 3"):
        load(path)

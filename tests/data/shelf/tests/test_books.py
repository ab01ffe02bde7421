import pytest

from shelf.books import Book, is_isbn13


def test_isbn():
    assert is_isbn13("978-0-306-40615-7")
    assert not is_isbn13("978-0-306-40615-8")
    assert not is_isbn13("978030640615")


@pytest.mark.parametrize(("title", "key"), [("The Hobbit", "hobbit"), ("A", "a"), ("An Answer", "answer"), ("It", "it")])
def test_articles_do_not_count(title, key):
    assert Book("1", title, "x").key == key

from shelf.books import Book
from shelf.catalogue import find, score

BOOKS = [
    Book("1", "The Art of Cooking", "Ada Cook"),
    Book("2", "A Cook's Tour", "Anthony Bourdain"),
    Book("3", "Bread", "Ada Cook"),
    Book("4", "An Apple a Day", "Ada Cook"),
]


def test_titles_weigh_more():
    assert score(BOOKS[1], "COOK") == 3
    assert score(BOOKS[2], "cook") == 1


def test_every_word_must_be_there():
    assert score(BOOKS[2], "ada bread") == 4
    assert score(BOOKS[2], "ada cake") == 0


def test_the_best_first_then_by_title():
    assert [book.isbn for book in find(BOOKS, "cook")] == ["2", "4", "1", "3"]
    assert [book.isbn for book in find(BOOKS, "cook", most=1)] == ["2"]

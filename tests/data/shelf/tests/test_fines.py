from datetime import date

from shelf.fines import fine, shown
from shelf.loans import lend

LOAN = lend("1", "ada", date(2024, 3, 1))


def test_days_of_grace():
    assert fine(LOAN, date(2024, 3, 29)) == 0
    assert fine(LOAN, date(2024, 4, 1)) == 0
    assert fine(LOAN, date(2024, 4, 3)) == 40


def test_there_is_a_limit():
    assert fine(LOAN, date(2025, 4, 1)) == 1000


def test_amounts():
    assert [shown(cents) for cents in (0, 5, 205, 1000)] == ["0.00", "0.05", "2.05", "10.00"]

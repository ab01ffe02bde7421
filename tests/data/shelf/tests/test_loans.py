from datetime import date

import pytest

from shelf.loans import LoanError, lend, renew

TODAY = date(2024, 3, 1)


def test_a_loan_is_due_after_four_weeks_on_an_open_day():
    assert lend("1", "ada", TODAY).due == date(2024, 3, 29)
    assert lend("1", "ada", date(2024, 3, 3)).due == date(2024, 4, 1)


def test_the_day_it_is_due_is_not_late():
    loan = lend("1", "ada", TODAY)
    assert not loan.is_overdue(loan.due)
    assert loan.is_overdue(date(2024, 3, 30))


def test_renewed_twice_and_no_more():
    loan = lend("1", "ada", TODAY)
    loan = renew(renew(loan, TODAY), TODAY)
    assert (loan.due, loan.renewals) == (date(2024, 5, 24), 2)
    with pytest.raises(LoanError, match="too often"):
        renew(loan, TODAY)


def test_overdue_loans_are_not_renewed():
    with pytest.raises(LoanError, match="overdue"):
        renew(lend("1", "ada", TODAY), date(2024, 6, 1))

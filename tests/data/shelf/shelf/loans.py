"""Loans: when books are due, and how often they can be renewed."""

from dataclasses import dataclass, replace
from datetime import date, timedelta

from shelf.days import next_open

LOAN_DAYS = 28
MOST_RENEWALS = 2


class LoanError(Exception):
    """A loan that cannot be made or renewed."""


@dataclass(frozen=True)
class Loan:
    isbn: str
    reader: str
    taken: date
    due: date
    renewals: int = 0

    def is_overdue(self, today: date) -> bool:
        return today > self.due


def lend(isbn: str, reader: str, today: date) -> Loan:
    """A new loan, due on an open day."""
    return Loan(isbn, reader, today, next_open(today + timedelta(days=LOAN_DAYS)))


def renew(loan: Loan, today: date) -> Loan:
    """The loan, due later. Raises LoanError where it is overdue or was renewed too often."""
    if loan.is_overdue(today):
        raise LoanError("the loan is overdue")
    if loan.renewals >= MOST_RENEWALS:
        raise LoanError("the loan was renewed too often")
    due = next_open(loan.due + timedelta(days=LOAN_DAYS))
    return replace(loan, due=due, renewals=loan.renewals + 1)

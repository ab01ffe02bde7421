"""What an overdue book costs, in cents."""

from datetime import date

from shelf.days import open_days_between
from shelf.loans import Loan

A_DAY = 20
MOST = 1000
GRACE = 2


def fine(loan: Loan, today: date) -> int:
    """For each open day after the days of grace, up to a limit."""
    late = open_days_between(loan.due, today) - GRACE
    if late <= 0:
        return 0
    return min(late * A_DAY, MOST)


def shown(cents: int) -> str:
    """An amount as people write it, such as 2.05."""
    return f"{cents // 100}.{cents % 100:02d}"

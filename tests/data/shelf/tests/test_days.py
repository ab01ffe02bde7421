from datetime import date

import pytest

from shelf.days import is_open, next_open, open_days_between, parse_day


@pytest.mark.parametrize("text", ["2024-03-05", " 2024-03-05 ", "05.03.2024", "5.3.2024"])
def test_both_ways_to_write_a_day(text):
    assert parse_day(text) == date(2024, 3, 5)


def test_sundays_are_closed():
    assert is_open(date(2024, 3, 2))
    assert not is_open(date(2024, 3, 3))
    assert next_open(date(2024, 3, 3)) == date(2024, 3, 4)
    assert next_open(date(2024, 3, 4)) == date(2024, 3, 4)


def test_open_days_leave_sundays_out():
    assert open_days_between(date(2024, 3, 1), date(2024, 3, 1)) == 0
    assert open_days_between(date(2024, 3, 1), date(2024, 3, 4)) == 2

"""Days as the library counts them."""

from datetime import date, timedelta


def parse_day(text: str) -> date:
    """A day as YYYY-MM-DD or DD.MM.YYYY."""
    if "." in text:
        day, month, year = text.split(".")
        return date(int(year), int(month), int(day))
    return date.fromisoformat(text.strip())


def is_open(day: date) -> bool:
    """The library is closed on Sundays."""
    return day.weekday() != 6


def next_open(day: date) -> date:
    """The day itself if it is open, else the first one after it."""
    while not is_open(day):
        day += timedelta(days=1)
    return day


def open_days_between(start: date, end: date) -> int:
    """How many open days lie after `start`, up to and with `end`."""
    days = (end - start).days
    return sum(is_open(start + timedelta(days=number)) for number in range(1, days + 1))

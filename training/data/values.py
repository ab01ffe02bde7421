"""Argument values: what the user writes, and what the call must hold."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from training.data.words import Words

MONTHS = "January February March April May June July August September October November December".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()


@dataclass(frozen=True, slots=True)
class Value:
    """`said` is how it stands in the question, `argument` what belongs in the call."""

    said: str
    argument: Any


def same(text: str) -> Value:
    return Value(text, text)


def integer(rng: random.Random, low: int = 0, high: int = 9999) -> Value:
    digits = rng.choice((1, 1, 2, 2, 3, 4))
    number = min(max(rng.randrange(10 ** (digits - 1) if digits > 1 else 0, 10**digits), low), high)
    return Value(str(number), number)


def decimal(rng: random.Random) -> Value:
    number = round(rng.uniform(0, 10 ** rng.choice((1, 2, 3))), rng.choice((1, 2)))
    return Value(repr(number), number)


def date(rng: random.Random) -> Value:
    year, month, day = rng.randint(1990, 2040), rng.randint(1, 12), rng.randint(1, 28)
    style = rng.random()
    if style < 0.5:
        return same(f"{year}-{month:02d}-{day:02d}")
    if style < 0.7:
        return same(f"{MONTHS[month - 1]} {day}")
    return same(
        rng.choice((rng.choice(DAYS), "tomorrow", "today", f"next {rng.choice(DAYS)}", f"{day}/{month}/{year}"))
    )


def clock(rng: random.Random) -> Value:
    if rng.random() < 0.7:
        return same(f"{rng.randint(0, 23):02d}:{rng.choice((0, 5, 10, 15, 20, 30, 45, rng.randint(0, 59))):02d}")
    return same(f"{rng.randint(1, 12)} {rng.choice(('am', 'pm'))}")


def code(rng: random.Random) -> Value:
    letters = "".join(rng.choice("ABCDEFGHJKLMNPRSTUVWXYZ") for _ in range(rng.randint(1, 3)))
    number = "".join(rng.choice("0123456789") for _ in range(rng.randint(2, 5)))
    return same(rng.choice((f"{letters}-{number}", f"{letters}{number}", f"#{number}", f"{letters.lower()}_{number}")))


def email(rng: random.Random, words: Words) -> Value:
    name = words.first_name().lower()
    return same(
        f"{name}{rng.choice(('', '.' + words.last_name().lower()))}@{words.any_word()}.{rng.choice(('com', 'org', 'net', 'io'))}"
    )


def file_name(rng: random.Random, words: Words) -> Value:
    ending = rng.choice("txt pdf csv json md png py docx".split())
    folder = rng.choice(("", "", words.noun() + "/", "/" + words.noun() + "/"))
    return same(f"{folder}{words.noun()}{rng.choice(('', '_' + words.any_word()))}.{ending}")


def person(rng: random.Random, words: Words) -> Value:
    return same(words.first_name() if rng.random() < 0.6 else f"{words.first_name()} {words.last_name()}")


def city(rng: random.Random, words: Words) -> Value:
    name = words.city()
    return same(f"{rng.choice(('New', 'San', 'Port', 'North'))} {name}" if rng.random() < 0.1 else name)


def phrase(rng: random.Random, words: Words) -> Value:
    count = rng.choice((1, 1, 2, 2, 3, 4))
    text = " ".join(words.any_word() for _ in range(count - 1)) + " " * (count > 1) + words.noun()
    return same(text.capitalize() if rng.random() < 0.2 else text)


def listing(rng: random.Random, words: Words) -> Value:
    items = [words.any_word() for _ in range(rng.randint(2, 3))]
    return Value(", ".join(items[:-1]) + " and " + items[-1], items)


TEXT_KINDS: dict[str, Callable[[random.Random, Words], Value]] = {
    "phrase": phrase,
    "person": person,
    "city": city,
    "email": email,
    "file": file_name,
    "date": lambda rng, _: date(rng),
    "clock": lambda rng, _: clock(rng),
    "code": lambda rng, _: code(rng),
}

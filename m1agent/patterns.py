"""Regular expressions of schemas that others wrote, matched in bounded time.

Rust's engine is linear in the text and refuses patterns that grow too large; it comes with pydantic. What it does not
know, look-around and back-references, goes to `regex`, which can be stopped.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable
from typing import TypeAlias

from pydantic_core import SchemaError as UnreadablePattern
from pydantic_core import SchemaValidator, core_schema

SECONDS = 0.2
MOST_REPEATS = 10_000
COUNTS = re.compile(r"\{(\d{0,9}),?(\d{0,9})\}")

Search: TypeAlias = Callable[[str, float], bool]


class TooSlow(Exception):
    """A pattern took too long over a text."""


class BadPattern(ValueError):
    """No regular expression, or one that is too large."""


def matches(pattern: str, text: str, seconds: float = SECONDS) -> bool:
    """Whether `pattern` is found anywhere in `text`, as JSON Schema has it.

    Raises:
        BadPattern: it is no regular expression.
        TooSlow: it is one that takes longer than `seconds`.
    """
    return compiled(pattern)(text, seconds)


@functools.lru_cache(1024)
def compiled(pattern: str) -> Search:
    """A pattern ready to be searched for. Raises BadPattern."""
    try:
        rust = SchemaValidator(core_schema.str_schema(pattern=pattern, regex_engine="rust-regex", strict=True))
    except UnreadablePattern as error:
        if "size limit" in str(error):
            raise BadPattern("it is too large") from None
        return _compiled_elsewhere(pattern)
    return lambda text, _: rust.isinstance_python(text)


def _compiled_elsewhere(pattern: str) -> Search:
    import regex

    counts = [int(count) for found in COUNTS.findall(pattern) for count in found if count]
    if math.prod(max(1, count) for count in counts) > MOST_REPEATS:
        raise BadPattern("it is too large")
    try:
        made = regex.compile(pattern)
    except (regex.error, RecursionError, OverflowError) as error:
        raise BadPattern(str(error)) from None

    def search(text: str, seconds: float) -> bool:
        try:
            return made.search(text, timeout=seconds) is not None
        except TimeoutError:
            raise TooSlow(pattern) from None

    return search

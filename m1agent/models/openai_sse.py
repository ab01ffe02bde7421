"""Server-sent events as servers really send them, whatever the bytes were split into."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, cast

LINE_END = re.compile(rb"\r\n|\n|\r")
DONE = "[DONE]"
LARGEST = 1 << 26
FIELDS = ("data", "error")  # llama.cpp has written errors into a field of their own.


class TooLarge(Exception):
    """One event is larger than `LARGEST` bytes."""


class EventDecoder:
    """Bytes of a stream in, payloads out. Comments (keep-alives) and fields that carry nothing are passed over.

    Raises TooLarge.
    """

    def __init__(self) -> None:
        self._rest = bytearray()
        self._data: list[str] = []
        self._size = 0

    def feed(self, data: bytes) -> Iterator[str]:
        """The payloads that these bytes complete; an event's `data` lines are joined by line breaks."""
        self._rest += data
        if len(self._rest) + self._size > LARGEST:
            raise TooLarge
        if b"\n" not in data and b"\r" not in data and not self._rest.endswith(b"\r"):
            return
        start = 0
        for end in LINE_END.finditer(self._rest):
            if end.end() == len(self._rest) and end[0] == b"\r":
                break  # The other half of this line end may still be to come.
            yield from self._line(self._rest[start : end.start()])
            start = end.end()
        del self._rest[:start]

    def finish(self) -> Iterator[str]:
        """What the stream ended in: a last event needs no blank line."""
        yield from self._line(bytes(self._rest).removesuffix(b"\r"))
        self._rest.clear()
        yield from self._line(b"")

    def _line(self, raw: bytes | bytearray) -> Iterator[str]:
        if not raw:
            if self._data:
                yield "\n".join(self._data)
            self._data, self._size = [], 0
            return
        line = raw.decode("utf-8", "replace").removeprefix("\ufeff")
        name, colon, value = line.partition(":")
        if line.startswith("{"):  # No event at all, but what an event would hold.
            name, value = "data", line
        elif not colon or name not in FIELDS:
            return
        self._data.append(value.removeprefix(" "))
        self._size += len(raw)


def objects(payload: str) -> list[dict[str, Any]] | None:
    """The JSON objects of a payload, None for the end mark. Some servers leave out the blank line between events, so
    that each line of a payload is one.

    Raises ValueError where it is no JSON.
    """
    if payload.strip() == DONE:
        return None
    try:
        values = [json.loads(payload)]
    except ValueError:
        lines = [line for line in payload.split("\n") if line.strip()]
        if len(lines) < 2:
            raise
        values = [json.loads(line) for line in lines if line.strip() != DONE]
    return [cast("dict[str, Any]", value) for value in values if isinstance(value, dict)]

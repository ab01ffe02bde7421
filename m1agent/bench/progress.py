"""How far a benchmark is: one line that changes on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TextIO

SECONDS = 10.0


class Progress:
    """Told of each item that ends; writes to stderr, since stdout is for results."""

    def __init__(self, total: int, ended: int = 0, out: TextIO | None = None) -> None:
        self._out = out or sys.stderr
        self._total = total
        self._ended = ended
        self._right = 0
        self._new = 0
        self._started = self._told = time.monotonic()
        self._live = self._out.isatty()

    def add(self, *, right: bool) -> None:
        """One more item ended."""
        self._ended += 1
        self._new += 1
        self._right += right
        now = time.monotonic()
        if not self._live and now - self._told < SECONDS and self._ended < self._total:
            return
        self._told = now
        rest = (now - self._started) / self._new * (self._total - self._ended)
        line = f"{self._ended}/{self._total}, {self._right} of {self._new} right, about {rest:.0f} s to go"
        print(f"\r{line}\033[K" if self._live else line, end="" if self._live else "\n", file=self._out, flush=True)

    def end(self) -> None:
        """Leave the line as it stands."""
        if self._live and self._new:
            print(file=self._out)

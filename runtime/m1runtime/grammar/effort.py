"""How much work a schema may cause before the rest of it is left to validation."""

from __future__ import annotations

import time
from collections.abc import Callable


class Effort:
    """CPU seconds of this thread, so that a busy machine weakens no schema; any other clock will do."""

    __slots__ = ("_clock", "_until")

    def __init__(self, seconds: float, clock: Callable[[], float] = time.thread_time) -> None:
        self._clock = clock
        self._until = clock() + seconds

    @property
    def over(self) -> bool:
        """Nothing is left of it."""
        return self._clock() >= self._until


UNLIMITED = Effort(float("inf"), lambda: 0.0)

"""What a run has used, held against its limits."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import Literal

from m1agent.limits import Limits
from m1agent.messages import Usage
from m1agent.models.base import Settings
from m1agent.repeats import Repeats
from m1agent.result import CallRecord


@dataclass(slots=True)
class Meter:
    """Counts of a run: replies, calls run, tokens."""

    limits: Limits
    usage: Usage = field(default_factory=Usage)
    steps: int = 0
    calls: int = 0

    def charge(self, usage: Usage) -> None:
        """Count tokens."""
        self.usage += usage

    @property
    def calls_left(self) -> int | None:
        """Calls that may still run, or None for any number."""
        return None if self.limits.tool_calls is None else max(0, self.limits.tool_calls - self.calls)

    @property
    def reached(self) -> Literal["steps", "tokens"] | None:
        """The limit that ends the run before another reply."""
        limits = self.limits
        if limits.steps is not None and self.steps >= limits.steps:
            return "steps"
        read = limits.input_tokens is not None and self._read >= limits.input_tokens
        return "tokens" if read or self._tokens_left == 0 else None

    def settings(self, given: Settings) -> Settings:
        """How the next reply is sampled, so that it stays within the limits."""
        bounds = (given.max_tokens, self.limits.reply_tokens, self._tokens_left)
        known = [bound for bound in bounds if bound is not None]
        if self.limits.thinking is not None:
            left = max(0, self.limits.thinking - self.usage.thinking_tokens)
            given = replace(given, thinking=left if given.thinking is None else min(left, given.thinking))
        return replace(given, max_tokens=max(1, min(known))) if known else given

    @property
    def left(self) -> Limits | None:
        """What is left of the limits on tokens; None where one is used up."""
        limits, read, written = self.limits, self._read, self.usage.output_tokens
        bounds = {
            "tokens": (limits.tokens, read + written),
            "input_tokens": (limits.input_tokens, read),
            "output_tokens": (limits.output_tokens, written),
        }
        left = {name: bound - used for name, (bound, used) in bounds.items() if bound is not None}
        return Limits(steps=None, **left) if all(count > 0 for count in left.values()) else None

    @property
    def _read(self) -> int:
        return self.usage.input_tokens - self.usage.reused_tokens

    @property
    def _tokens_left(self) -> int | None:
        limits, written = self.limits, self.usage.output_tokens
        left = [] if limits.tokens is None else [limits.tokens - self._read - written]
        left += [] if limits.output_tokens is None else [limits.output_tokens - written]
        return max(0, min(left)) if left else None


@dataclass(slots=True)
class Progress:
    """What counts for all of a run, whichever agents take part in it."""

    limits: Limits
    meter: Meter = field(init=False)
    repeats: Repeats = field(default_factory=Repeats)
    records: list[CallRecord] = field(default_factory=list[CallRecord])
    started: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        self.meter = Meter(self.limits)

    @property
    def seconds(self) -> float:
        """Wall time so far."""
        return time.perf_counter() - self.started

    @property
    def seconds_left(self) -> float:
        """Wall time that is left; infinite without a limit."""
        return float("inf") if self.limits.seconds is None else self.limits.seconds - self.seconds

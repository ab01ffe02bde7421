"""How the next token is chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from m1runtime.errors import SamplingError


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Sampling of one generation; the defaults are those MiniMax recommends for M1 (temperature 1.0, top_p 0.95).

    max_new_tokens: tokens generated at most, the end token included. temperature: 0 is greedy. top_k, min_p: 0 is off.
    repetition_penalty: 1 is off;
    it applies to every token of the session. stop: strings that end the text and are not part of it; they cut no
    call of `Grammar.tool_calls`. seed: makes a
    generation reproducible. drafts: likely tokens go through the model together, which changes the number of forward
    passes and not the reply; None: where there is a grammar. logprobs: tells how likely each token was, and so
    many of the likeliest ones beside it (20 at most); None: does not.
    Raises SamplingError naming the field and the remedy.
    """

    max_new_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 0.95
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    drafts: bool | None = None
    logprobs: int | None = None

    def __post_init__(self) -> None:
        rules = (
            ("max_new_tokens", _whole(self.max_new_tokens, 1), "use an integer of at least 1"),
            ("temperature", _within(self.temperature, 0, 1e6), "use 0 for greedy, or a positive number such as 1.0"),
            ("top_p", _within(self.top_p, 0, 1) and self.top_p > 0, "use a number above 0 and at most 1; 1 is off"),
            ("top_k", _whole(self.top_k, 0), "use an integer of at least 0; 0 is off"),
            ("min_p", _within(self.min_p, 0, 1), "use a number from 0 to 1; 0 is off"),
            ("repetition_penalty", _within(self.repetition_penalty, 1e-3, 1e3), "use a positive number; 1 is off"),
            ("seed", self.seed is None or _whole(self.seed, 0, 2**63), "use a non-negative 64-bit integer, or None"),
            ("drafts", self.drafts in (True, False, None), "use True, False, or None: where there is a grammar"),
            ("logprobs", self.logprobs is None or _whole(self.logprobs, 0, 21), "use an integer from 0 to 20, or None"),
        )
        for name, fine, remedy in rules:
            if not fine:
                raise SamplingError(f"{name}={getattr(self, name)!r}: {remedy}")
        object.__setattr__(self, "stop", _stops(self.stop))


def _whole(value: object, low: int, below: int = 2**63) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value < below


def _within(value: object, low: float, high: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def _stops(stop: object) -> tuple[str, ...]:
    given = [stop] if isinstance(stop, str) else stop
    strings = cast("Sequence[object]", given) if isinstance(given, tuple | list) else [None]
    if not all(isinstance(s, str) and s for s in strings):
        raise SamplingError(f"stop={stop!r}: use a tuple of non-empty strings")
    return tuple(str(s) for s in strings)

"""What is measured of each framework, the same for all. It imports nothing of theirs, nor of ours.

A framework is run with its fake model, which marks when it is asked and when it has answered. A step is from one
question to the next: the framework, one tool, and the fake model. `outside` leaves the fake model out, because some
record a copy of all they are asked. `processor` is the time on the processor, which other programs disturb less.
"""

from __future__ import annotations

import asyncio
import gc
import json
import statistics
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

LENGTHS = {1: 40, 50: 5, 400: 3}
WARM_UP = 20
CALLS, NAP, PARALLEL_RUNS = 20, 0.010, 15


@dataclass
class Marks:
    """When the fake model was asked, and when it had answered, in seconds of `time.perf_counter`."""

    asked: list[float] = field(default_factory=list)
    answered: list[float] = field(default_factory=list)
    used: list[float] = field(default_factory=list)

    def ask(self) -> None:
        self.asked.append(time.perf_counter())
        self.used.append(time.process_time())

    def answer(self) -> None:
        self.answered.append(time.perf_counter())

    def steps(self) -> list[float]:
        """Seconds of each step, the fake model included."""
        return [after - before for before, after in zip(self.asked, self.asked[1:], strict=False)]

    def outside(self) -> list[float]:
        """Seconds of each step without the fake model."""
        return [after - before for before, after in zip(self.answered, self.asked[1:], strict=False)]

    def processor(self) -> float:
        """Mean seconds of all the process's threads on the processor, a step."""
        return (self.used[-1] - self.used[0]) / (len(self.used) - 1)


Run = Callable[[list[list[tuple[str, dict[str, Any]]]]], Coroutine[Any, Any, Marks]]


def measure(run: Run, kinds: Sequence[str] = ("async", "sync"), parallel: str = "nap") -> dict[str, Any]:
    """All figures of a framework, in milliseconds.

    `run` makes an agent with the tools `add_async`, `add_sync` (of `a` and `b`) and `nap`, lets its model make the
    given calls, one list for each reply, and then answer.
    """
    figures: dict[str, Any] = {}
    for kind in kinds:
        figures[kind] = _of_kind(run, f"add_{kind}")
    figures["parallel"] = _parallel(run, parallel)
    return figures


def _of_kind(run: Run, tool: str) -> dict[str, Any]:
    _go(run, [[(tool, {"a": n, "b": 2})] for n in range(WARM_UP)])
    figures: dict[str, Any] = {}
    for length, repeats in LENGTHS.items():
        script = [[(tool, {"a": n, "b": 2})] for n in range(length)]
        marks = [_go(run, script) for _ in range(repeats)]
        figures[str(length)] = {
            "step": _ms([spent for one in marks for spent in one.steps()]),
            "outside": _ms([spent for one in marks for spent in one.outside()]),
            "processor": _ms([one.processor() for one in marks]),
        }
        if length == max(LENGTHS):
            figures["first 50"] = _ms([spent for one in marks for spent in one.steps()[:50]])
            figures["last 50"] = _ms([spent for one in marks for spent in one.steps()[-50:]])
            figures["first 50 outside"] = _ms([spent for one in marks for spent in one.outside()[:50]])
            figures["last 50 outside"] = _ms([spent for one in marks for spent in one.outside()[-50:]])
    return figures


def _parallel(run: Run, tool: str) -> dict[str, float]:
    script = [[(tool, {"n": n}) for n in range(CALLS)]]
    marks = [_go(run, script) for _ in range(PARALLEL_RUNS)][3:]
    return {"step": _ms([one.steps()[0] for one in marks]), "outside": _ms([one.outside()[0] for one in marks])}


def _go(run: Run, script: list[list[tuple[str, dict[str, Any]]]]) -> Marks:
    gc.collect()
    marks = asyncio.run(run(script))
    assert len(marks.asked) == len(marks.answered) == len(script) + 1, "the framework did not run the whole script"
    return marks


def _ms(values: Sequence[float]) -> float:
    return round(1000 * statistics.median(values), 3)


def report(figures: dict[str, Any]) -> None:
    """Print what `benchmarks.loop_overhead` reads."""
    print(json.dumps(figures))

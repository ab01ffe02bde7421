"""What is measured of each grammar engine, the same for all, and the two engines that live in the peers' environment.

Run by `benchmarks/grammar.py` with a file of the vocabulary and the cases; prints the figures as JSON. It imports
nothing of ours. A *case* is a schema and its valid calls as token ids. Times are CPU microseconds: of the process for
compiling, which may use threads, and of the thread for masks, less the median of what reading that clock takes
(a system call of 0.6 µs, longer than the masks it is to measure). Python's garbage collector rests meanwhile.

*Cold* is the first replay of a call, once. *Warm* is the least of the WARM replays after it, step by step: on a machine
that does other work, one step in a hundred is interrupted, whatever it does.

*In an engine's order*, with a vocabulary of its own so that all is cold again: a token is taken and what the grammar
forces after it, which the next pass waits for; then the mask is asked for. Before that comes what the engine does while
a pass runs on an accelerator, on the engines that have such a thing; its time is the row "while a pass runs".
"""

from __future__ import annotations

import gc
import json
import statistics
import sys
import time
from collections.abc import Callable
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

WARM = 5
QUANTILES = (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))
Case = dict[str, Any]


class Side(Protocol):
    """An engine: `compile` makes the grammar of a schema, `start` the state of one generation."""

    package: str

    def compile(self, schema: Any) -> Any: ...
    def start(self, grammar: Any) -> Any: ...
    def mask(self, state: Any) -> None: ...
    def advance(self, state: Any, token: int) -> bool: ...


class EngineSide(Side, Protocol):
    """An engine with what it does between two passes: `forced` takes the tokens that can only follow and returns them;
    `ahead` prepares what comes after the next token.
    """

    def forced(self, state: Any) -> list[int]: ...
    def ahead(self, state: Any) -> None: ...


def measure(side: Side, cases: list[Case], seconds: float) -> dict[str, Any]:
    """All figures of an engine; schemas that are not reached within `seconds` of CPU are left out and counted."""
    compiles: list[float] = []
    refused, unreached, failed = 0, 0, 0
    steps: dict[str, list[tuple[float, float]]] = {"cold": [], "warm": []}
    clock = reading()
    began = time.process_time()
    for case in cases:
        if time.process_time() - began > seconds:
            unreached += 1
            continue
        begun = time.process_time()
        try:
            grammar = side.compile(case["schema"])
            side.mask(side.start(grammar))
        except Exception as error:
            print(f"{side.package} refuses a schema: {str(error)[:100]}", file=sys.stderr)
            refused += 1
            continue
        compiles.append(1e6 * (time.process_time() - begun))
        gc.disable()
        for call in case["calls"]:
            failed += not _replay(side, grammar, call, steps["cold"])
        for call in case["calls"]:
            steps["warm"] += _least(side, grammar, call)
        gc.enable()
    figures: dict[str, Any] = {"version": metadata.version(side.package), "compiled": len(compiles)}
    figures |= {"refused": refused, "not reached": unreached, "valid calls refused": failed}
    figures["clock µs, taken off"] = round(clock, 2)
    figures["compile to first mask µs"] = quantiles(compiles)
    for kind, spent in steps.items():
        figures[f"mask µs, {kind}"] = quantiles([mask - clock for mask, _ in spent])
        figures[f"advance µs, {kind}"] = quantiles([advance - clock for _, advance in spent])
        figures[f"mask and advance µs, {kind}"] = quantiles([sum(both) - 2 * clock for both in spent])
    return figures


def in_order(side: EngineSide, cases: list[Case], spelling: list[bytes], seconds: float) -> dict[str, Any]:
    """Figures of a side that has seen none of the cases, asked in an engine's order. `spelling`: bytes of tokens."""
    clock, began = reading(), time.process_time()
    spent: dict[str, list[float]] = {"take a token and its run": [], "mask": [], "while a pass runs": []}
    taken = forced = 0
    for case in cases:
        if time.process_time() - began > seconds:
            break
        grammar = side.compile(case["schema"])
        gc.disable()
        for call in case["calls"]:
            runs = _pass_by_pass(side, grammar, call, spelling, list(spent.values()))
            taken, forced = taken + len(runs), forced + sum(runs)
        gc.enable()
    figures: dict[str, Any] = {"in an engine's order: passes": taken, "in an engine's order: forced tokens": forced}
    for name, values in spent.items():
        figures[f"{name} µs, cold, in an engine's order"] = quantiles([value - clock for value in values])
    return figures


def _pass_by_pass(
    side: EngineSide, grammar: Any, call: list[int], spelling: list[bytes], spent: list[list[float]]
) -> list[int]:
    """Adds the microseconds of each pass of a call to the three lists; the lengths of the forced runs."""
    state, at, runs = side.start(grammar), 0, list[int]()
    side.mask(state)
    while at < len(call):
        marks = [time.thread_time_ns()]
        side.ahead(state)
        marks.append(time.thread_time_ns())
        accepted = side.advance(state, call[at])
        run = side.forced(state)
        marks.append(time.thread_time_ns())
        side.mask(state)
        marks.append(time.thread_time_ns())
        ahead, took, mask = (1e-3 * (after - before) for before, after in pairwise(marks))
        for values, value in zip(spent, (took, mask, ahead), strict=True):
            values.append(value)
        runs.append(len(run))
        rest = call[at + 1 :]
        if not accepted or not _agree(b"".join(spelling[i] for i in run), b"".join(spelling[i] for i in rest)):
            raise ValueError(f"{side.package} takes another way than {call} after {at} tokens: {run}")
        if run[: len(rest)] != rest[: len(run)]:
            break  # The end is spelled otherwise where more than the call follows.
        at += 1 + len(run)
    return runs


def _agree(one: bytes, other: bytes) -> bool:
    return one.startswith(other) or other.startswith(one)


def reading() -> float:
    """CPU microseconds between two readings of the clock with nothing between them."""
    spent: list[int] = []
    for _ in range(10_001):
        began = time.thread_time_ns()
        spent.append(time.thread_time_ns() - began)
    return statistics.median(spent) / 1e3


def _replay(side: Side, grammar: Any, call: list[int], spent: list[tuple[float, float]]) -> bool:
    state = side.start(grammar)
    for token in call:
        began = time.thread_time_ns()
        side.mask(state)
        middle = time.thread_time_ns()
        try:
            accepted = side.advance(state, token)
        except Exception:
            return False
        spent.append(((middle - began) / 1e3, (time.thread_time_ns() - middle) / 1e3))
        if not accepted:
            return False
    return True


def _least(side: Side, grammar: Any, call: list[int]) -> list[tuple[float, float]]:
    """The least that each step of WARM replays took."""
    replays: list[list[tuple[float, float]]] = [[] for _ in range(WARM)]
    for spent in replays:
        _replay(side, grammar, call, spent)
    return [(min(mask for mask, _ in step), min(taken for _, taken in step)) for step in zip(*replays, strict=True)]


def quantiles(values: list[float]) -> dict[str, float]:
    """p50, p90, p99 and the largest."""
    if not values:
        return {}
    ranked = sorted(values)
    found = {name: ranked[min(int(share * len(ranked)), len(ranked) - 1)] for name, share in QUANTILES}
    return {name: round(max(0.0, value), 2) for name, value in (found | {"max": ranked[-1]}).items()}


class OutlinesCore:
    """A regular expression of the schema, indexed over the vocabulary, as its README does it."""

    package = "outlines_core"

    def __init__(self, token_bytes: list[bytes], special: set[int], eos: int) -> None:
        from outlines_core import Guide, Index, Vocabulary
        from outlines_core.json_schema import build_regex_from_schema

        self._guide, self._index, self._regex = Guide, Index, build_regex_from_schema
        ids: dict[bytes, list[int]] = {}
        for i, raw in enumerate(token_bytes):
            if raw and i not in special:
                ids.setdefault(raw, []).append(i)
        self._vocabulary = Vocabulary(eos, ids)
        self._words = (len(token_bytes) + 31) // 32
        self._mask = bytearray(4 * self._words)

    def compile(self, schema: Any) -> Any:
        return self._index(self._regex(json.dumps(schema)), self._vocabulary)

    def start(self, grammar: Any) -> Any:
        return self._guide(grammar)

    def mask(self, state: Any) -> None:
        import ctypes

        address = ctypes.addressof(ctypes.c_char.from_buffer(self._mask))
        state.write_mask_into(address, self._words, 4)

    def advance(self, state: Any, token: int) -> bool:
        state.advance(token, return_tokens=False)
        return True


class FormatEnforcer:
    """lm-format-enforcer's token enforcer over a character parser, as its own integrations use it."""

    package = "lm-format-enforcer"

    def __init__(self, token_bytes: list[bytes], special: set[int], eos: int) -> None:
        import lmformatenforcer as enforcer

        def decode(ids: list[int]) -> str:
            return b"".join(token_bytes[i] for i in ids).decode("utf-8", "replace")

        regular = [(i, decode([i]), raw.startswith(b" ")) for i, raw in enumerate(token_bytes) if i not in special]
        known = [token for token in regular if token[1] and "\ufffd" not in token[1]]
        kind = enforcer.tokenenforcer.TokenEnforcerTokenizerData
        self._data = kind(known, decode, eos, False, len(token_bytes))
        self._enforcer = enforcer

    def compile(self, schema: Any) -> Any:
        return schema

    def start(self, grammar: Any) -> Any:
        parser = self._enforcer.JsonSchemaParser(grammar)
        return self._enforcer.TokenEnforcer(self._data, parser), list[int]()

    def mask(self, state: Any) -> None:
        enforcer, written = state
        self._allowed = enforcer.get_allowed_tokens(written)

    def advance(self, state: Any, token: int) -> bool:
        state[1].append(token)
        return self._allowed.is_token_allowed(token)


SIDES: dict[str, Callable[[list[bytes], set[int], int], Side]] = {
    "outlines-core": OutlinesCore,
    "lm-format-enforcer": FormatEnforcer,
}


def main() -> None:
    """`python -m benchmarks.peers.grammars SIDE FILE SECONDS`."""
    given = json.loads(Path(sys.argv[2]).read_text())
    token_bytes = [bytes.fromhex(token) for token in given["tokens"]]
    side = SIDES[sys.argv[1]](token_bytes, set(given["special"]), given["eos"])
    print(json.dumps(measure(side, given["cases"], float(sys.argv[3]))))


if __name__ == "__main__":
    main()

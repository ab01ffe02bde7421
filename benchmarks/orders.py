"""Calls whose arguments come in any order: `python -m benchmarks.orders [--schemas FILE]`, ours beside xgrammar.

Each line of the file holds a `schema` (an object of `name` and `arguments`, or an `anyOf` of such) and `tests`, calls
with `data` and `valid`. A call is accepted when every token and the end are. Every valid call is also written with the
keys of its arguments shuffled, at all depths, and with a key twice: for each object in the arguments its first key
again at the end, spelled as before and spelled with an escape. The wrapper keeps its order. Times are CPU milliseconds
of one thread, for a compilation from nothing to the first mask, and microseconds for a mask and an accepted token.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from tqdm import tqdm

import m1runtime
from benchmarks import report
from m1runtime import Grammar
from m1runtime.errors import SchemaError
from m1runtime.grammar import ToolGrammar
from m1runtime.tokenizer import Tokenizer

SAMPLE = Path(__file__).parent.parent / "tests" / "data" / "bfcl-sample.jsonl"
BUDGET = 4096
Order: TypeAlias = Literal["schema", "any"]
Reader = Callable[[str], bool]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.orders", description=__doc__)
    parser.add_argument("--schemas", type=Path, default=SAMPLE)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = Tokenizer.from_file(Path(m1runtime.__file__).parent / "nano")
    cases = [json.loads(line) for line in options.schemas.read_text().splitlines()]
    figures: dict[str, Any] = {"schemas": options.schemas.name, "vocabulary": tokenizer.vocab_size}
    for order in ("schema", "any"):
        for name, side in (("m1runtime", Ours(tokenizer, order)), ("xgrammar", Peer(tokenizer, order))):
            figures[f"{name}, {order}"] = measured(side, cases, random.Random(options.seed), f"{name}, {order}")
    report.save("orders", figures)


class Ours:
    """The calls of one reply, budget check included."""

    def __init__(self, tokenizer: Tokenizer, order: Order) -> None:
        self.tokenizer, self.order = tokenizer, order
        self.in_order = 0
        self.spent: list[float] = []

    def compile(self, schema: Any) -> Reader:
        tools = [_tool(one) for one in schema.get("anyOf", [schema])]
        grammar = Grammar.tool_calls(tools, mode="required", trigger="", end="", skip=("", ""), order=self.order)
        grammar.start(self.tokenizer, max_new_tokens=BUDGET).mask()
        self.in_order += any(one.in_order for one in grammar.reports)
        return lambda text: self._reads(grammar, f"\n{text}\n")

    def _reads(self, grammar: Grammar, text: str) -> bool:
        constraint = grammar.start(self.tokenizer, max_new_tokens=BUDGET)
        tokens = [*self.tokenizer.encode(text, special=False), min(self.tokenizer.eos_ids)]
        for i, token in enumerate(tokens):
            began = time.thread_time()
            constraint.mask()
            accepted = constraint.try_accept(token, BUDGET - 1 - i)
            self.spent.append(1e6 * (time.thread_time() - began))
            if not accepted:
                return False
        return True


class Peer:
    """xgrammar's matcher over the same vocabulary."""

    def __init__(self, tokenizer: Tokenizer, order: Order) -> None:
        import xgrammar

        self.xgrammar, self.tokenizer, self.order = xgrammar, tokenizer, order
        info = xgrammar.TokenizerInfo(tokenizer.token_bytes, stop_token_ids=sorted(tokenizer.eos_ids))
        self.compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)
        self.bitmask = xgrammar.allocate_token_bitmask(1, tokenizer.vocab_size)
        self.in_order = 0
        self.spent: list[float] = []

    def compile(self, schema: Any) -> Reader:
        compiled = self.compiler.compile_json_schema(
            json.dumps(schema), any_whitespace=False, separators=(", ", ": "), any_order=self.order == "any"
        )
        self.xgrammar.GrammarMatcher(compiled).fill_next_token_bitmask(self.bitmask)
        return lambda text: self._reads(compiled, text)

    def _reads(self, compiled: Any, text: str) -> bool:
        matcher = self.xgrammar.GrammarMatcher(compiled)
        for token in [*self.tokenizer.encode(text, special=False), min(self.tokenizer.eos_ids)]:
            began = time.thread_time()
            matcher.fill_next_token_bitmask(self.bitmask)
            accepted = matcher.accept_token(token)
            self.spent.append(1e6 * (time.thread_time() - began))
            if not accepted:
                return False
        return True


def measured(side: Ours | Peer, cases: list[dict[str, Any]], rng: random.Random, name: str) -> dict[str, Any]:
    """What one engine reads of all calls, as `right of all`."""
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    compiles: list[float] = []
    for case in tqdm(cases, desc=name, file=sys.stderr, disable=not sys.stderr.isatty()):
        began = time.thread_time()
        try:
            reads = side.compile(case["schema"])
        except (SchemaError, RuntimeError) as error:
            wrong.append(f"{case['id']}: {error}"[:300])
            counts["tool sets"] += 1
            continue
        compiles.append(1e3 * (time.thread_time() - began))
        counts.update({"tool sets": 1, "tool sets right": 1})
        for kind, text, valid in _texts(case, rng):
            right = reads(text) is valid
            counts.update({kind: 1, f"{kind} right": right})
            if not right:
                wrong.append(f"{case['id']}, {kind}: {text}"[:300])
    kinds = ("tool sets", "valid accepted", "invalid rejected", "shuffled accepted", "duplicates refused")
    return {
        **{kind: f"{counts[f'{kind} right']} of {counts[kind]}" for kind in kinds},
        "tool sets partly in schema order": side.in_order,
        "compile ms": _quantiles(compiles),
        "mask and advance µs": _quantiles(side.spent),
        "wrong": wrong[:3],
    }


def _texts(case: dict[str, Any], rng: random.Random) -> Iterator[tuple[str, str, bool]]:
    for test in case["tests"]:
        call = test["data"]
        if not test["valid"]:
            yield "invalid rejected", _dumped(call), False
            continue
        yield "valid accepted", _dumped(call), True
        shuffled = {**call, "arguments": _shuffled(call["arguments"], rng)}
        if _dumped(shuffled) != _dumped(call):
            yield "shuffled accepted", _dumped(shuffled), True
        places = list(_objects(call["arguments"], ("arguments",)))
        for place in places:
            for escaped in (False, True):
                yield "duplicates refused", _twice(call, (), place, escaped), False


def _shuffled(value: Any, rng: random.Random) -> Any:
    if isinstance(value, dict):
        return {key: _shuffled(value[key], rng) for key in rng.sample(list(value), len(value))}
    return [_shuffled(one, rng) for one in value] if isinstance(value, list) else value


def _objects(value: Any, place: tuple[object, ...]) -> Iterator[tuple[object, ...]]:
    """The places of all objects that hold something."""
    if isinstance(value, dict) and value:
        yield place
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in items:
        yield from _objects(one, (*place, key))


def _twice(value: Any, at: tuple[object, ...], place: tuple[object, ...], escaped: bool) -> str:
    """The JSON text of `value` with the first key of the object at `place` written once more."""
    if isinstance(value, list):
        return f"[{', '.join(_twice(one, (*at, i), place, escaped) for i, one in enumerate(value))}]"
    if not isinstance(value, dict):
        return _dumped(value)
    members = [f"{_dumped(key)}: {_twice(one, (*at, key), place, escaped)}" for key, one in value.items()]
    if at == place:
        key = next(iter(value))
        spelled = f'"\\u{ord(key[0]):04x}{_dumped(key[1:])[1:]}' if escaped and key else _dumped(key)
        members.append(f"{spelled}: {_dumped(value[key])}")
    return f"{{{', '.join(members)}}}"


def _dumped(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _tool(schema: dict[str, Any]) -> ToolGrammar:
    properties = schema["properties"]
    return ToolGrammar(properties["name"]["const"], properties["arguments"])


def _quantiles(values: list[float]) -> dict[str, float]:
    ranked = sorted(values)
    return {
        name: round(ranked[min(int(share * len(ranked)), len(ranked) - 1)], 2)
        for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))
    }


if __name__ == "__main__":
    main()

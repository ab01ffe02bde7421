"""Differential fuzzing of the grammars: `python -m benchmarks.fuzz --pairs 20000`.

Random pairs of a schema and an instance are judged by the mask, by jsonschema, and by xgrammar as a third opinion. What
the mask accepts with an empty report must be valid; what is valid must be accepted, or refused for a reason that
`explain` names. Random texts drawn under the mask, within tight budgets, must end, be JSON, and be valid.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, islice, permutations, product
from random import Random
from typing import Any

import torch
from jsonschema import Draft202012Validator
from tqdm import tqdm

from benchmarks import bytewise, report
from benchmarks.bytewise import BYTES, ROOMY, takes
from benchmarks.fuzz_pairs import Schema, instances, pair_schema, shuffled
from m1runtime.errors import BudgetError, SchemaError
from m1runtime.grammar import Grammar, ToolGrammar

ORDERS = 120
EXAMPLES = 4
OPEN, CLOSE = '<tool_calls>\n{"name": "t", "arguments": ', "}\n</tool_calls>"


@dataclass(frozen=True, slots=True)
class Reading:
    """A schema as one kind of grammar reads it: the grammar, and what stands around an instance."""

    kind: str
    schema: Schema
    grammar: Grammar
    before: str = ""
    after: str = ""

    @property
    def enforced(self) -> bool:
        """Nothing is left to validate: what the mask accepts must be valid."""
        return self.grammar.reports[0].enforced

    def accepts(self, instance: Any) -> bool:
        """Whether the mask takes the instance, written as the grammar writes JSON."""
        text = self.before + json.dumps(instance, ensure_ascii=False) + self.after
        return takes(self.grammar, text)


def value_reading(schema: Schema) -> Reading:
    """One JSON value, as JSON Schema reads it. Raises SchemaError."""
    return Reading("value", schema, Grammar.from_json_schema(schema))


def any_order_reading(schema: Schema) -> Reading:
    """One JSON value whose properties come in any order. Raises SchemaError."""
    return Reading("any order", schema, Grammar.from_json_schema(schema, order="any"))


def tool_reading(schema: Schema) -> Reading:
    """The arguments of a tool; a schema of something else than an object becomes that of one argument."""
    schema = as_arguments(schema)
    grammar = Grammar.tool_calls([ToolGrammar("t", schema)], mode="required", parallel=False, skip=("", ""))
    return Reading("tool", schema, grammar, OPEN, CLOSE)


def as_arguments(schema: Schema) -> Schema:
    """A schema of objects: itself, or one that requires a property of it."""
    if isinstance(schema, dict) and schema.get("type") == "object":
        return schema
    body = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return {**body, "$defs": schema["$defs"]} if isinstance(schema, dict) and "$defs" in schema else body


def valid(schema: Schema, instance: Any) -> bool:
    """What jsonschema says, formats left out: they are annotations."""
    return Draft202012Validator(schema).is_valid(instance)


def draw(reading: Reading, budget: int, random: Random) -> str | None:
    """A random text under the mask within `budget` bytes, the parts around the instance cut off; None if it was cut."""
    text = bytewise.draw(reading.grammar, budget, random)
    return None if text is None else text[len(reading.before) : len(text) - len(reading.after)]


def flaw(schema: Schema, text: str) -> str:
    """What is wrong with a drawn text; "" for nothing."""
    try:
        value = json.loads(text, object_pairs_hook=_once)
    except ValueError as error:
        return str(error)
    return "" if valid(schema, value) else "invalid"


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) < len(pairs):
        raise ValueError("a name comes twice")
    return dict(pairs)


def explain(reading: Reading, instance: Any) -> str:
    """Why a valid instance is refused: the deliberate narrowings that stand in its way, or "unexplained"."""
    for names in _subsets(list(NARROWINGS)):
        schema, changed, same = reading.schema, instance, True
        for name in names:
            new_schema, new = NARROWINGS[name](schema, changed)
            same = same and _same(new_schema, schema) and _same(new, changed)
            schema, changed = new_schema, new
        if names and same:
            continue
        again = reading if _same(schema, reading.schema) else _read_again(reading.kind, json.dumps(schema))
        if again is not None and any(again.accepts(one) for one in _orders(changed, again)):
            return " and ".join(names) or "order"
    return "unexplained"


def _subsets(names: list[str]) -> Iterator[tuple[str, ...]]:
    for size in (0, 1, 2, len(names)):
        yield from combinations(names, size)


def _same(new: Any, old: Any) -> bool:
    return json.dumps(new) == json.dumps(old)


@lru_cache(64)
def _read_again(kind: str, schema: str) -> Reading | None:
    try:
        return READINGS[kind](json.loads(schema))
    except SchemaError:
        return None


READINGS: dict[str, Callable[[Schema], Reading]] = {
    "value": value_reading,
    "tool": tool_reading,
    "any order": any_order_reading,
}


def _plain_numbers(schema: Schema, value: Any) -> tuple[Schema, Any]:
    """1.0 and 1e2 are integers in JSON Schema; the mask writes them without a point or an exponent."""

    def change(scalar: Any) -> Any:
        return int(scalar) if isinstance(scalar, float) and scalar.is_integer() else scalar

    return _mapped(schema, change), _mapped(value, change)


def _plain_characters(schema: Schema, value: Any) -> tuple[Schema, Any]:
    """DEL, and control characters where names may be made up beside declared ones, cannot be written."""

    def change(scalar: Any) -> Any:
        return re.sub("[\x00-\x1f\x7f]", "a", scalar) if isinstance(scalar, str) else scalar

    return _mapped(schema, change), _mapped(value, change)


def _no_last_newline(schema: Schema, value: Any) -> tuple[Schema, Any]:
    """`$` ends the text; for jsonschema, with Python's expressions, a newline may still follow."""
    return schema, _mapped(value, lambda scalar: scalar.removesuffix("\n") if isinstance(scalar, str) else scalar)


def _no_formats(schema: Schema, value: Any) -> tuple[Schema, Any]:
    """Known formats are enforced, though JSON Schema makes them annotations."""
    return _without(schema, "format"), value


def _opened(schema: Schema, value: Any) -> tuple[Schema, Any]:
    """A tool that declares its arguments takes no others."""
    return _with_additional(schema), value


NARROWINGS: dict[str, Callable[[Schema, Any], tuple[Schema, Any]]] = {
    "number spelling": _plain_numbers,
    "end of a pattern": _no_last_newline,
    "characters": _plain_characters,
    "format": _no_formats,
    "closed arguments": _opened,
}


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, dict):
        return {change(name): _mapped(item, change) for name, item in value.items()}
    return [_mapped(item, change) for item in value] if isinstance(value, list) else change(value)


def _without(node: Any, keyword: str) -> Any:
    if isinstance(node, dict):
        return {
            name: _without(child, keyword)
            for name, child in node.items()
            if name != keyword or not isinstance(child, str)
        }
    return [_without(child, keyword) for child in node] if isinstance(node, list) else node


def _with_additional(node: Any) -> Any:
    if isinstance(node, dict):
        opened = {name: _with_additional(child) for name, child in node.items()}
        if isinstance(node.get("properties"), dict) and "additionalProperties" not in node:
            opened["additionalProperties"] = True
        return opened
    return [_with_additional(child) for child in node] if isinstance(node, list) else node


def _orders(value: Any, reading: Reading) -> Iterator[Any]:
    """The instance and, where order matters, the same with its keys in other orders, the first ORDERS of them."""
    matters = reading.kind != "any order" or reading.grammar.reports[0].in_order
    return islice(_every_order(value), ORDERS if matters else 1)


def instances_of(reading: Reading, random: Random, count: int) -> list[Any]:
    """Instances near a schema, their keys in the order of the schema or, where any may be, in any."""
    found = instances(reading.schema, random, count)
    return found if reading.kind != "any order" else [shuffled(value, random) for value in found]


def _every_order(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for names in permutations(value):
            for items in product(*(list(islice(_every_order(value[name]), 24)) for name in names)):
                yield dict(zip(names, items, strict=True))
    elif isinstance(value, list):
        for items in product(*(list(islice(_every_order(item), 24)) for item in value)):
            yield list(items)
    else:
        yield value


class Third:
    """xgrammar's opinion over the same bytes, open objects left open."""

    def __init__(self) -> None:
        import xgrammar

        self.xgrammar = xgrammar
        info = xgrammar.TokenizerInfo(BYTES.token_bytes, vocab_type=xgrammar.VocabType.RAW, stop_token_ids=[256])
        self.compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)

    def compile(self, schema: Schema) -> Any:
        """Its compiled grammar; None if it refuses the schema."""
        options: dict[str, Any] = {"any_whitespace": False, "separators": (", ", ": "), "strict_mode": False}
        try:
            return self.compiler.compile_json_schema(json.dumps(schema), **options)
        except RuntimeError:
            return None

    def accepts(self, compiled: Any, instance: Any) -> bool:
        """Whether it takes the instance to its end."""
        matcher = self.xgrammar.GrammarMatcher(compiled)
        text = json.dumps(instance, ensure_ascii=False).encode()
        return all(matcher.accept_token(token) for token in (*text, 256))


@dataclass(slots=True)
class Campaign:
    """Counts of a run, and the shortest examples of each class of disagreement."""

    counts: Counter[str]
    examples: dict[str, list[str]]
    third: Third | None = None

    def judge(self, schema: Schema, random: Random, each: int) -> None:
        """One schema with `each` instances, and a few random texts, in every reading."""
        for kind, read in READINGS.items():
            try:
                reading = read(schema)
            except SchemaError as error:
                satisfiable = any(valid(schema, instance) for instance in instances(schema, random, 10 * each))
                what = "refused though satisfiable" if satisfiable else "refused, no instance known"
                self._note(f"{kind}: {what}", schema, str(error)[:150])
                continue
            self.counts[f"{kind}: schemas"] += 1
            self.counts[f"{kind}: schemas enforced"] += reading.enforced
            for instance in instances_of(reading, random, each):
                self._pair(reading, instance)
            self._drawn(reading, random)
        if self.third is not None:
            self._third(self.third, schema, random, each)

    def _pair(self, reading: Reading, instance: Any) -> None:
        expected, accepted = valid(reading.schema, instance), reading.accepts(instance)
        self.counts[f"{reading.kind}: pairs"] += 1
        self.counts[f"{reading.kind}: valid"] += expected
        self.counts[f"{reading.kind}: accepted"] += accepted
        if accepted and not expected:
            left = "reported, left to validation" if not reading.enforced else "ACCEPTED THOUGH INVALID"
            self._note(f"{reading.kind}: {left}", reading.schema, instance)
        if expected and not accepted:
            self._note(f"{reading.kind}: narrowed: {explain(reading, instance)}", reading.schema, instance)

    def _drawn(self, reading: Reading, random: Random) -> None:
        try:
            least = reading.grammar.start(BYTES, max_new_tokens=ROOMY).min_tokens
        except BudgetError:
            self._note(f"{reading.kind}: no completion known", reading.schema, None)
            return
        for extra in (random.randint(0, 8), random.randint(8, 80)):
            text = draw(reading, least + extra, random)
            self.counts[f"{reading.kind}: drawn"] += 1
            problem = "cut" if text is None else flaw(reading.schema, text)
            if problem == "invalid" and not reading.enforced:
                self.counts[f"{reading.kind}: drawn, reported, left to validation"] += 1
            elif problem:
                self._note(f"{reading.kind}: DRAWN {problem}", reading.schema, text)

    def _third(self, third: Third, schema: Schema, random: Random, each: int) -> None:
        compiled = third.compile(schema)
        if compiled is None:
            self.counts["xgrammar: refused"] += 1
            return
        self.counts["xgrammar: schemas"] += 1
        for instance in instances(schema, random, each):
            expected, accepted = valid(schema, instance), third.accepts(compiled, instance)
            self.counts["xgrammar: pairs"] += 1
            self.counts["xgrammar: accepted though invalid"] += accepted and not expected
            self.counts["xgrammar: refused though valid"] += expected and not accepted

    def _note(self, what: str, schema: Schema, instance: Any) -> None:
        self.counts[what] += 1
        example = f"{json.dumps(schema)} <- {json.dumps(instance, ensure_ascii=False)}"
        self.examples[what] = sorted({*self.examples.get(what, []), example}, key=len)[:EXAMPLES]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description=__doc__)
    parser.add_argument("--pairs", type=int, default=20_000, help="of schema and instance, every reading counted")
    parser.add_argument("--each", type=int, default=5, help="instances a schema")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-third", action="store_true", help="leave xgrammar out")
    options = parser.parse_args()
    torch.set_num_threads(1)
    campaign = Campaign(Counter(), {}, None if options.no_third else Third())
    rounds = range(-(-options.pairs // (len(READINGS) * options.each)))
    for i in tqdm(rounds, file=sys.stderr, disable=not sys.stderr.isatty()):
        random = Random(f"{options.seed}/{i}")
        campaign.judge(pair_schema(random), random, options.each)
    report.save("fuzz", {**dict(sorted(campaign.counts.items())), "examples": campaign.examples})


if __name__ == "__main__":
    main()

"""Calls of a random-weight model at every token budget: `python -m benchmarks.closing --schemas FILE [FILE ...]`.

A file of JSON lines holds a `schema` a line: an object of `name` and `arguments`, an `anyOf` of such, or the schema of
an object, which becomes the arguments of one tool. A .json file is an MCP server's list of tools. The model must call
one of the tools within a budget; budgets from the shortest possible upwards are tried, and random ones beyond.

A reply is written as an agent's local model writes it: a call of a tool whose report names what the mask leaves out is
validated, and written again once from its first wrong value on. A call is judged by its tool's original schema. Where
the report is empty, every call must be valid; else the ones left are those that the loop would answer with an error.
A report that names the whole schema is told apart: most of these admit no object at all, and no call is valid.
`tried again` counts replies. No reply may be cut, nor stuck before its end.

Times are CPU seconds of one thread. With `--seconds` a case is left between two budgets once it has taken as long;
those it still had are counted. `slow` lists the cases whose compilation, or one budget of which, took SLOW seconds.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import count, repeat
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import Any

import torch
from jsonschema import Draft202012Validator, validators
from referencing.exceptions import Unresolvable
from safetensors.torch import save_file
from tqdm import tqdm

import m1runtime
from benchmarks import report
from m1agent.messages import ToolSpec
from m1agent.models.base import Settings
from m1agent.models.checks import CallChecks
from m1agent.models.local import LocalModel
from m1agent.models.writing import Writing
from m1agent.prompt.envelope import Envelope
from m1runtime import Engine, Grammar, ModelConfig
from m1runtime.checkpoint import expected_tensors
from m1runtime.errors import BudgetError, GenerationError
from m1runtime.grammar import ToolGrammar
from m1runtime.grammar.report import Unenforced
from m1runtime.grammar.schema import Order
from m1runtime.tokenizer import Tokenizer

HERE = Path(__file__).parent
SAMPLE = HERE.parent / "tests" / "data" / "bfcl-sample.jsonl"
SMALL = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "attn_type_list": [0, 1]} | {
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "rotary_dim": 8, "num_local_experts": 2
}  # fmt: skip
SLOW = 5.0
OPEN, CLOSE = "<tool_calls>\n", "\n</tool_calls>"


@dataclass(frozen=True, slots=True)
class Case:
    """Tools that a model is given together."""

    source: str
    tools: list[ToolGrammar]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.closing", description=__doc__)
    parser.add_argument("--schemas", type=Path, nargs="+", default=[SAMPLE])
    parser.add_argument("--tokenizer", type=Path, default=Path(m1runtime.__file__).parent / "nano")
    parser.add_argument("--every", type=int, default=40, help="try this many budgets from the shortest upwards")
    parser.add_argument("--beyond", type=int, default=4, help="and this many random ones beyond")
    parser.add_argument("--longest", type=int, default=512, help="tokens above the shortest, at most")
    parser.add_argument("--replies", type=int, default=1, help="a budget")
    parser.add_argument("--cases", type=int, default=10**9, help="of each file, the first of them")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="a case, at most")
    parser.add_argument("--order", choices=("schema", "any"), default="schema", help="of the properties")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    cases = [case for path in options.schemas for case in list(read(path))[: options.cases]]
    vocabulary = Tokenizer.from_file(options.tokenizer).vocab_size
    name = "closing" if options.order == "schema" else "closing_any_order"
    report.save(name, {"order": options.order, "vocabulary": vocabulary, **run(cases, options)}, module="closing")


def read(path: Path) -> Iterator[Case]:
    """The cases of a file."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        yield Case(path.name, [ToolGrammar(tool["name"], tool["inputSchema"]) for tool in json.loads(text)])
        return
    for line in text.splitlines():
        schema = json.loads(line)["schema"]
        if tools := _tools(schema):
            yield Case(path.name, tools)


def _tools(schema: Any) -> list[ToolGrammar]:
    """The calls a schema describes, or the one tool whose arguments it could be; [] where it is no object's."""
    if not isinstance(schema, dict):
        return []
    calls = [_call(one) for one in schema.get("anyOf", [schema])]
    known = [call for call in calls if call is not None]
    if len(known) == len(calls):
        return known
    types = schema.get("type", "object")
    return [ToolGrammar("tool", schema)] if types == "object" or (isinstance(types, list) and "object" in types) else []


def _call(schema: Any) -> ToolGrammar | None:
    properties = schema.get("properties") if isinstance(schema, dict) else None
    if not isinstance(properties, dict) or properties.keys() != {"name", "arguments"}:
        return None
    name = properties["name"]
    return ToolGrammar(name["const"], properties["arguments"]) if isinstance(name, dict) and "const" in name else None


def random_engine(folder: Path, tokenizer: Path, seed: int) -> Engine:
    """A two-layer hybrid of random weights with a real vocabulary."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer / name, folder / name)
    raw = json.loads((HERE.parent / "training" / "config.json").read_text()) | SMALL
    raw["vocab_size"] = Tokenizer.from_file(tokenizer).vocab_size
    (folder / "config.json").write_text(json.dumps(raw))
    random = torch.Generator().manual_seed(seed)
    shapes = expected_tensors(ModelConfig.from_dict(raw))
    tensors = {
        name: torch.randn(shape, generator=random) * (0.5 if len(shape) > 1 else 1) for name, shape in shapes.items()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return Engine.from_pretrained(folder, progress=False)


def run(cases: list[Case], options: argparse.Namespace) -> dict[str, Any]:
    """Counts over all cases and budgets, a row for each file, the replies that failed, and the cases that were slow."""
    rows: dict[str, Counter[str]] = {}
    failures: list[str] = []
    slow: dict[str, float] = {}
    spawned = get_context("spawn")
    with ProcessPoolExecutor(options.jobs, spawned, _load, (options.tokenizer, options.seed)) as pool:
        outcomes = pool.map(_outcome, cases, count(), repeat(options))
        told = tqdm(outcomes, total=len(cases), mininterval=5)
        for number, (case, found) in enumerate(zip(cases, told, strict=True)):
            rows.setdefault(case.source, Counter()).update(found.counts)
            lines = [f"{case.source} {number}, {line}" for line in found.failures]
            if found.longest >= SLOW:
                slow[f"{case.source} {number}"] = round(found.longest, 1)
            for line in lines:
                tqdm.write(line, file=sys.stderr)
            failures += lines
    total = sum(rows.values(), Counter[str]())
    return {"all": total, **rows, "slow": slow, "failures": failures[:10]}


_engine: list[Engine] = []
"""That of a worker process."""


def _load(tokenizer: Path, seed: int) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        _engine.append(random_engine(Path(folder), tokenizer, seed))


@dataclass(slots=True)
class Found:
    """What became of a case, and the CPU seconds of its slowest budget."""

    counts: Counter[str]
    failures: list[str] = field(default_factory=list[str])
    longest: float = 0.0


def _outcome(case: Case, number: int, options: argparse.Namespace) -> Found:
    """All budgets of a case."""
    model = _Model(_engine[0], options.order)
    envelope = Envelope(tuple(ToolSpec(tool.name, "", tool.schema) for tool in case.tools), "required")
    began = time.process_time()
    grammar = model.grammar(envelope)
    judge = Judge(case, grammar)
    found = Found(Counter(cases=1, tools=len(case.tools), enforced=sum(one.enforced for one in grammar.reports)))
    try:
        shortest = grammar.start(model.tokenizer, max_new_tokens=10**6).min_tokens
    except BudgetError:
        found.counts["cases without a known call"] += 1
        return found
    found.longest = time.process_time() - began
    budgets = _budgets(shortest, Random(f"{options.seed}/{number}"), options)
    for i, budget in enumerate(budgets):
        latest = time.process_time()
        if latest - began > options.seconds:
            found.counts.update({"cases left": 1, "budgets left": len(budgets) - i})
            break
        counts, texts = _at(model, envelope, judge, budget, options)
        found.counts.update(counts)
        found.failures += [f"budget {budget} of {shortest}: {text}" for text in texts]
        found.longest = max(found.longest, time.process_time() - latest)
    return found


class _Model(LocalModel):
    """The agent's model, with properties in any order if asked for."""

    def __init__(self, engine: Engine, order: Order) -> None:
        super().__init__(engine)
        self._order: Order = order
        self._made: Grammar | None = None

    def grammar(self, envelope: Envelope, *, thought: bool = False) -> Grammar:
        if self._made is None:
            tools = [ToolGrammar(spec.name, spec.parameters) for spec in envelope.tools]
            self._made = Grammar.tool_calls(tools, mode="required", order=self._order)
        return self._made

    def checks(self, envelope: Envelope) -> CallChecks:
        weak = {report.name for report in self.grammar(envelope).reports if not report.enforced}
        return CallChecks.of(spec for spec in envelope.tools if spec.name in weak)


def _at(
    model: _Model, envelope: Envelope, judge: Judge, budget: int, options: argparse.Namespace
) -> tuple[Counter[str], list[str]]:
    """Counts of the replies within a budget, and the ends of those that failed."""
    settings = Settings(max_tokens=budget, temperature=1.0, top_p=1.0, seed=options.seed + budget)
    counts: Counter[str] = Counter()
    failures: list[str] = []
    for i in range(options.replies):
        counts["replies"] += 1
        try:
            text, found = _reply(model, envelope, judge, settings, [1, 2, 3 + i])
        except GenerationError as error:
            text, found = str(error), Counter(stuck=1)
        counts.update(found)
        if any(found[kind] for kind in ("stuck", "cut", "broken", "invalid, report empty")):
            failures.append(text[-300:])
    return counts, failures


def _reply(
    model: _Model, envelope: Envelope, judge: Judge, settings: Settings, prompt: list[int]
) -> tuple[str, Counter[str]]:
    """A reply, and what is to be counted of it."""
    with model.engine.session(prompt) as session:
        writing = Writing(model, session, envelope, settings)
        writing.begin()
        text = ""
        while (more := writing.next(thinking=False)) is not None:
            text += more
        usage, standing = writing.usage, session.length - len(prompt)
    counts = Counter(tokens=usage.output_tokens, forced=usage.forced_tokens)
    if usage.output_tokens > standing:
        counts["tried again"] = 1
    counts.update(Counter(cut=1) if writing.stop != "done" else judge.reply(text))
    return text, counts


def _budgets(shortest: int, random: Random, options: argparse.Namespace) -> list[int]:
    near = [shortest + extra for extra in range(options.every + 1)]
    beyond = range(shortest + options.every + 1, shortest + max(options.longest, options.every + 2))
    return [*near, *(random.choice(beyond) for _ in range(options.beyond))]


class Judge:
    """Reads a reply and validates its calls against the schemas that the tools came with."""

    def __init__(self, case: Case, grammar: Grammar) -> None:
        self.enforced = {one.name: one.enforced for one in grammar.reports}
        self.unheld = {one.name for one in grammar.reports for left in one.unenforced if _whole(left)}
        self.validators: dict[str, Any] = {}
        for tool in case.tools:
            kind = validators.validator_for(tool.schema, default=Draft202012Validator)
            self.validators[tool.name] = kind(tool.schema)

    def reply(self, text: str) -> Counter[str]:
        """Calls by what becomes of them; "broken" for a reply that holds no calls."""
        body = text.split("</think>", 1)[-1].lstrip("\n") if text.startswith("<think>") else text
        if not (body.startswith(OPEN) and body.endswith(CLOSE)):
            return Counter(broken=1)
        found: Counter[str] = Counter()
        for line in body[len(OPEN) : -len(CLOSE)].split("\n"):
            found["calls"] += 1
            found[self._call(line)] += 1
        return found

    def _call(self, line: str) -> str:
        try:
            call = json.loads(line)
            name, arguments = call["name"], call["arguments"]
        except (ValueError, KeyError):
            return "broken"
        try:
            valid = self.validators[name].is_valid(arguments)
        except (Unresolvable, TypeError, ValueError, AttributeError):
            return "beyond the validator"
        if valid:
            return "valid"
        if name in self.unheld:
            return "invalid, the whole schema reported"
        return "invalid, report empty" if self.enforced[name] else "invalid, reported"


def _whole(left: Unenforced) -> bool:
    return left.path == "" and left.keyword == "*"


if __name__ == "__main__":
    main()

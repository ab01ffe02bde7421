"""Compile and mask times of tool grammars beside their peers: `python -m benchmarks.grammar --schemas FILE`.

A line of the file holds a `schema` and `tests`, of which the valid ones are replayed token by token. llguidance alone
and xgrammar run in this process, outlines-core and lm-format-enforcer in the environment that `make bench-peers` makes.
All run on one thread and are set up as their documentation advises; ours, llguidance and xgrammar write the separators
`", "` and `": "`. Ours alone also proves at every step that the call can be ended within the budget of 512 tokens.

*Compile* is a schema that was never seen, to its first mask, in a warm process. What *cold*, *warm* and *in an engine's
order* mean stands in benchmarks/peers/grammars.py, which measures them.

`--tools` compiles that many tools of the file together. A *batch* is 64 calls at once, one token a
step: the masks of all written to one bitmask (llguidance, xgrammar: row after row on one thread), on the second pass.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import m1runtime
from benchmarks import report
from benchmarks.peers.grammars import SIDES, Case, Side, in_order, measure, quantiles, reading
from m1runtime import Grammar
from m1runtime.grammar import ToolGrammar
from m1runtime.grammar.masks import fill_masks
from m1runtime.tokenizer import Tokenizer

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "tests" / "data" / "bfcl-sample.jsonl"
PEERS = ROOT / ".venv-peers" / "bin" / "python"
BUDGET = 512
BATCH = 64
WARM_UP = {"type": "object", "properties": {"warm": {"type": "string"}, "up": {"type": "integer"}}}


class Ours:
    """Our constraint, budget check included."""

    package = "m1agent"

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._bitmask = torch.zeros(BATCH, (tokenizer.vocab_size + 31) // 32, dtype=torch.int32)

    def compile(self, schema: Any) -> Grammar:
        return Grammar.from_json_schema(schema)

    def start(self, grammar: Grammar) -> list[Any]:
        return [grammar.start(self._tokenizer, max_new_tokens=BUDGET), BUDGET]

    def mask(self, state: list[Any]) -> None:
        state[0].mask()

    def fill(self, states: list[Any]) -> None:
        fill_masks([state[0] for state in states], self._bitmask)

    def advance(self, state: list[Any], token: int) -> bool:
        state[1] -= 1
        return state[0].try_accept(token, state[1])

    def forced(self, state: list[Any]) -> list[int]:
        run = state[0].forced(state[1])
        state[1] -= len(run)
        return run

    def ahead(self, state: list[Any]) -> None:
        for _ in state[0].look_ahead():
            pass

    def together(self, tools: list[tuple[str, Any]]) -> None:
        """Compiles these tools as one grammar, to the first mask."""
        grammar = Grammar.tool_calls([ToolGrammar(*tool) for tool in tools], mode="required", skip=("", ""))
        grammar.start(self._tokenizer, max_new_tokens=BUDGET).mask()


class OurTools(Ours):
    """The same calls as tool calls, which plain schemas have tables for; measured from the opening brace on."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__(tokenizer)
        self._before = tokenizer.encode("<tool_calls>\n", special=False)

    def compile(self, schema: Any) -> Grammar:
        return Grammar.tool_calls([ToolGrammar(*tool) for tool in _calls(schema)], mode="required", skip=("", ""))

    def start(self, grammar: Grammar) -> list[Any]:
        state = super().start(grammar)
        for token in self._before:
            self.advance(state, token)
        return state


class LLGuidance:
    """llguidance's own JSON Schema grammar and matcher."""

    package = "llguidance"

    def __init__(self, tokenizer: Tokenizer) -> None:
        import llguidance.torch
        from llguidance import LLMatcher

        self._llg, self._matcher, self._fill = tokenizer.llg, LLMatcher, llguidance.torch.fill_next_token_bitmask
        self._bitmask = llguidance.torch.allocate_token_bitmask(BATCH, tokenizer.llg.vocab_size)
        self._options = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}

    def compile(self, schema: Any) -> Any:
        matcher = self._matcher(self._llg, self._matcher.grammar_from_json_schema(schema, overrides=self._options))
        if matcher.is_error():
            raise ValueError(matcher.get_error())
        return matcher

    def start(self, grammar: Any) -> Any:
        return grammar.deep_copy()

    def mask(self, state: Any) -> None:
        self._fill(state, self._bitmask, 0)

    def fill(self, states: list[Any]) -> None:
        for i, state in enumerate(states):
            self._fill(state, self._bitmask, i)

    def advance(self, state: Any, token: int) -> bool:
        return state.consume_token(token)

    def forced(self, state: Any) -> list[int]:
        run = state.compute_ff_tokens()
        state.consume_tokens(run)
        return run

    def ahead(self, state: Any) -> None:
        """It has nothing of the kind."""

    def together(self, tools: list[tuple[str, Any]]) -> None:
        self.mask(self.start(self.compile(_union(tools))))


class XGrammar:
    """xgrammar's compiler, its cache on as by default, and its matcher."""

    package = "xgrammar"

    def __init__(self, tokenizer: Tokenizer) -> None:
        import xgrammar

        self._xgrammar = xgrammar
        kind, ends = xgrammar.VocabType.RAW, sorted(tokenizer.eos_ids)
        info = xgrammar.TokenizerInfo(
            tokenizer.token_bytes, vocab_type=kind, vocab_size=tokenizer.vocab_size, stop_token_ids=ends
        )
        self._compiler = xgrammar.GrammarCompiler(info, max_threads=1)
        self._bitmask = xgrammar.allocate_token_bitmask(BATCH, tokenizer.vocab_size)

    def compile(self, schema: Any) -> Any:
        return self._compiler.compile_json_schema(json.dumps(schema), any_whitespace=False, separators=(", ", ": "))

    def start(self, grammar: Any) -> Any:
        return self._xgrammar.GrammarMatcher(grammar)

    def mask(self, state: Any) -> None:
        state.fill_next_token_bitmask(self._bitmask)

    def fill(self, states: list[Any]) -> None:
        for i, state in enumerate(states):
            state.fill_next_token_bitmask(self._bitmask, i)

    def advance(self, state: Any, token: int) -> bool:
        return state.accept_token(token)

    def forced(self, state: Any) -> list[int]:
        """It forces bytes, not tokens, and engines that use it do without."""
        return []

    def ahead(self, state: Any) -> None:
        """It has nothing of the kind."""

    def together(self, tools: list[tuple[str, Any]]) -> None:
        self.mask(self.start(self.compile(_union(tools))))


def _union(tools: list[tuple[str, Any]]) -> dict[str, Any]:
    return {"anyOf": [_call(name, schema) for name, schema in tools]}


def _call(name: str, schema: Any) -> dict[str, Any]:
    properties = {"name": {"const": name}, "arguments": schema}
    return {
        "type": "object", "properties": properties, "required": ["name", "arguments"], "additionalProperties": False
    }  # fmt: skip


OWN: dict[str, Callable[[Tokenizer], Any]] = {
    "m1runtime, tools": OurTools,
    "m1runtime": Ours,
    "llguidance": LLGuidance,
    "xgrammar": XGrammar,
}


def main() -> None:
    """Measures every engine that is there on the same calls, prints a table and saves the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.grammar", description=__doc__)
    parser.add_argument("--schemas", type=Path, default=SAMPLE)
    parser.add_argument("--tokenizer", type=Path, default=Path(m1runtime.__file__).parent / "nano")
    parser.add_argument("--tools", type=int, default=300, help="compiled together")
    parser.add_argument("--seconds", type=float, default=60.0, help="of CPU, for each engine")
    options = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = Tokenizer.from_file(options.tokenizer)
    rows = [json.loads(line) for line in options.schemas.read_text().splitlines()]
    cases = _cases(rows, tokenizer)
    tools = _tools(rows, options.tools)
    figures: dict[str, Any] = {"schemas": options.schemas.name, "cases": len(cases), "vocabulary": tokenizer.vocab_size}
    figures["calls"] = sum(len(case["calls"]) for case in cases)
    for name, kind in OWN.items():
        print(f"{name} ...", file=sys.stderr, flush=True)
        side = kind(tokenizer)
        _warm(side, tokenizer)
        figures[name] = measure(side, cases, options.seconds)
        figures[name][f"batch of {BATCH} masks µs, warm"] = quantiles(_batch(side, cases))
        figures[name] |= in_order(_other(kind, options.tokenizer), cases, tokenizer.token_bytes, options.seconds)
        figures[name][f"{len(tools)} tools compiled together, ms"] = round(_together(side, _unseen(tools, name)), 1)
    figures |= _peers(tokenizer, cases, options.seconds)
    report.save("grammar", figures)
    print(f"\n{_table({name: one for name, one in figures.items() if isinstance(one, dict)})}\n")


def _other(kind: Callable[[Tokenizer], Any], tokenizer: Path) -> Any:
    """A side with a vocabulary of its own, which has seen nothing but the warm-up."""
    known = Tokenizer.from_file(tokenizer)
    side = kind(known)
    _warm(side, known)
    return side


def _cases(rows: list[dict[str, Any]], tokenizer: Tokenizer) -> list[Case]:
    """Each schema once, with its valid calls."""
    found: dict[str, Case] = {}
    for row in rows:
        texts = [json.dumps(test["data"], ensure_ascii=False) for test in row["tests"] if test["valid"]]
        calls = [tokenizer.encode(text, special=False) for text in texts]
        found.setdefault(json.dumps(row["schema"]), {"schema": row["schema"], "calls": []})["calls"] += calls
    return list(found.values())


def _tools(rows: list[dict[str, Any]], count: int) -> list[tuple[str, Any]]:
    """Names and arguments of the file's tools, `count` at most; a name that comes again is numbered."""
    found: dict[str, Any] = {}
    for row in rows:
        for name, schema in _calls(row["schema"]):
            found[name if name not in found else f"{name}_{len(found)}"] = schema
    return list(found.items())[:count]


def _calls(schema: Any) -> list[tuple[str, Any]]:
    """Name and arguments of each call that a schema describes."""
    properties = [one["properties"] for one in schema.get("anyOf", [schema])]
    return [(one["name"]["const"], one["arguments"]) for one in properties]


def _unseen(tools: list[tuple[str, Any]], suffix: str) -> list[tuple[str, Any]]:
    """The tools with other argument names, so that nothing remembered of them helps."""
    found: list[tuple[str, Any]] = []
    for name, schema in tools:
        arguments = {f"{one} {suffix}": value for one, value in schema.get("properties", {}).items()}
        required = [f"{one} {suffix}" for one in schema.get("required", [])]
        found.append((name, {**schema, "properties": arguments, "required": required}))
    return found


def _warm(side: Side, tokenizer: Tokenizer) -> None:
    state = side.start(side.compile(_call("warm", WARM_UP)))
    for token in tokenizer.encode('{"name": "warm", "arguments": {"warm": "up", "up": 1}}', special=False):
        side.mask(state)
        side.advance(state, token)


def _batch(side: Any, cases: list[Case]) -> list[float]:
    """CPU microseconds of each step of 64 calls at once, without those of the clock."""
    called = itertools.cycle([case for case in cases if case["calls"]])
    chosen = [(side.compile(case["schema"]), case["calls"][0]) for case in itertools.islice(called, BATCH)]
    steps = min(24, max(len(call) for _, call in chosen))
    spent: list[float] = []
    clock = reading()
    for _ in range(2):
        spent.clear()
        states = [side.start(grammar) for grammar, _ in chosen]
        gc.disable()
        for step in range(steps):
            began = time.thread_time_ns()
            side.fill(states)
            spent.append((time.thread_time_ns() - began) / 1e3 - clock)
            for state, (_, call) in zip(states, chosen, strict=True):
                if step < len(call):
                    side.advance(state, call[step])
        gc.enable()
    return spent


def _together(side: Any, tools: list[tuple[str, Any]]) -> float:
    began = time.process_time()
    side.together(tools)
    return 1e3 * (time.process_time() - began)


def _peers(tokenizer: Tokenizer, cases: list[Case], seconds: float) -> dict[str, Any]:
    if not PEERS.exists():
        print("`make bench-peers` sets up the other peers.", file=sys.stderr)
        return {}
    special = sorted({*tokenizer.special_ids.values(), *tokenizer.eos_ids})
    given = {"tokens": [raw.hex() for raw in tokenizer.token_bytes], "special": special, "cases": cases}
    found: dict[str, Any] = {}
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump({**given, "eos": min(tokenizer.eos_ids)}, file)
        file.flush()
        for name in SIDES:
            print(f"{name} ...", file=sys.stderr, flush=True)
            run = [str(PEERS), "-W", "ignore", "-m", "benchmarks.peers.grammars", name, file.name, str(seconds)]
            done = subprocess.run(run, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
            if done.returncode == 0:
                found[name] = json.loads(done.stdout)
            else:
                print(f"{name} is left out: it ended with {done.returncode}", file=sys.stderr)
    return found


def _table(figures: dict[str, dict[str, Any]]) -> str:
    rows = list(dict.fromkeys(row for one in figures.values() for row in one))
    width = max(map(len, rows))
    lines = [" ".join([" " * width, *(f"{name:>34}" for name in figures)])]
    for row in rows:
        cells = [one.get(row, "-") for one in figures.values()]
        texts = [
            " / ".join(f"{value:g}" for value in cell.values()) if isinstance(cell, dict) else cell for cell in cells
        ]
        lines.append(" ".join([f"{row:{width}}", *(f"{text!s:>34}" for text in texts)]))
    return "\n".join([*lines, f"quantiles: {', '.join(quantiles([0.0]))}"])


if __name__ == "__main__":
    main()

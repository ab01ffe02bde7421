"""Forward passes a tool call takes, with the call that is expected as the model's choice at every place.

Run with `python -m benchmarks.passes`, for other calls with `--schemas FILE`: a line is {"schema": ..., "tests":
[{"valid": true, "data": {"name": ..., "arguments": ...}}, ...]}.

No model runs: a teacher gives every place of the reply logits that prefer the next token of the expected call, in its
canonical tokenisation, and the runtime's own generation loop does the rest, drafts included. So this counts passes and
says nothing of time. A pass is counted for every forward pass, that of the prompt included, since its logits give the
first token; "unconstrained" is one pass a token and one for the end of the reply.

The calls are real, the questions are not in the data. "tools only": the prompt holds the tool definitions and no
question. "values named": a sentence names the tool and then the values of its arguments, in order, without their keys.
Real requests lie between the two: they name most values, in other words and another order.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

import m1runtime
from benchmarks import report
from m1agent.messages import Setup, ToolSpec, UserMessage
from m1agent.prompt import template
from m1runtime import Grammar, SamplingParams
from m1runtime.generation import Generation
from m1runtime.grammar.drafts import Lookup
from m1runtime.rules import Rules
from m1runtime.sequence import SequenceState, Trial
from m1runtime.tokenizer import Tokenizer

SAMPLE = Path(__file__).parent.parent / "tests" / "data" / "bfcl-sample.jsonl"
NANO = Path(m1runtime.__file__).parent / "nano"
BUDGET = 1024
LEVELS = ("forced", "forced+boundary", "forced+boundary+lookup")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.passes", description=__doc__)
    parser.add_argument("--schemas", type=Path, default=SAMPLE)
    parser.add_argument("--tokenizer", type=Path, help="a checkpoint folder, besides m1-nano's")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cases = [json.loads(line) for line in options.schemas.read_text().splitlines()]
    figures: dict[str, Any] = {"schemas": len(cases)}
    for name, folder in (("m1-nano", NANO), ("given tokenizer", options.tokenizer)):
        if folder is not None:
            figures[name] = measure(Tokenizer.from_file(folder), cases)
    report.save("passes", figures)


def measure(tokenizer: Tokenizer, cases: Sequence[Any]) -> dict[str, Any]:
    """Means over the calls, by prompt and by what is drafted."""
    figures: dict[str, Any] = {"vocabulary": tokenizer.vocab_size}
    for title, named in (("tools only", False), ("values named", True)):
        totals: dict[str, Counter[str]] = {level: Counter() for level in LEVELS}
        calls = tokens = 0
        for case in cases:
            grammar = Grammar.from_json_schema(case["schema"])
            for call in (test["data"] for test in case["tests"] if test["valid"]):
                prompt = _prompt(tokenizer, case["schema"], call, named=named)
                text = json.dumps(call, ensure_ascii=False).encode()
                calls, tokens = calls + 1, tokens + len(tokenizer.encode(text.decode(), special=False))
                for level in LEVELS:
                    totals[level] += replay(tokenizer, grammar, prompt, text, level)
        figures[title] = {
            "calls": calls,
            "passes, unconstrained": round(tokens / calls + 1, 2),
            **{f"passes, {level}": round(total["passes"] / calls, 2) for level, total in totals.items()},
            "forced share": round(totals["forced"]["forced"] / tokens, 3),
            "drafted": round(totals[LEVELS[-1]]["drafted"] / calls, 2),
            "accepted": round(totals[LEVELS[-1]]["accepted"] / calls, 2),
            "not replayed": totals[LEVELS[-1]]["failed"],
        }
    return figures


def replay(tokenizer: Tokenizer, grammar: Grammar, prompt: list[int], text: bytes, level: str) -> Counter[str]:
    """One call, greedily from the teacher's logits."""
    teacher = Teacher(tokenizer, text)
    sequence = SequenceState(slot=0, keep=0, tokens=list(prompt))
    if level == "forced+boundary":
        sequence.lookup = Blind(None)
    params = SamplingParams(max_new_tokens=BUDGET, temperature=0, drafts=level != "forced")
    generation = Generation(sequence, params, _rules(tokenizer), grammar)
    counts: Counter[str] = Counter()
    while generation.finish_reason is None:
        draft = generation.draft()
        counts["drafted"] += len(draft.tokens) if draft is not None else 0
        teacher.advance(sequence, draft)
        counts["passes"] += 1
        for _ in generation.step():
            pass
        if sequence.trial is not None:
            counts["accepted"] += sequence.trial.agreed(sequence.tokens)
    done = generation.completion()
    return counts + Counter(forced=done.forced_tokens, failed=done.text.encode() != text)


class Blind(Lookup):
    """Remembers nothing."""

    def find(self, tail: Sequence[int], *, single: bool) -> int | None:
        return None


class Teacher:
    """In place of a model and its executor: logits that prefer the next token of `text`."""

    def __init__(self, tokenizer: Tokenizer, text: bytes) -> None:
        self._tokenizer = tokenizer
        self._text = text
        self._start: int | None = None
        ids = tokenizer.encode(text.decode(), special=False)
        ends = accumulate((len(tokenizer.token_bytes[i]) for i in ids), initial=0)
        self._canonical = dict(zip(ends, ids, strict=False))

    def advance(self, sequence: SequenceState, draft: Any) -> None:
        start = len(sequence.tokens)
        self._start = start if self._start is None else self._start
        sequence.computed, sequence.trial = start, None
        if draft is None:
            sequence.logits = self._logits(sequence.tokens)
            return
        rows = [self._logits([*sequence.tokens, *draft.tokens[:n]]) for n in draft.choices]
        sequence.trial = Trial(draft, start, torch.stack(rows))

    def _logits(self, tokens: Sequence[int]) -> torch.Tensor:
        logits = torch.zeros(self._tokenizer.vocab_size)
        logits[self._next(b"".join(self._tokenizer.token_bytes[i] for i in tokens[self._start :]))] = 1.0
        return logits

    def _next(self, written: bytes) -> int:
        if written == self._text or not self._text.startswith(written):
            return min(self._tokenizer.eos_ids)
        at = len(written)
        if at not in self._canonical:
            rest = self._text[at:].decode("utf-8", "replace")
            self._canonical[at] = self._tokenizer.encode(rest, special=False)[0]
        return self._canonical[at]


def _rules(tokenizer: Tokenizer) -> Rules:
    return Rules(tokenizer.eos_ids, min(tokenizer.eos_ids), None, tokenizer.vocab_size, 1 << 30, tokenizer)


def _prompt(tokenizer: Tokenizer, schema: Any, call: Any, *, named: bool) -> list[int]:
    tools = [one["properties"] for one in schema.get("anyOf", [schema])]
    specs = tuple(ToolSpec(tool["name"]["const"], "", tool["arguments"]) for tool in tools)
    pieces = template.render_setup(Setup(tools=specs))
    if named:
        pieces += template.render_message(UserMessage(_question(call)))
    ids: list[int] = []
    for piece in [*pieces, *template.render_reply_start()]:
        ids += tokenizer.encode(piece.text, special=piece.special)
    return ids


def _question(call: Any) -> str:
    values = list(_values(call["arguments"]))
    listed = " and ".join(filter(None, (", ".join(values[:-1]), *values[-1:])))
    return f"Please {call['name'].replace('_', ' ').replace('.', ' ')} for {listed}, thank you."


def _values(value: Any) -> Any:
    if isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _values(one)
    else:
        yield value if isinstance(value, str) else json.dumps(value)


if __name__ == "__main__":
    main()

"""Compile and mask times of tool grammars, against xgrammar on the same schemas and vocabulary.

Run with `python -m benchmarks.grammar`.

The calls are the valid ones of the sample, fed token by token; both sides write the separators `", "` and `": "`. Times
are CPU microseconds of one thread.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import m1runtime
from benchmarks import report
from m1runtime import Grammar
from m1runtime.tokenizer import Tokenizer

SAMPLE = Path(__file__).parent.parent / "tests" / "data" / "bfcl-sample.jsonl"


def main() -> None:
    """Measures both sides on every schema of the sample."""
    torch.set_num_threads(1)
    tokenizer = Tokenizer.from_file(Path(m1runtime.__file__).parent / "nano")
    cases = [json.loads(line) for line in SAMPLE.read_text().splitlines()]
    ours, peer = Ours(tokenizer), Peer(tokenizer)
    figures: dict[str, Any] = {"schemas": len(cases), "vocabulary": tokenizer.vocab_size}
    for name, side in (("m1runtime", ours), ("xgrammar", peer)):
        compiles: list[float] = []
        steps: list[float] = []
        for case in cases:
            texts = [json.dumps(t["data"], ensure_ascii=False) for t in case["tests"] if t["valid"]]
            compiles.append(_microseconds(lambda s=side, c=case: s.compile(c["schema"])))
            for text in texts:
                steps += side.replay(case["schema"], tokenizer.encode(text, special=False))
        figures[name] = {"compile µs": _quantiles(compiles), "mask and advance µs": _quantiles(steps)}
    report.save("grammar", figures)


class Ours:
    """Our constraint, budget check included, at a budget of 512 tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        Grammar.from_json_schema({"type": "string"}).start(tokenizer, max_new_tokens=64).mask()

    def compile(self, schema: Any) -> None:
        Grammar.from_json_schema(schema).start(self.tokenizer, max_new_tokens=512).mask()

    def replay(self, schema: Any, ids: list[int]) -> list[float]:
        constraint = Grammar.from_json_schema(schema).start(self.tokenizer, max_new_tokens=512)
        spent: list[float] = []
        for i, token in enumerate(ids):
            spent.append(_microseconds(constraint.mask))
            began = time.thread_time()
            accepted = constraint.try_accept(token, 511 - i)
            spent[-1] += 1e6 * (time.thread_time() - began)
            assert accepted, f"token {i} of a valid call refused"
        return spent


class Peer:
    """xgrammar's matcher, without a budget check, which it does not have."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        import xgrammar

        self.xgrammar = xgrammar
        info = xgrammar.TokenizerInfo(tokenizer.token_bytes, stop_token_ids=sorted(tokenizer.eos_ids))
        self.compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)
        self.bitmask = xgrammar.allocate_token_bitmask(1, tokenizer.vocab_size)

    def compile(self, schema: Any) -> Any:
        return self.compiler.compile_json_schema(json.dumps(schema), any_whitespace=False, separators=(", ", ": "))

    def replay(self, schema: Any, ids: list[int]) -> list[float]:
        matcher = self.xgrammar.GrammarMatcher(self.compile(schema))
        spent: list[float] = []
        for token in ids:
            began = time.thread_time()
            matcher.fill_next_token_bitmask(self.bitmask)
            accepted = matcher.accept_token(token)
            spent.append(1e6 * (time.thread_time() - began))
            if not accepted:
                break
        return spent


def _microseconds(work: Callable[[], object]) -> float:
    began = time.thread_time()
    work()
    return 1e6 * (time.thread_time() - began)


def _quantiles(values: list[float]) -> dict[str, float]:
    ranked = sorted(values)
    return {
        name: round(ranked[min(int(share * len(ranked)), len(ranked) - 1)], 1)
        for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))
    }


if __name__ == "__main__":
    main()

"""Calls of a random-weight model at every token budget: `python -m benchmarks.closing --schemas FILE`.

Each line of the file holds a `schema`: an object of `name` and `arguments`, or an `anyOf` of such. A model of random
weights must call one of these tools within a budget; every budget from the shortest possible upwards is tried. A reply
counts when the calls parse, satisfy the schema and are closed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from jsonschema import Draft202012Validator, ValidationError
from safetensors.torch import save_file
from tqdm import tqdm

import m1runtime
from benchmarks import report
from m1runtime import Engine, Grammar, ModelConfig, SamplingParams
from m1runtime.checkpoint import expected_tensors
from m1runtime.grammar import ToolGrammar
from m1runtime.tokenizer import Tokenizer

HERE = Path(__file__).parent
SAMPLE = HERE.parent / "tests" / "data" / "bfcl-sample.jsonl"
SMALL = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "attn_type_list": [0, 1]} | {
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "rotary_dim": 8, "num_local_experts": 2
}  # fmt: skip
OPEN, CLOSE = "<tool_calls>\n", "\n</tool_calls>"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.closing", description=__doc__)
    parser.add_argument("--schemas", type=Path, default=SAMPLE)
    parser.add_argument("--tokenizer", type=Path, default=Path(m1runtime.__file__).parent / "nano")
    parser.add_argument("--every", type=int, default=40, help="try this many budgets from the shortest upwards")
    parser.add_argument("--beyond", type=int, nargs="*", default=[64, 128, 256, 512], help="and these")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        engine = random_engine(Path(folder), options.tokenizer, options.seed)
        outcomes = run(engine, options)
    report.save("closing", {"schemas": options.schemas.name, "vocabulary": engine.config.vocab_size, **outcomes})


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


def run(engine: Engine, options: argparse.Namespace) -> dict[str, Any]:
    """Counts over all schemas and budgets, and the replies that failed."""
    counts: Counter[str] = Counter()
    failures: list[str] = []
    cases = [json.loads(line)["schema"] for line in options.schemas.read_text().splitlines()]
    for schema in tqdm(cases, file=sys.stderr, disable=not sys.stderr.isatty()):
        grammar = Grammar.tool_calls([_tool(one) for one in schema.get("anyOf", [schema])], mode="required")
        assert engine.tokenizer is not None
        shortest = grammar.start(engine.tokenizer, max_new_tokens=10**6).min_tokens
        budgets = [shortest + extra for extra in range(options.every + 1)]
        for budget in [*budgets, *(extra for extra in options.beyond if extra > budgets[-1])]:
            with engine.session([1, 2, 3]) as session:
                params = SamplingParams(max_new_tokens=budget, temperature=1.0, top_p=1.0, seed=options.seed + budget)
                done = session.generate(params, grammar)
            problem, calls = _check(done.text, schema) if done.finish_reason == "stop" else (done.finish_reason, 0)
            counts.update(replies=1, calls=calls, tokens=len(done.ids), forced=done.forced_tokens, failed=bool(problem))
            if problem:
                failures.append(f"budget {budget}, shortest {shortest}: {problem}: {done.text[-200:]}")
    return {**counts, "failures": failures[:5]}


def _tool(schema: dict[str, Any]) -> ToolGrammar:
    properties = schema["properties"]
    return ToolGrammar(properties["name"]["const"], properties["arguments"])


def _check(text: str, schema: dict[str, Any]) -> tuple[str, int]:
    """What is wrong with a reply, and how many calls it makes."""
    body = text.split("</think>", 1)[-1].lstrip("\n") if text.startswith("<think>") else text
    if not (body.startswith(OPEN) and body.endswith(CLOSE)):
        return "not closed", 0
    lines = body[len(OPEN) : -len(CLOSE)].split("\n")
    try:
        for line in lines:
            Draft202012Validator(schema).validate(json.loads(line))
    except (ValueError, ValidationError) as error:
        return str(error).splitlines()[0], len(lines)
    return "", len(lines)


if __name__ == "__main__":
    main()

"""Prefill, decode and tool calls of m1-nano on one CPU thread, the first two against transformers on the same weights.

Run with `python -m benchmarks.decode`.

The peer runs `generate` with its own cache. It rotates whole heads where the model rotates half of each, so its tokens
differ; the work is the same.

Calls: requests of the kinds m1-nano was trained on, from seeds that its training did not see, greedily. Measured is the
reply alone: the prompt, tools and all, is computed before. The model makes the same call with and without the grammar
(others are left out and counted), so the difference is that of the way: token by token; with the runs that the grammar
forces; with drafts as well, which is the default.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

import m1runtime
from benchmarks import report
from m1agent.messages import AssistantMessage
from m1agent.models.local import LocalModel
from m1agent.prompt import template
from m1runtime import Completion, Engine, Grammar, SamplingParams
from m1runtime.grammar import ToolGrammar
from training.data.conversation import dialogue


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decode", description=__doc__)
    parser.add_argument("--model", default="m1-nano")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--calls", type=int, default=60)
    options = parser.parse_args()
    torch.set_num_threads(1)
    engine = Engine.from_pretrained(options.model)
    peer = _peer(_folder(options.model))
    ids = torch.randint(10, 600, (options.prompt,), generator=torch.Generator().manual_seed(0)).tolist()
    prefill = report.paired(lambda: _ours(engine, ids, 1), lambda: _theirs(peer, ids, 1), options.runs)
    whole = report.paired(
        lambda: _ours(engine, ids, options.new + 1), lambda: _theirs(peer, ids, options.new + 1), options.runs
    )
    figures = {"prompt tokens": options.prompt, "new tokens": options.new, "threads": 1}
    for name, first, both in (("m1runtime", prefill[0], whole[0]), ("transformers", prefill[1], whole[1])):
        figures[name] = {
            "prefill tokens/s": round(options.prompt / report.median(first)),
            "decode tokens/s": round(options.new / (report.median(both) - report.median(first))),
        }
    figures["calls"] = calls(engine, options.calls)
    report.save("decode", figures)


WAYS = {"token by token": (False, False), "forced runs": (True, False), "forced runs and drafts": (True, True)}


def calls(engine: Engine, count: int) -> dict[str, object]:
    """Milliseconds and forward passes a call, each way."""
    spent: dict[str, list[float]] = {way: [] for way in WAYS}
    passes = dict.fromkeys(WAYS, 0)
    tokens = differing = 0
    for ids, grammar in _requests(engine, count):
        replies = {
            way: _call(engine, ids, grammar if masked else None, drafts) for way, (masked, drafts) in WAYS.items()
        }
        if len({reply.ids for reply, _, _ in replies.values()}) > 1:
            differing += 1
            continue
        tokens += len(replies["token by token"][0].ids)
        for way, (_, seconds, forwards) in replies.items():
            spent[way].append(seconds)
            passes[way] += forwards
    made = count - differing
    figures: dict[str, object] = {"calls": made, "left out": differing, "tokens a call": round(tokens / made, 1)}
    for way in WAYS:
        figures[way] = {
            "ms a call": round(1e3 * sum(spent[way]) / made, 1),
            "median ms": round(1e3 * report.median(spent[way]), 1),
            "passes a call": round(passes[way] / made, 2),
        }
    figures["times as fast"] = round(sum(spent["token by token"]) / sum(spent["forced runs and drafts"]), 2)
    return figures


def _requests(engine: Engine, count: int) -> Iterator[tuple[list[int], Grammar]]:
    """Prompts that ask for a call, and the grammars of their tools."""
    model, kinds = LocalModel(engine), ("maths", "times", "family")
    for seed in range(9_000_000, 9_100_000):
        one = dialogue(random.Random(seed), held_out=False, kind=kinds[seed % 3], turns=1, rename=0.0, focus=1.0)
        question, wanted = one.messages[:2]
        if not (isinstance(wanted, AssistantMessage) and wanted.calls):
            continue
        pieces = [*template.render_setup(one.setup), *template.render_message(question), *template.render_reply_start()]
        yield model.encode(pieces), Grammar.tool_calls([ToolGrammar(s.name, s.parameters) for s in one.setup.tools])
        count -= 1
        if not count:
            return


def _call(engine: Engine, ids: list[int], grammar: Grammar | None, drafts: bool) -> tuple[Completion, float, int]:
    params = SamplingParams(max_new_tokens=256, temperature=0, drafts=drafts)
    with engine.session(ids) as session:
        before, began = engine.stats().forwards, time.perf_counter()
        reply = session.generate(params, grammar)
        return reply, time.perf_counter() - began, engine.stats().forwards - before


def _ours(engine: Engine, ids: list[int], new: int) -> None:
    greedy = SamplingParams(max_new_tokens=new, temperature=0)
    with engine.session(ids) as session:
        assert len(session.generate(greedy).ids) == new, "the reply ended early: choose other prompt tokens"


def _theirs(model: torch.nn.Module, ids: list[int], new: int) -> None:
    with torch.inference_mode():
        model.generate(torch.tensor([ids]), max_new_tokens=new, min_new_tokens=new, do_sample=False)  # type: ignore[operator]


def _folder(model: str) -> Path:
    return Path(model) if Path(model).is_dir() else Path(m1runtime.__file__).parent / "nano"


def _peer(folder: Path) -> torch.nn.Module:
    """The same checkpoint in transformers' own dialect."""
    from safetensors.torch import load_file, save_file
    from transformers import MiniMaxConfig, MiniMaxForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    raw = json.loads((folder / "config.json").read_text())
    config = MiniMaxConfig(
        **{key: raw[key] for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")},
        **{key: raw[key] for key in ("num_attention_heads", "num_key_value_heads", "num_local_experts")},
        head_dim=raw["head_dim"], rope_theta=raw["rope_theta"],
        layer_types=["full_attention" if kind else "linear_attention" for kind in raw["attn_type_list"]],
        bos_token_id=None, eos_token_id=None, pad_token_id=0,
        **{f"{kind}_{end}_factor": raw[f"layernorm_{hub}_{end}"] for end in ("alpha", "beta")
           for kind, hub in (("full_attn", "full_attention"), ("linear_attn", "linear_attention"), ("mlp", "mlp"))},
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as copy:
        save_file(load_file(folder / "model.safetensors"), Path(copy) / "model.safetensors", metadata={"format": "pt"})
        config.save_pretrained(copy)
        return MiniMaxForCausalLM.from_pretrained(copy, dtype=torch.float32).eval()


if __name__ == "__main__":
    main()

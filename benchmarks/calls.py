"""Tool calls of m1-nano on one CPU thread: token by token, with forced runs, and with drafts as well.

Run with `python -m benchmarks.calls`.

The requests are of the kinds m1-nano was trained on, from seeds that its training did not see; decoding is greedy.
Measured is the reply alone: the prompt, tools and all, is computed before. The model makes the same call with and
without the grammar (others are left out and counted), so the difference is that of the way. The three ways take turns
at each request, so that a slow moment of the machine hits all.
"""

from __future__ import annotations

import argparse
import os
import random
import time
from collections.abc import Iterator

import torch

from benchmarks import report
from m1agent.messages import AssistantMessage
from m1agent.models.local import LocalModel
from m1agent.prompt import template
from m1runtime import Completion, Engine, Grammar, SamplingParams
from m1runtime.grammar import ToolGrammar
from training.data.conversation import dialogue

WAYS = {"token by token": (False, False), "forced runs": (True, False), "forced runs and drafts": (True, True)}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.calls", description=__doc__)
    parser.add_argument("--calls", type=int, default=100)
    options = parser.parse_args()
    torch.set_num_threads(1)
    engine = Engine.from_pretrained("m1-nano")
    for ids, grammar in _requests(engine, 3):
        for masked, drafts in WAYS.values():
            _call(engine, ids, grammar if masked else None, drafts)
    report.save("calls", {"load average": round(os.getloadavg()[0], 1)} | calls(engine, options.calls))


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
    engine.clear_cache()  # Each way begins as the first did.
    with engine.session(ids) as session:
        before, began = engine.stats().forwards, time.perf_counter()
        reply = session.generate(params, grammar)
        return reply, time.perf_counter() - began, engine.stats().forwards - before


if __name__ == "__main__":
    main()

"""Measures a checkpoint on freshly generated requests: `python -m training.evaluate CHECKPOINT --requests 500`.

A reply counts as exact when it makes exactly the expected calls, names, argument names and values alike, or, where no
tool fits, no call at all. An answer counts as exact when the sentence after the tool's result is the expected one.
Decoding is greedy.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from m1agent.messages import AssistantMessage, Message, ToolCall, ToolMessage
from m1agent.models.local import LocalModel
from m1agent.prompt import template
from m1agent.prompt.envelope import Envelope
from m1agent.prompt.reply import ReplyParser
from m1runtime import Engine, Grammar, SamplingParams, Session
from m1runtime.grammar import ToolGrammar
from training.data.conversation import Dialogue, dialogue

# Training draws from small seeds; evaluation starts far away from them.
SEED_BASE = 7_000_000


@dataclass(frozen=True, slots=True)
class Suite:
    """A kind of request: which side of the held-out border, the kind of tool it is for, how often names are invented.

    `focus` 1.0 asks for tools of that kind alone, the others being distractors.
    """

    title: str
    held_out: bool
    kind: str
    rename: float
    focus: float = 1.0


SUITES = {
    "own": (
        Suite("maths", False, "maths", 0.0),
        Suite("time", False, "times", 0.0),
        Suite("everyday tools", False, "family", 0.0),
        Suite("everyday tools", False, "family", 0.0),
    ),
    "unseen": (
        Suite("everyday tools, held-out names and words", True, "family", 0.0),
        Suite("everyday tools, invented names", True, "family", 1.0),
        Suite("invented tools", True, "synthetic", 1.0),
    ),
}


@dataclass(slots=True)
class Score:
    """Counts of one suite."""

    requests: int = 0
    exact: int = 0
    right_tool: int = 0
    answers: int = 0
    exact_answers: int = 0
    tokens: int = 0
    forced: int = 0


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m training.evaluate", description=__doc__)
    parser.add_argument("checkpoint", help="checkpoint folder, or m1-nano")
    parser.add_argument("--requests", type=int, default=500, help="requests a suite")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--suites", nargs="*", default=list(SUITES), choices=list(SUITES))
    parser.add_argument("--grammar", choices=("on", "off", "both"), default="both")
    parser.add_argument("--show", type=int, default=0, help="print this many failures a suite")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    engine = Engine.from_pretrained(options.checkpoint)
    figures = {}
    for name in options.suites:
        for grammar in (True, False) if options.grammar == "both" else (options.grammar == "on",):
            label = f"{name}, {'with' if grammar else 'without'} grammar"
            figures[label] = evaluate(engine, name, options.requests, options.seed, grammar, options.show)
            print(json.dumps({label: figures[label]}, indent=1), flush=True)
    if options.out:
        command = " ".join(["python", "-m", "training.evaluate", *sys.argv[1:]])
        options.out.write_text(json.dumps({"command": command, "figures": figures}, indent=1) + "\n")


def evaluate(engine: Engine, name: str, requests: int, seed: int, grammar: bool, show: int = 0) -> dict[str, object]:
    """Figures of one suite, in all and by kind of request."""
    scores: dict[str, Score] = {}
    for i in tqdm(range(requests), desc=name, file=sys.stderr, disable=not sys.stderr.isatty()):
        suite = SUITES[name][i % len(SUITES[name])]
        rng = random.Random(SEED_BASE + seed * 100_000 + i)
        one = dialogue(rng, held_out=suite.held_out, kind=suite.kind, turns=1, rename=suite.rename, focus=suite.focus)
        problem = _measure(engine, one, grammar, scores.setdefault(suite.title, Score()))
        if problem and show > 0:
            show -= 1
            print(problem, file=sys.stderr, flush=True)
    total = Score()
    for score in scores.values():
        for field, value in asdict(score).items():
            setattr(total, field, getattr(total, field) + value)
    return {"all": _shares(total)} | {title: _shares(score) for title, score in scores.items()}


def _measure(engine: Engine, one: Dialogue, grammar: bool, score: Score) -> str:
    """Runs one conversation's first reply and, if it was right, the answer. Returns what went wrong, if anything."""
    user, wanted, *rest = one.messages
    assert isinstance(wanted, AssistantMessage)
    with engine.session(LocalModel(engine).encode(template.render_setup(one.setup))) as session:
        reply = _reply(engine, session, one, [user], grammar, score)
        score.requests += 1
        score.right_tool += [call.name for call in reply.calls] == [call.name for call in wanted.calls]
        exact = _plain(reply.calls) == _plain(wanted.calls)
        score.exact += exact
        if not exact:
            return f"{user}\n  wanted {_plain(wanted.calls)}\n  got    {_plain(reply.calls)} {reply.text!r}"
        if rest and isinstance(rest[0], ToolMessage) and isinstance(rest[1], AssistantMessage) and not rest[1].calls:
            answer = _reply(engine, session, one, [rest[0]], grammar, score)
            score.answers += 1
            score.exact_answers += answer.text == rest[1].text and not answer.calls
            if answer.text != rest[1].text:
                return f"{user} {rest[0]}\n  wanted {rest[1].text!r}\n  got    {answer.text!r} {_plain(answer.calls)}"
    return ""


def _reply(
    engine: Engine, session: Session, one: Dialogue, new: Sequence[Message], grammar: bool, score: Score
) -> AssistantMessage:
    # The template's newline after an end token that the model wrote.
    pieces = [template.Piece("\n")] if session.tokens[-1] in engine.eos_ids else []
    for message in new:
        pieces += template.render_message(message)
    session.append(LocalModel(engine).encode(pieces + template.render_reply_start()))
    tools = [ToolGrammar(spec.name, spec.parameters) for spec in one.setup.tools]
    constraint = Grammar.tool_calls(tools) if grammar else None
    completion = session.generate(SamplingParams(max_new_tokens=256, temperature=0), constraint)
    score.tokens += len(completion.ids)
    score.forced += completion.forced_tokens
    parser = ReplyParser(Envelope(one.setup.tools))
    parser.feed(completion.text)
    return parser.finish()[1]


def _plain(calls: Sequence[ToolCall]) -> list[tuple[str, object]]:
    return [(call.name, call.problem or call.arguments) for call in calls]


def _shares(score: Score) -> dict[str, object]:
    return {
        "requests": score.requests,
        "exact calls %": round(100 * score.exact / max(score.requests, 1), 1),
        "right tool %": round(100 * score.right_tool / max(score.requests, 1), 1),
        "exact answers %": round(100 * score.exact_answers / max(score.answers, 1), 1),
        "forced tokens %": round(100 * score.forced / max(score.tokens, 1), 1),
    }


if __name__ == "__main__":
    main()

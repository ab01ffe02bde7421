"""An agent loop through the engine's memory: tokens computed, time to first token, and forks, on one CPU thread.

Run with `python -m benchmarks.engine_agent_loop`: 40 turns from a prefix of 512, and forks of a session of 32k tokens.
With `--long` the turns go to 45k tokens.

A turn is a reply and a tool's result after it; the recorded reply is fed back, so that nothing can diverge. Irreducible
are the tokens that no engine could know before: the prefix, every result, and every reply but the last. The peer is
transformers' `generate` on the same weights. It cannot go on from its own cache in this layout (its first layer is no
softmax layer), so it reads the whole history at every turn; it runs on some of the turns. The machine may be shared, so
times are the process' CPU seconds.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import report
from benchmarks.decode import peer_of
from benchmarks.engine_decode import MODELS, write_model
from m1runtime import Engine, SamplingParams

VOCABULARY = 4096
PARTS = ("loop", "stateless", "fork", "transformers")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine_agent_loop", description=__doc__)
    parser.add_argument("--turns", type=int, default=40)
    parser.add_argument("--prefix", type=int, default=512)
    parser.add_argument("--result", type=int, default=64, help="tokens of a tool's result")
    parser.add_argument("--reply", type=int, default=24, help="tokens of a reply")
    parser.add_argument("--long", action="store_true", help="prefix 6,144, results 740, replies 230: ends at 45k")
    parser.add_argument("--fork", type=int, default=32768, help="tokens of the session that is forked")
    parser.add_argument("--peer-turns", type=int, default=4, help="turns that transformers runs, too")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    options = parser.parse_args()
    if options.long:
        options.prefix, options.result, options.reply = 6144, 740, 230
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder), MODELS["17M"] | {"max_position_embeddings": 1 << 17})
        engine = Engine.from_pretrained(folder, device="cpu", progress=False)
        figures: dict[str, Any] = {"threads": 1, "parameters": engine.stats().weight_bytes // 4}
        works = (lambda: loop(engine, options), lambda: stateless(engine, options))
        works += (lambda: fork(engine, options.fork), lambda: peer(Path(folder), options))
        for part, work in zip(PARTS, works, strict=True):
            if part in options.parts:
                figures[part] = work()
    report.save("engine_agent_loop" + ("_long" if options.long else ""), figures, module="engine_agent_loop")


def loop(engine: Engine, options: argparse.Namespace) -> dict[str, Any]:
    """One live session, a turn at a time."""
    before, times, lengths = engine.stats(), list[float](), list[int]()
    greedy = SamplingParams(max_new_tokens=options.reply - 1, temperature=0)
    with engine.session(tokens(options.prefix, 0)) as session:
        irreducible = options.prefix
        for turn in range(options.turns):
            result = tokens(options.result, turn + 1)
            began = time.process_time()
            session.append(result)
            session.generate(SamplingParams(max_new_tokens=1, temperature=0))
            times.append(time.process_time() - began)
            lengths.append(session.length)
            session.generate(greedy)
            irreducible += options.result + options.reply
        irreducible -= 1  # The last token has no successor.
        after = engine.stats()
    return accounts(before, after, irreducible) | first_tokens(times, lengths)


def stateless(engine: Engine, options: argparse.Namespace) -> dict[str, Any]:
    """The same through whole prompts, as a server without sessions gets them: the prefix tree finds them."""
    engine.clear_cache()
    before, ids, irreducible = engine.stats(), tokens(options.prefix, 0), options.prefix
    greedy = SamplingParams(max_new_tokens=options.reply, temperature=0)
    for turn in range(options.turns):
        ids += tokens(options.result, turn + 1)
        (reply,) = engine.generate([ids], greedy)
        ids += reply.ids
        irreducible += options.result + options.reply
    return accounts(before, engine.stats(), irreducible - 1)


def fork(engine: Engine, length: int) -> dict[str, Any]:
    """Forks of a live session: seconds and bytes each, and tokens computed again."""
    with engine.session(tokens(length, 7)) as session:
        before = engine.stats()
        began = time.process_time()
        children = [session.fork() for _ in range(16)]
        forked = (time.process_time() - began) / 16
        held = engine.stats()
        began = time.process_time()
        for n, child in enumerate(children):
            child.append([n + 5])
        written = (time.process_time() - began) / 16
        after = engine.stats()
        for child in children:
            child.close()
    taken = after.pages - before.pages
    return {
        "session tokens": length,
        "milliseconds a fork": round(1000 * forked, 3),
        "milliseconds with its first token": round(1000 * written, 3),
        "pages and slots taken by a fork": (held.pages - before.pages, held.slots - before.slots),
        "state bytes when it computes": (after.state_bytes - before.state_bytes) // 16,
        "pages when it computes": taken / 16,
        "tokens computed": after.tokens_computed - before.tokens_computed - 16,
        "tokens recomputed": sum(after.tokens_recomputed.values()) - sum(before.tokens_recomputed.values()),
    }


def peer(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Time to first token of turns spread over the loop, with the whole history as the prompt."""
    model = peer_of(folder)
    step = options.result + options.reply
    turns = np.linspace(1, options.turns, options.peer_turns).round().astype(int)
    lengths = [options.prefix + int(turn) * step - options.reply for turn in turns]
    times = [seconds(lambda n=n: first(model, tokens(n, 3))) for n in lengths]
    computed = sum(options.prefix + turn * step - options.reply for turn in range(1, options.turns + 1))
    irreducible = options.prefix + options.turns * step - 1
    return {
        "turns": [int(turn) for turn in turns],
        "history tokens": lengths,
        "ms to first token": [round(1000 * value, 1) for value in times],
        "tokens computed / irreducible": round((computed + options.turns * (options.reply - 1)) / irreducible, 2),
    }


def first(model: torch.nn.Module, ids: list[int]) -> None:
    """One token after a prompt."""
    with torch.inference_mode():
        model.generate(torch.tensor([ids]), max_new_tokens=1, min_new_tokens=1, do_sample=False)  # type: ignore[operator]


def accounts(before: Any, after: Any, irreducible: int) -> dict[str, Any]:
    """Tokens computed against those that had to be."""
    computed = after.tokens_computed - before.tokens_computed
    causes = {c: n - before.tokens_recomputed.get(c, 0) for c, n in after.tokens_recomputed.items()}
    return {
        "tokens computed": computed,
        "irreducible": irreducible,
        "computed / irreducible": round(computed / irreducible, 4),
        "recomputed": {cause: count for cause, count in causes.items() if count},
    }


def first_tokens(times: list[float], lengths: list[int]) -> dict[str, Any]:
    """Time to first token, and the slope of a robust fit over the history's length."""
    values = np.array(times) * 1000
    slope, error = theil_sen(np.array(lengths), values)
    return {
        "history tokens": [lengths[0], lengths[-1]],
        "ms to first token, p50 and p95": [round(float(np.quantile(values, q)), 2) for q in (0.5, 0.95)],
        "ms in the first and the last quarter": [
            round(float(np.median(part)), 2) for part in (values[: len(values) // 4], values[-len(values) // 4 :])
        ],
        "slope, us a token of history": [round(1000 * slope, 3), f"90 % within {1000 * error:.3f}"],
    }


def theil_sen(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """The median of all slopes, and half its 90 % interval by resampling: a busy machine makes outliers."""
    random = np.random.default_rng(0)

    def slope(pick: np.ndarray) -> float:
        i, j = np.triu_indices(len(pick), 1)
        dx, dy = x[pick][j] - x[pick][i], y[pick][j] - y[pick][i]
        return float(np.median(dy[dx != 0] / dx[dx != 0]))

    draws = [slope(np.sort(random.integers(0, len(x), len(x)))) for _ in range(200)]
    low, high = np.quantile(draws, [0.05, 0.95])
    return slope(np.arange(len(x))), float(high - low) / 2


def seconds(work: Callable[[], object]) -> float:
    """CPU seconds, the faster of two runs."""
    spent: list[float] = []
    for _ in range(2):
        began = time.process_time()
        work()
        spent.append(time.process_time() - began)
    return min(spent)


def tokens(count: int, seed: int) -> list[int]:
    """Random tokens."""
    return torch.randint(10, VOCABULARY, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


if __name__ == "__main__":
    main()

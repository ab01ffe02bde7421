"""Many agents at once on one engine, with cancellations, forks, rewinds and too little memory.

Run with `python -m benchmarks.engine_load`. Every agent keeps a session and takes turns: it appends tokens, lets the
engine reply, and now and then stops the reply midway, goes on in a fork, takes the last turn back, or lets several
branches run and keeps one. Each reply is then checked against one uncached forward pass over all of its session's
tokens: every token must be the likeliest after those before it, as it is when the agent runs alone. A second check runs
some of the agents again, one after the other on a fresh engine. Where two tokens are as likely as each other within
`TIE`, either is right.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import resource
import time
from dataclasses import dataclass, field

import torch

from benchmarks import report
from m1runtime import Engine, SamplingParams, Session

TIE = 1e-3


@dataclass(slots=True)
class Turn:
    """A reply as it came: all tokens up to its end, and how many of them it wrote."""

    tokens: tuple[int, ...]
    written: int


@dataclass(slots=True)
class Diary:
    """What one agent saw."""

    seed: int
    turns: list[Turn] = field(default_factory=list[Turn])
    waits: list[float] = field(default_factory=list[float])  # seconds to the first token
    counts: dict[str, int] = field(default_factory=dict[str, int])

    def count(self, name: str) -> None:
        """One more of it."""
        self.counts[name] = self.counts.get(name, 0) + 1


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine_load", description=__doc__)
    parser.add_argument("--model", default="m1-nano")
    parser.add_argument("--agents", type=int, default=64)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--turns", type=int, default=12, help="turns of an agent before another takes its place")
    parser.add_argument("--megabytes", type=float, default=48, help="of cache; less than the agents want")
    parser.add_argument("--again", type=int, default=8, help="agents that are run once more, alone")
    options = parser.parse_args()
    torch.set_num_threads(1)
    engine = Engine.from_pretrained(
        options.model, device="cpu", progress=False, cache_memory=int(options.megabytes * 2**20)
    )
    began = time.monotonic()
    diaries = asyncio.run(crowd(engine, options.agents, options.turns, began + 60 * options.minutes))
    spent = time.monotonic() - began
    stats = engine.stats()
    engine.clear_cache()
    left = engine.stats()
    wrong, ties = checked(engine, diaries)
    alone = Engine.from_pretrained(options.model, device="cpu", progress=False)
    differ = sum(again(alone, diary, options.turns) for diary in finished(diaries, options.turns)[: options.again])
    waits = sorted(wait for diary in diaries for wait in diary.waits)
    report.save(
        "engine_load",
        {
            "agents at a time": options.agents,
            "seconds": round(spent),
            "agents": len(diaries),
            "turns": sum(len(diary.turns) for diary in diaries),
            "what they did": _totals(diaries),
            "tokens written": sum(turn.written for diary in diaries for turn in diary.turns),
            "tokens/s through the model": round(stats.tokens_computed / spent),
            "tokens a forward pass": round(stats.tokens_computed / max(1, stats.forwards), 1),
            "replies not equal to an uncached forward": wrong,
            "tokens as likely as another": ties,
            "agents run alone that differ": differ,
            "first token, ms": {name: round(1e3 * waits[int(q * (len(waits) - 1))]) for name, q in QUANTILES.items()},
            "computed twice": stats.tokens_recomputed,
            "cache hits": stats.cache_hits,
            "boundaries evicted": stats.evicted,
            "sessions preempted": stats.preempted,
            "left at the end": {"sessions": left.sessions, "pages": left.pages, "slots": left.slots},
            "peak RSS, MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
        },
    )


QUANTILES = {"p50": 0.5, "p99": 0.99, "max": 1.0}


async def crowd(engine: Engine, agents: int, turns: int, until: float) -> list[Diary]:
    """`agents` at a time, one after the other until the time is up."""
    diaries: list[Diary] = []

    async def place() -> None:
        while time.monotonic() < until:
            diary = Diary(len(diaries))
            diaries.append(diary)
            await agent(engine, diary, turns, until)

    await asyncio.gather(*[place() for _ in range(agents)])
    return diaries


async def agent(engine: Engine, diary: Diary, turns: int, until: float = float("inf")) -> None:
    """One agent; what it does depends on its seed and nothing else."""
    rng = random.Random(diary.seed)
    vocabulary = min(engine.config.vocab_size, 600)
    shared = [random.Random(diary.seed % 4).randrange(10, vocabulary) for _ in range(150)]
    session = engine.session()
    try:
        await session.aappend(shared, boundaries=[len(shared)])
        for _ in range(turns):
            if time.monotonic() > until:
                return
            await session.aappend([rng.randrange(10, vocabulary) for _ in range(rng.randrange(5, 80))])
            session = await turn(session, diary, rng)
    finally:
        session.close()


async def turn(session: Session, diary: Diary, rng: random.Random) -> Session:
    """A reply, and what may come of it."""
    start, params = session.length, SamplingParams(max_new_tokens=rng.randrange(4, 48), temperature=0)
    what = rng.choices(("reply", "cancel", "fork", "rewind", "branches"), (10, 3, 3, 3, 1))[0]
    diary.count(what)
    if what == "branches":
        branches = await session.abranches(3, params)
        keep = rng.randrange(3)
        for n, branch in enumerate(branches):
            diary.turns.append(Turn(branch.session.tokens, len(branch.completion.ids)))
            if n != keep:
                branch.session.close()
        session.close()
        return branches[keep].session
    if what == "fork":
        parent, session = session, session.fork()
        parent.close()
    await reply(session, diary, params, rng.randrange(1, 8) if what == "cancel" else None)
    if what == "rewind":
        session.rewind(rng.choice((start, rng.randrange(start, session.length + 1))))
    return session


async def reply(session: Session, diary: Diary, params: SamplingParams, most: int | None) -> None:
    """One reply; of `most` tokens or hardly more where it is given."""
    start, began = session.length, time.monotonic()
    stream = session.stream(params)
    written = 0
    async for chunk in stream:
        if not written:
            diary.waits.append(time.monotonic() - began)
        written += len(chunk.ids)
        if most is not None and written >= most:
            break
    await stream.aclose()
    assert session.length - start in (written, written + 1)  # an end token is not part of the reply
    diary.turns.append(Turn(session.tokens[: start + written], written))


def checked(engine: Engine, diaries: list[Diary]) -> tuple[int, int]:
    """Replies with a token that is not the likeliest, and tokens beside which another is as likely."""
    wrong = ties = 0
    for diary in diaries:
        for turn in diary.turns:
            if not turn.written:
                continue
            rows = engine.score(turn.tokens)[-turn.written - 1 : -1]
            behind = rows.max(-1).values - rows.gather(-1, torch.tensor(turn.tokens[-turn.written :])[:, None])[:, 0]
            wrong += bool((behind > TIE).any())
            ties += int(((behind > 0) & (behind <= TIE)).sum())
    return wrong, ties


def finished(diaries: list[Diary], turns: int) -> list[Diary]:
    """Those that took all their turns."""
    return [diary for diary in diaries if sum(diary.counts.values()) == turns]


def again(engine: Engine, diary: Diary, turns: int) -> bool:
    """Whether an agent that has the engine for itself sees anything else."""
    alone = Diary(diary.seed)
    asyncio.run(agent(engine, alone, turns))
    return [turn.tokens for turn in alone.turns] != [turn.tokens for turn in diary.turns]


def _totals(diaries: list[Diary]) -> dict[str, int]:
    totals: dict[str, int] = {}
    for diary in diaries:
        for name, count in diary.counts.items():
            totals[name] = totals.get(name, 0) + count
    return totals


if __name__ == "__main__":
    main()

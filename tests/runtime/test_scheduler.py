"""Many callers, one model: each gets what it would get alone, in a fair order, and can leave at any time."""

import asyncio
import gc
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from m1runtime import ClosedError, Engine, SamplingError, SamplingParams, SessionError
from m1runtime.layers import SoftmaxAttention
from m1runtime.stream import AHEAD

checked = settings(max_examples=25, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def greedy(count: int, **more: Any) -> SamplingParams:
    return SamplingParams(max_new_tokens=count, temperature=0, **more)


@pytest.fixture(scope="module")
def engine(
    checkpoint: Callable[..., Any], write: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Engine:
    folder = write(tmp_path_factory.mktemp("scheduler"), *checkpoint(seed=3))
    return Engine.from_pretrained(folder, device="cpu", progress=False, prefill_chunk=64, mixed_chunk=16, batch=5)


def eventually(holds: Callable[[], bool]) -> bool:
    end = time.monotonic() + 20
    while not holds() and time.monotonic() < end:
        time.sleep(0.01)
    return holds()


def idle(engine: Engine) -> bool:
    gc.collect()
    return engine.stats().sessions == 0


jobs = st.lists(
    st.tuples(st.lists(st.integers(0, 96), min_size=1, max_size=200), st.integers(1, 12), st.integers(-2, 2)),
    min_size=1,
    max_size=9,
)


@checked
@given(jobs=jobs, seed=st.none() | st.integers(0, 9))
def test_everyone_gets_what_they_would_get_alone(
    engine: Engine, jobs: list[tuple[list[int], int, int]], seed: int | None
) -> None:
    def params(count: int) -> SamplingParams:
        return greedy(count) if seed is None else SamplingParams(max_new_tokens=count, seed=seed)

    alone = [engine.generate([ids], params(count))[0].ids for ids, count, _ in jobs]

    async def together() -> list[tuple[int, ...]]:
        work = [engine.agenerate([ids], params(count), priority=priority) for ids, count, priority in jobs]
        return [completions[0].ids for completions in await asyncio.gather(*work)]

    assert asyncio.run(together()) == alone
    assert idle(engine)


def test_prompts_of_one_call_come_back_in_order(engine: Engine) -> None:
    prompts = [[n, n + 1, *range(n % 7)] for n in range(20)]
    assert engine.generate(prompts, greedy(5)) == [engine.generate([prompt], greedy(5))[0] for prompt in prompts]


def test_a_stream_is_read_by_a_thread_or_by_a_coroutine(engine: Engine) -> None:
    async def read() -> list[int]:
        return [token async for chunk in engine.stream(range(30), greedy(20)) for token in chunk.ids]

    async def several() -> list[list[int]]:
        return await asyncio.gather(*[read() for _ in range(8)])

    expected = [token for chunk in engine.stream(range(30), greedy(20)) for token in chunk.ids]
    assert len(expected) == 20
    assert asyncio.run(several()) == [expected] * 8


def test_a_turn_of_a_session_in_a_coroutine(engine: Engine) -> None:
    async def turns() -> tuple[int, ...]:
        with engine.session() as session:
            await session.aappend(range(90))
            async for _ in session.stream(greedy(5)):
                pass
            await session.aappend([1, 2])
            assert (session.logits - engine.score(session.tokens)[-1]).abs().max() < 1e-5
            return session.tokens

    with engine.session(range(90)) as session:
        session.generate(greedy(5))
        session.append([1, 2])
        assert asyncio.run(turns()) == session.tokens


def test_a_cancelled_task_frees_its_session_and_leaves_the_others_alone(engine: Engine) -> None:
    expected = engine.generate([[1, 2, 3]], greedy(40))

    async def run() -> None:
        others = [asyncio.create_task(engine.agenerate([[1, 2, 3]], greedy(40))) for _ in range(3)]
        gone = [asyncio.create_task(engine.agenerate([[n] * 300, [n]], greedy(2000))) for n in range(4)]
        await asyncio.sleep(0.05)
        for task in gone:
            task.cancel()
        assert await asyncio.gather(*others) == [expected] * 3
        ended = await asyncio.gather(*gone, return_exceptions=True)
        assert all(isinstance(end, asyncio.CancelledError) for end in ended)

    asyncio.run(run())
    assert eventually(lambda: idle(engine))


def test_a_cancelled_append_leaves_a_session_that_goes_on(engine: Engine) -> None:
    async def run() -> None:
        with engine.session([5]) as session:
            task = asyncio.create_task(session.aappend(list(range(90)) * 30))
            await asyncio.sleep(0.02)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert session.length == 2701
            assert (session.logits - engine.score(session.tokens)[-1]).abs().max() < 1e-5

    asyncio.run(run())


def test_a_slow_reader_gets_no_further_ahead_than_said(engine: Engine) -> None:
    with engine.session([1, 2, 3]) as session:
        start, before = engine.stats().tokens_computed, -1
        stream = session.stream(greedy(500))
        first = next(stream)
        while before != (before := engine.stats().tokens_computed):
            time.sleep(0.1)
        assert engine.stats().tokens_computed - start <= AHEAD + 2
        assert session.tokens == (1, 2, 3, *first.ids)
        stream.close()
        assert session.tokens == (1, 2, 3, *first.ids)
        assert stream.completion.ids == first.ids
        assert (session.logits - engine.score(session.tokens)[-1]).abs().max() < 1e-5


def test_a_stream_that_is_dropped_leaves_its_session_where_it_was_read_to(engine: Engine) -> None:
    with engine.session([1, 2, 3]) as session:
        stream = session.stream(greedy(500))
        got = [token for _ in range(3) for token in next(stream).ids]
        del stream
        session.append([7])
        assert session.tokens == (1, 2, 3, *got, 7)
        assert (session.logits - engine.score(session.tokens)[-1]).abs().max() < 1e-5
    next(engine.stream([1], greedy(500)))
    assert eventually(lambda: idle(engine))


def test_the_higher_priority_goes_first(
    checkpoint: Callable[..., Any], write: Callable[..., Path], tmp_path: Path
) -> None:
    engine = Engine.from_pretrained(write(tmp_path, *checkpoint()), device="cpu", progress=False, batch=1)
    ended: list[str] = []

    async def one(name: str, priority: int) -> None:
        await engine.agenerate([[1, 2]], greedy(30), priority=priority)
        ended.append(name)

    async def run() -> None:
        await asyncio.gather(one("first", 0), one("later", 0), one("low", -1), one("high", 1))

    asyncio.run(run())
    assert ended.index("high") <= 1
    assert ended[-2:] == ["later", "low"]


def test_a_long_prompt_is_not_kept_waiting_by_short_ones(engine: Engine) -> None:
    async def run() -> None:
        long = asyncio.create_task(engine.agenerate([list(range(90)) * 10], greedy(1)))
        while not long.done():
            await asyncio.gather(*[engine.agenerate([[n] * 80], greedy(2), priority=1) for n in range(4)])

    asyncio.run(asyncio.wait_for(run(), 60))


def test_what_fails_for_one_does_not_fail_for_the_others(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = engine.generate([[1, 2, 3]], greedy(10))
    attend = SoftmaxAttention.__call__

    def poisoned(self: SoftmaxAttention, n: torch.Tensor, batch: Any, *rest: Any) -> torch.Tensor:
        if bool((batch.ids == 66).any()):
            raise RuntimeError("token 66")
        return attend(self, n, batch, *rest)

    async def run() -> None:
        good = [asyncio.create_task(engine.agenerate([[1, 2, 3]], greedy(10))) for _ in range(3)]
        bad = asyncio.create_task(engine.agenerate([[66] * 5], greedy(10)))
        assert await asyncio.gather(*good) == [expected] * 3
        with pytest.raises(RuntimeError, match="token 66"):
            await bad

    monkeypatch.setattr(SoftmaxAttention, "__call__", poisoned)
    asyncio.run(run())
    assert eventually(lambda: idle(engine))


def test_a_session_that_closes_ends_only_its_own_reply(engine: Engine) -> None:
    expected = engine.generate([[4, 5]], greedy(60))[0].ids
    session = engine.session([1, 2, 3])
    stream = session.stream(greedy(3000))
    other = engine.stream([4, 5], greedy(60))
    next(stream)
    next(other)
    session.close()
    got = [token for chunk in other for token in chunk.ids]
    assert other.completion.ids == expected
    assert tuple(got) == expected[-len(got) :]
    with pytest.raises(ClosedError):
        session.append([1])


def test_a_session_is_one_callers_at_a_time(engine: Engine) -> None:
    with engine.session([1, 2, 3]) as session:
        stream = session.stream(greedy(50))
        next(stream)
        with pytest.raises(SessionError, match="being generated"):
            asyncio.run(session.aappend([1]))
        stream.close()


def test_an_engine_that_is_dropped_ends_its_thread(
    checkpoint: Callable[..., Any], write: Callable[..., Path], tmp_path: Path
) -> None:
    before = {thread for thread in threading.enumerate() if thread.name == "m1runtime engine"}
    engine = Engine.from_pretrained(write(tmp_path, *checkpoint()), device="cpu", progress=False)
    engine.generate([[1]], greedy(2))
    (made,) = {thread for thread in threading.enumerate() if thread.name == "m1runtime engine"} - before
    del engine
    gc.collect()
    made.join(20)
    assert not made.is_alive()


def test_a_closed_engine_ends_what_is_under_way(
    checkpoint: Callable[..., Any], write: Callable[..., Path], tmp_path: Path
) -> None:
    with Engine.from_pretrained(write(tmp_path, *checkpoint()), device="cpu", progress=False) as engine:
        stream = engine.stream([1, 2], greedy(3000))
        next(stream)
    with pytest.raises(ClosedError, match="the engine is closed"):
        for _ in stream:
            pass
    with pytest.raises(ClosedError, match="the engine is closed"):
        engine.generate([[1]], greedy(2))
    engine.close()


LEAVING = """
import sys
from m1runtime import Engine, SamplingParams
engine = Engine.from_pretrained(sys.argv[1], device="cpu", progress=False)
stream = engine.stream([1, 2], SamplingParams(max_new_tokens=3000, temperature=0))
next(stream)
print("leaving")
"""


def test_a_program_that_ends_in_the_middle_of_a_reply_ends_well(tiny_folder: Path) -> None:
    done = subprocess.run([sys.executable, "-c", LEAVING, str(tiny_folder)], capture_output=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"leaving\n", b"")


def test_branches_share_a_past_and_nothing_of_it_is_computed_again(engine: Engine) -> None:
    with engine.session(range(90)) as session:
        _ = session.logits
        before = engine.stats().tokens_computed
        params = SamplingParams(max_new_tokens=8, seed=5)
        branches = session.branches(4, params)
        assert engine.stats().tokens_computed - before <= 4 * 8
        assert session.length == 90
        for n, branch in enumerate(branches):
            assert branch.session.tokens == (*range(90), *branch.completion.ids)
            alone = engine.generate([range(90)], SamplingParams(max_new_tokens=8, seed=5 + n))[0]
            assert branch.completion.ids == alone.ids
            assert (branch.session.logits - engine.score(branch.session.tokens)[-1]).abs().max() < 1e-5
        again = asyncio.run(session.abranches(4, params))
        assert [branch.completion for branch in again] == [branch.completion for branch in branches]
        with pytest.raises(SessionError, match="at least one"):
            session.branches(0)


def test_the_best_of_several_becomes_the_session(engine: Engine) -> None:
    params = SamplingParams(max_new_tokens=6, seed=1, logprobs=0)
    with engine.session(range(40)) as session:
        replies = [branch.completion for branch in session.branches(5, params)]
        best = session.best_of(5, params)
        assert best == max(replies, key=lambda reply: sum(token.logprob for token in reply.logprobs))
        assert session.tokens == (*range(40), *best.ids)
        assert (session.logits - engine.score(session.tokens)[-1]).abs().max() < 1e-5
        session.rewind(40)
        assert session.best_of(5, params, score=lambda reply: -reply.ids[0]).ids[0] == min(r.ids[0] for r in replies)
    assert eventually(lambda: idle(engine))


def test_how_likely_each_token_was(engine: Engine) -> None:
    prompt = list(range(20))
    reply = engine.generate([prompt], greedy(10, logprobs=3))[0]
    logprobs = engine.score([*prompt, *reply.ids]).log_softmax(-1)[len(prompt) - 1 : -1]
    for token, told, row in zip(reply.ids, reply.logprobs, logprobs, strict=True):
        values, ids = row.topk(3)
        assert told.token == token == told.top[0][0]
        assert [id for id, _ in told.top] == ids.tolist()
        assert [value for _, value in told.top] == pytest.approx(values.tolist(), abs=1e-4)
        assert told.logprob == pytest.approx(float(row[token]), abs=1e-4)
    chunks = list(engine.stream(prompt, greedy(10, logprobs=3)))
    assert tuple(told for chunk in chunks for told in chunk.logprobs) == reply.logprobs
    assert engine.generate([prompt], greedy(10))[0].logprobs == ()
    with pytest.raises(SamplingError, match="logprobs=21"):
        greedy(1, logprobs=21)

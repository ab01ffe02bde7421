"""Caches under one bound: what goes first, what is told, and that nothing is lost."""

from pathlib import Path

import pytest
import torch

from m1runtime import CacheFullError, Engine, ModelConfig, SamplingParams, Session
from m1runtime.memory import Wish, plan_memory

GREEDY = SamplingParams(max_new_tokens=6, temperature=0)
PROMPT = [n * 7 % 90 for n in range(200)]


@pytest.fixture(scope="module")
def sizes(tiny_folder: Path) -> tuple[int, int]:
    """Bytes of a slot and of a page."""
    store = Engine.from_pretrained(tiny_folder, device="cpu", progress=False)._executor.store
    return store.states.bytes_per_slot, store.pages.bytes_per_page


def bounded(folder: Path, cache_memory: int) -> Engine:
    return Engine.from_pretrained(folder, device="cpu", progress=False, cache_memory=cache_memory)


def follows(session: Session, engine: Engine) -> bool:
    return bool((session.logits - engine.score(session.tokens)[-1]).abs().max() < 1e-5)


def within(engine: Engine) -> bool:
    stats = engine.stats()
    assert stats.cache_memory is not None
    return stats.cache_bytes <= stats.cache_memory


def test_many_sessions_stay_within_the_bound(tiny_folder: Path, sizes: tuple[int, int]) -> None:
    slot, page = sizes
    engine = bounded(tiny_folder, 4 * slot + 20 * page)
    for n in range(30):
        with engine.session([n, *PROMPT[: 10 * n % 170 + 20]]) as session:
            session.generate(GREEDY)
            assert follows(session, engine)
            assert within(engine)
    stats = engine.stats()
    assert stats.evicted > 20
    assert stats.evicted_bytes > 0
    assert stats.boundaries
    engine.clear_cache()
    assert (engine.stats().pages, engine.stats().slots) == (0, 0)


def test_what_was_evicted_is_counted_when_it_is_computed_again(tiny_folder: Path, sizes: tuple[int, int]) -> None:
    slot, page = sizes
    engine = bounded(tiny_folder, 3 * slot + 12 * page)
    engine.session(PROMPT).close()
    for n in range(6):
        engine.session([90 - n] * 256).close()
    before = engine.stats()
    assert before.evicted
    with engine.session([*PROMPT, 5]) as session:
        assert follows(session, engine)
    assert engine.stats().tokens_recomputed == {"evicted": 200}


def test_sessions_at_rest_give_way_and_come_back(tiny_folder: Path, sizes: tuple[int, int]) -> None:
    slot, page = sizes
    engine = bounded(tiny_folder, 3 * slot + 10 * page)
    sessions = [engine.session([n, *PROMPT]) for n in range(6)]
    for _ in range(3):
        for n, session in enumerate(sessions):
            session.append([n, 1])
            assert within(engine)
    for session in sessions:
        assert follows(session, engine)
        session.close()
    stats = engine.stats()
    assert stats.preempted
    assert stats.tokens_recomputed.keys() <= {"preempted", "evicted"}


def test_a_session_that_cannot_fit_alone_is_told_and_loses_nothing(tiny_folder: Path, sizes: tuple[int, int]) -> None:
    slot, page = sizes
    limit = 2 * slot + 6 * page
    engine = bounded(tiny_folder, limit)
    with engine.session(PROMPT) as session:
        with pytest.raises(CacheFullError, match=f"cache_memory={limit:,} cannot hold") as caught:
            session.append(PROMPT * 10)
        assert caught.value.needed > limit
        assert f"raise cache_memory to {caught.value.needed:,}" in str(caught.value)
        assert session.tokens == tuple(PROMPT)
        session.append([1, 2])
        assert follows(session, engine)


def test_reserve_and_preempt(tiny_folder: Path, sizes: tuple[int, int]) -> None:
    slot, page = sizes
    engine = bounded(tiny_folder, 4 * slot + 20 * page)
    executor = engine._executor
    with engine.session(PROMPT) as first, engine.session(PROMPT[:70]) as second:
        assert executor.reserve(first._sequence, 60)
        assert not executor.reserve(first._sequence, 5000)
        assert engine.stats().evicted == 0
        assert first.tokens == tuple(PROMPT)
        executor.preempt(second._sequence)
        assert engine.stats().slots == 1
        second.append([4])
        assert follows(second, engine)
        assert follows(first, engine)
    assert engine.stats().preempted == 1


def test_commits_outlast_other_boundaries(tiny_folder: Path, sizes: tuple[int, int]) -> None:
    slot, page = sizes
    engine = bounded(tiny_folder, 3 * slot + 16 * page)
    with engine.session(PROMPT[:130]) as session:
        session.commit()
        session.append(PROMPT)
        for n in range(8):
            engine.session([89 - n] * 140).close()
        assert engine.stats().evicted
        session.rewind(130)
        session.append([7])
        assert follows(session, engine)
        assert engine.stats().tokens_recomputed == {}


def test_the_plan_counts_what_a_session_takes(tiny_folder: Path, sizes: tuple[int, int]) -> None:
    wish = Wish(torch.float32, context=1024)
    plan = plan_memory(ModelConfig.from_file(tiny_folder), wish, device="cpu", available=2**30)
    assert (plan.state_per_session + plan.ring_per_session, 64 * plan.kv_per_token) == sizes

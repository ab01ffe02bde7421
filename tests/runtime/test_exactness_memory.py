"""Whatever happens to caches, in whatever order and over several sessions: the same as one uncached forward pass."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from m1runtime import Engine, SamplingParams, Session

TOLERANCE = 1e-5
TINY = Path(__file__).parents[1] / "data" / "tiny-m1"
checked = settings(max_examples=25, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
LAYERS = {"hybrid": [0, 1, 0, 1], "lightning": [0, 0, 0, 0], "softmax": [1, 1, 1, 1]}
BASE = [n * 11 % 97 for n in range(150)]  # Sessions share it, or a part.


@pytest.fixture(scope="module", params=[*LAYERS, "tiny-m1"])
def folder(
    request: pytest.FixtureRequest,
    checkpoint: Callable[..., Any],
    write: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    if request.param == "tiny-m1":
        return TINY
    return write(tmp_path_factory.mktemp("memory"), *checkpoint(seed=3, attn_type_list=LAYERS[request.param]))


def opened(folder: Path, cold: Path, room: int) -> Engine:
    """An engine with room for three sessions and `room` pages."""
    engine = Engine.from_pretrained(folder, device="cpu", progress=False, prefill_chunk=90, cold=cold)
    store = engine._executor.store
    store.limit = 3 * store.states.bytes_per_slot + room * max(store.pages.bytes_per_page, 1)
    return engine


session_number = st.integers(0, 3)
step = st.one_of(
    st.tuples(st.just("open"), st.integers(0, 150), st.integers(0, 96)),
    st.tuples(st.just("append"), session_number, st.lists(st.integers(0, 96), min_size=1, max_size=80)),
    st.tuples(st.just("generate"), session_number, st.integers(1, 9)),
    st.tuples(st.just("rewind"), session_number, st.integers(1, 120)),
    st.tuples(st.sampled_from(["fork", "commit", "preempt", "save", "close"]), session_number, st.just(0)),
    st.tuples(st.sampled_from(["evict", "clear", "restart"]), st.just(0), st.just(0)),
)


class Play:
    """Several sessions of one engine, and the tokens they must have."""

    def __init__(self, engine: Callable[[], Engine]) -> None:
        self._open = engine
        self.engine = engine()
        self.live: list[tuple[Session, list[int]]] = []

    def take(self, name: str, which: int, value: Any) -> None:
        if name == "open":
            ids = [*BASE[:which], value]
            self.live.append((self.engine.session(ids), ids))
        elif name == "evict":
            self.engine._executor.store._evict(protected=False)
        elif name == "clear":
            self.engine.clear_cache()
        elif name == "restart":
            self.restart()
        elif self.live:
            self.one(name, which % len(self.live), value)

    def one(self, name: str, n: int, value: Any) -> None:
        session, ids = self.live[n]
        if name == "append":
            session.append(value)
            ids += value
        elif name == "generate":
            ids += session.generate(SamplingParams(max_new_tokens=value, temperature=0)).ids
        elif name == "rewind":
            del ids[max(1, len(ids) - value) :]
            session.rewind(len(ids))
        elif name == "fork":
            self.live.append((session.fork(), list(ids)))
        elif name == "commit":
            session.commit()
        elif name == "preempt":
            self.engine._executor.preempt(session._sequence)
        elif name == "save":
            session.save()
        else:
            session.close()
            del self.live[n]

    def restart(self) -> None:
        """Another process would do the same: the folder is all that stays."""
        for session, _ in self.live:
            session.close()
        self.engine = self._open()
        self.live = [(self.engine.session(ids), ids) for _, ids in self.live]

    def check(self) -> None:
        for session, ids in self.live:
            assert session.tokens == tuple(ids)
            wanted = self.engine.score(ids)[-1]
            assert (session.logits - wanted).abs().max() < TOLERANCE * max(1, float(wanted.abs().max()))

    def close(self) -> None:
        for session, _ in self.live:
            session.close()
        self.engine.clear_cache()
        stats = self.engine.stats()
        assert (stats.sessions, stats.slots, stats.pages, stats.boundaries, stats.prefix_bytes) == (0, 0, 0, 0, 0)


@checked
@given(steps=st.lists(step, min_size=3, max_size=14), room=st.integers(12, 40))
def test_any_life_of_several_sessions(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, Any]], room: int
) -> None:
    cold = tmp_path_factory.getbasetemp() / "cold"
    shutil.rmtree(cold, ignore_errors=True)
    play = Play(lambda: opened(folder, cold, room))
    for name, which, value in steps:
        play.take(name, which, value)
        stats = play.engine.stats()
        assert stats.cache_bytes <= (stats.cache_memory or 0)
    play.check()
    play.close()


def test_an_agent_loop_computes_its_own_tokens_once(folder: Path, tmp_path: Path) -> None:
    """Prefix, then turns of a reply and a tool's result; replayed by prompts alone, retried, and resumed."""
    engine = Engine.from_pretrained(folder, device="cpu", progress=False, cold=tmp_path)
    ids, irreducible = list(BASE), len(BASE)
    with engine.session(ids) as session:
        for turn in range(12):
            reply = session.generate(SamplingParams(max_new_tokens=8, temperature=0))
            result = [(turn * 5 + n) % 97 for n in range(20)]
            session.append(result)
            ids += [*reply.ids, *result]
            irreducible += len(reply.ids) + 20
            assert session.tokens == tuple(ids)
        assert engine.stats().tokens_computed == irreducible
        session.save()
    engine.session(ids[:-20]).close()  # Every turn's end is there, and its last token alone was new.
    assert engine.stats().tokens_computed <= irreducible + 28
    again = opened(folder, tmp_path, 100)
    with again.session([*ids, 5]):
        assert again.stats().tokens_computed == 1
    assert again.stats().tokens_recomputed == engine.stats().tokens_recomputed == {}

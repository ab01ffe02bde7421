"""Sessions: what a turn costs, rewind points, shared pages, files, and the end of a session."""

import gc
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from m1runtime import ClosedError, Engine, SamplingParams, Session, SessionError, SessionFileError

GREEDY = SamplingParams(max_new_tokens=6, temperature=0)


@pytest.fixture
def engine(tiny_folder: Path) -> Engine:
    return Engine.from_pretrained(tiny_folder, device="cpu", progress=False, snapshots=2)


def computed(engine: Engine) -> int:
    return engine.stats().tokens_computed


def follows(session: Session, engine: Engine) -> bool:
    return bool((session.logits - engine.score(session.tokens)[-1]).abs().max() < 1e-5)


def test_a_turn_costs_its_own_tokens(engine: Engine) -> None:
    with engine.session(range(50)) as session:
        first = session.generate(GREEDY)
        assert (first.prompt_tokens, first.reused_tokens) == (50, 0)
        session.append(range(10))
        second = session.generate(GREEDY)
        # The last token of the first reply waits for the next forward pass, and counts with the new ones.
        assert (second.prompt_tokens, second.reused_tokens) == (66, 55)
        assert computed(engine) == 50 + 6 + 10 + 5
        assert engine.stats().tokens_reused == 55
        assert engine.stats().tokens_recomputed == {}


def test_a_rewind_to_a_turns_end_recomputes_nothing(engine: Engine) -> None:
    with engine.session(range(50)) as session:
        logits = session.logits
        replies = []
        for _ in range(3):
            replies.append(session.generate(GREEDY))
            session.rewind(50)
            assert torch.equal(session.logits, logits)
        assert len(set(replies)) <= 2
        assert replies[0].ids == replies[2].ids
        assert engine.stats().tokens_recomputed == {}


def test_a_rewind_between_points_recomputes_from_the_nearest(engine: Engine) -> None:
    with engine.session(range(50)) as session:
        session.append([n % 90 for n in range(150)], boundaries=[10])
        session.rewind(75)
        assert follows(session, engine)
        assert engine.stats().tokens_recomputed == {"rewind": 15}
        session.rewind(60)
        session.append([1])
        assert follows(session, engine)
        assert engine.stats().tokens_recomputed == {"rewind": 15}


def test_commits_outlive_turn_ends(engine: Engine) -> None:
    with engine.session(range(20)) as session:
        session.commit()
        for _ in range(6):
            session.append([1, 2, 3])
        session.rewind(32)
        session.rewind(20)
        session.append([5])
        assert engine.stats().tokens_recomputed == {}
        assert follows(session, engine)


def test_a_commit_after_a_reply_waits_for_its_last_token(engine: Engine) -> None:
    with engine.session(range(20)) as session:
        session.generate(GREEDY)
        session.commit()
        session.append(range(9))
        session.append(range(9))
        session.append(range(9))
        session.rewind(26)
        assert follows(session, engine)
        assert engine.stats().tokens_recomputed == {}


def test_forks_share_pages_until_they_write(engine: Engine) -> None:
    with engine.session([n % 90 for n in range(200)]) as parent:
        before = engine.stats()
        children = [parent.fork() for _ in range(6)]
        assert engine.stats().kv_bytes == before.kv_bytes
        assert computed(engine) == before.tokens_computed
        children[0].append([1])
        page = before.kv_bytes // 4
        assert engine.stats().kv_bytes == before.kv_bytes + page
        assert all(follows(child, engine) for child in children)
        for child in children:
            child.close()
        assert engine.stats().kv_bytes == before.kv_bytes


def test_a_closed_session_is_gone(engine: Engine) -> None:
    session = engine.session([1, 2, 3])
    fork = session.fork()
    session.close()
    session.close()
    for call in (session.fork, session.commit, session.generate, lambda: session.append([1]), lambda: session.logits):
        with pytest.raises(ClosedError):
            call()
    fork.append([4])
    assert follows(fork, engine)
    del fork
    gc.collect()
    assert engine.stats().sessions == 0
    assert engine.stats().kv_bytes == engine.stats().state_bytes == engine.stats().snapshot_bytes == 0


def test_closing_ends_a_running_reply_and_touches_no_other_session(engine: Engine) -> None:
    closed = engine.session([1, 2, 3])
    reply = closed.stream(SamplingParams(max_new_tokens=20, temperature=0))
    next(reply)
    closed.close()
    with engine.session([5, 6, 7]) as other:
        assert list(reply) == []
        assert reply.completion.finish_reason == "cancelled"
        assert follows(other, engine)
    assert engine.stats().kv_bytes == engine.stats().state_bytes == 0


def test_a_reply_in_another_thread_ends_when_its_session_closes(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from m1runtime.generation import Generation

    session, inside, closed = engine.session([1, 2, 3]), threading.Event(), threading.Event()
    step = Generation.step

    def waiting(self: Generation) -> Any:
        inside.set()
        closed.wait(10)
        yield from step(self)

    monkeypatch.setattr(Generation, "step", waiting)
    with ThreadPoolExecutor() as threads:
        reply = threads.submit(session.generate, SamplingParams(max_new_tokens=20, temperature=0))
        assert inside.wait(10)
        session.close()
        closed.set()
        with pytest.raises(ClosedError):
            reply.result(10)
    assert engine.stats().kv_bytes == engine.stats().state_bytes == 0


def test_bounds_are_checked(engine: Engine) -> None:
    with engine.session() as session:
        with pytest.raises(SessionError, match="no logits"):
            _ = session.logits
        with pytest.raises(SessionError, match="append at least one token"):
            session.generate(GREEDY)
        session.append([1, 2])
        for length in (-1, 3):
            with pytest.raises(SessionError, match="cannot rewind"):
                session.rewind(length)
        with pytest.raises(SessionError, match="boundary 3"):
            session.append([1], boundaries=[3])
        with pytest.raises(SessionError, match="token 97"):
            session.append([5, 97])
        assert session.tokens == (1, 2)
        session.rewind(0)
        session.append([7])
        assert follows(session, engine)


def test_an_interrupted_forward_pass_loses_nothing(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    from m1runtime.layers import SoftmaxAttention

    with engine.session(range(30)) as session:
        session.append([1])
        with monkeypatch.context() as patch:
            patch.setattr(SoftmaxAttention, "__call__", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                session.append([2, 3, 4])
        assert follows(session, engine)
        assert session.tokens == (*range(30), 1, 2, 3, 4)


def test_an_interrupt_after_a_forward_pass_loses_nothing(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    from m1runtime.executor import Executor

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with engine.session(range(30)) as session:
        with monkeypatch.context() as patch:
            patch.setattr(Executor, "_settle", interrupted)
            with pytest.raises(KeyboardInterrupt):
                session.append([2, 3, 4])
        assert follows(session, engine)


@pytest.fixture
def saved(engine: Engine, tmp_path: Path) -> Path:
    with engine.session(range(70)) as session:
        session.commit()
        session.generate(GREEDY)
        session.save(tmp_path / "session.safetensors")
    return tmp_path / "session.safetensors"


def test_a_saved_session_continues_elsewhere(engine: Engine, saved: Path, tiny_folder: Path) -> None:
    other = Engine.from_pretrained(tiny_folder, device="cpu", progress=False)
    with other.load_session(saved) as session, engine.session([1]) as replaced:
        assert computed(other) == 0
        session.rewind(70)
        session.append([5])
        assert computed(other) == 1
        assert follows(session, engine)
        replaced.load(saved)
        assert len(replaced.tokens) == 76
        assert follows(replaced, engine)


@pytest.mark.parametrize("part", [0.0, 0.001, 0.2, 0.999])
def test_a_truncated_session_file(engine: Engine, saved: Path, part: float) -> None:
    saved.write_bytes(saved.read_bytes()[: int(part * saved.stat().st_size)])
    with engine.session([1, 2]) as session:
        with pytest.raises(SessionFileError, match="truncated"):
            session.load(saved)
        assert session.tokens == (1, 2)
        assert follows(session, engine)


@pytest.mark.parametrize(
    ("sound", "damaged"),
    [(b'"shape"', b'"shapf"'), (b'"dtype"', b'"dtypf"'), (b'"data_offsets":[', b'"data_offsets":{')],
)
def test_a_session_file_with_a_damaged_header(engine: Engine, saved: Path, sound: bytes, damaged: bytes) -> None:
    saved.write_bytes(saved.read_bytes().replace(sound, damaged, 1))
    with pytest.raises(SessionFileError, match="damaged"):
        engine.load_session(saved)


def test_a_session_file_whose_tensors_do_not_fit_leaves_nothing_behind(engine: Engine, saved: Path) -> None:
    with safe_open(saved, framework="pt") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()
    save_file(tensors | {"kv": tensors["kv"][..., :3].contiguous()}, saved, metadata=metadata)
    with pytest.raises(SessionFileError, match="damaged"):
        engine.load_session(saved)
    assert engine.stats().sessions == engine.stats().kv_bytes == 0


def test_a_session_that_cannot_be_written(engine: Engine, tmp_path: Path) -> None:
    with engine.session([1]) as session, pytest.raises(SessionFileError, match="cannot be written"):
        session.save(tmp_path / "none" / "session")


def test_a_session_of_another_model_is_refused(
    saved: Path, checkpoint: Callable[..., Any], write: Callable[..., Path], tmp_path: Path
) -> None:
    for folder, changes in (("weights", {"seed": 9}), ("config", {"rope_theta": 5e5})):
        other = Engine.from_pretrained(write(tmp_path / folder, *checkpoint(**changes)), device="cpu", progress=False)
        with pytest.raises(SessionFileError, match="another model"):
            other.load_session(saved)
        assert other.stats().sessions == 0


def test_a_file_that_is_no_session(engine: Engine, tmp_path: Path, tiny_folder: Path) -> None:
    with pytest.raises(SessionFileError, match="not a session"):
        engine.load_session(tiny_folder / "model.safetensors")
    with pytest.raises(SessionFileError, match="no such file"):
        engine.load_session(tmp_path / "none")
    metadata = {"format": "m1runtime-session-1", "model": engine.fingerprint, "snapshots": "{}"}
    save_file({"tokens": torch.zeros(1, dtype=torch.int64)}, tmp_path / "half", metadata=metadata)
    with pytest.raises(SessionFileError, match="kv, state missing"):
        engine.load_session(tmp_path / "half")

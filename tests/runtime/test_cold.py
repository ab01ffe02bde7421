"""The cold tier: what was evicted or saved is found by another engine; a damaged file costs its tokens and no more."""

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from m1runtime import ConfigError, Engine, SamplingParams, Session, SessionError
from m1runtime.cold import ColdTier, Frozen, digests

GREEDY = SamplingParams(max_new_tokens=12, temperature=0)
PROMPT = [n * 7 % 90 for n in range(200)]


def opened(model: Path, cold: Path, **options: object) -> Engine:
    return Engine.from_pretrained(model, device="cpu", progress=False, cold=cold, **options)  # type: ignore[arg-type]


def follows(session: Session, engine: Engine) -> bool:
    return bool((session.logits - engine.score(session.tokens)[-1]).abs().max() < 1e-5)


def files(cold: Path) -> list[Path]:
    return sorted(cold.glob("*/*.safetensors"))


@pytest.fixture
def saved(tiny_folder: Path, tmp_path: Path) -> Path:
    with opened(tiny_folder, tmp_path) as engine, engine.session(PROMPT) as session:
        session.save()
        assert engine.stats().cold_boundaries == 1
    assert len(files(tmp_path)) == 1
    return tmp_path


def test_a_saved_session_goes_on_in_another_engine(tiny_folder: Path, saved: Path) -> None:
    engine = opened(tiny_folder, saved)
    with engine.session([*PROMPT, 1, 2]) as session:
        assert engine.stats().tokens_computed == 2
        assert engine.stats().cache_hits == {"cold": 1, "prefix": 1}
        assert follows(session, engine)
        assert engine.stats().tokens_recomputed == {}
    with engine.session([*PROMPT[:150], 1]) as other:
        assert follows(other, engine)


def test_what_is_evicted_comes_back(tiny_folder: Path, tmp_path: Path) -> None:
    engine = opened(tiny_folder, tmp_path, cache_memory=700_000)
    for n in range(8):
        engine.session([n, *PROMPT]).close()
    assert engine.stats().evicted
    before = engine.stats()
    with engine.session([0, *PROMPT, 7]) as session:
        assert engine.stats().tokens_computed == before.tokens_computed + 1
        assert follows(session, engine)
    after = engine.stats()
    assert after.tokens_recomputed == {}
    assert after.cache_bytes <= 700_000


SERVE = """
import sys, signal
from m1runtime import Engine, SamplingParams
engine = Engine.from_pretrained(sys.argv[1], device="cpu", progress=False, cold=sys.argv[2])
session = engine.session([n * 7 % 90 for n in range(200)])
session.generate(SamplingParams(max_new_tokens=12, temperature=0))
session.save()
print(*session.tokens, flush=True)
print(*session.generate(SamplingParams(max_new_tokens=12, temperature=0)).ids, flush=True)
signal.pause()
"""


def test_a_killed_process_resumes_a_saved_session(tiny_folder: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(tiny_folder), str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    with process:
        tokens, expected = ([int(token) for token in process.stdout.readline().split()] for _ in range(2))
        os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    engine = opened(tiny_folder, tmp_path)
    with engine.session(tokens) as session:
        assert engine.stats().tokens_computed == 0
        assert list(session.generate(GREEDY).ids) == expected
        assert engine.stats().tokens_computed == 11
        assert engine.stats().tokens_recomputed == {}


@pytest.mark.parametrize("damage", ["truncated", "header", "content", "foreign"])
def test_a_damaged_file_is_told_once_and_left_out(
    tiny_folder: Path, saved: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    (path,) = files(saved)
    raw = bytearray(path.read_bytes())
    if damage == "truncated":
        raw = raw[: len(raw) // 2]
    elif damage == "header":
        raw[20:30] = b"\0" * 10
    elif damage == "content":
        raw[-5] ^= 0xFF
    else:
        raw = bytearray(b"no tensors at all")
    path.write_bytes(raw)
    with caplog.at_level(logging.WARNING):
        engine = opened(tiny_folder, saved)
        for _ in range(2):
            with engine.session([*PROMPT, 1]) as session:
                assert follows(session, engine)
            engine.clear_cache()
    assert engine.stats().cold_damaged == 1
    assert sum("damaged" in record.message for record in caplog.records) == 1
    assert "cold" not in engine.stats().cache_hits


def test_unfinished_files_are_swept_and_other_models_are_not_touched(
    tiny_folder: Path, text_folder: Path, saved: Path
) -> None:
    (path,) = files(saved)
    (path.parent / "half.123.part").write_bytes(b"half")
    with opened(text_folder, saved) as other, other.session(PROMPT) as session:
        assert "cold" not in other.stats().cache_hits
        session.save()
    assert len(files(saved)) == 2
    assert opened(tiny_folder, saved).stats().cold_boundaries == 1
    assert not list(saved.glob("*/*.part"))


def test_the_least_recently_used_make_room(tiny_folder: Path, saved: Path) -> None:
    size = files(saved)[0].stat().st_size
    engine = opened(tiny_folder, saved, cold_bytes=int(2.5 * size))
    for n in (1, 2, 3):
        with engine.session([n, *PROMPT[1:]]) as session:
            session.save()
    assert engine.stats().cold_boundaries == len(files(saved)) == 2
    assert engine.stats().cold_bytes <= 2.5 * size
    again = opened(tiny_folder, saved)
    for n, hits in ((0, 0), (1, 0), (2, 1), (3, 2)):
        again.session([n, *PROMPT[1:]]).close()
        assert again.stats().cache_hits.get("cold", 0) == hits


def test_int8_states_are_small_and_near(tiny_folder: Path, tmp_path: Path) -> None:
    for dtype in ("float32", "int8"):
        engine = opened(tiny_folder, tmp_path / dtype, cold_dtype=dtype)
        with engine.session(PROMPT) as session:
            session.save()
    engine = opened(tiny_folder, tmp_path / "int8")
    with engine.session([*PROMPT, 5]) as session:
        assert engine.stats().tokens_computed == 1
        error = (session.logits - engine.score(session.tokens)[-1]).abs().max()
    assert 1e-6 < error < 0.05
    state = torch.randn(2, 3, 16, 16)
    tiers = {name: ColdTier(tmp_path / "t" / name, model="m", limit=2**20, dtype=name) for name in ("float32", "int8")}  # type: ignore[arg-type]
    for name, tier in tiers.items():
        tier.write(Frozen([1, 2], state, torch.zeros(3), torch.zeros(1, 2, 2, 1, 4)))
        found = tier.find([1, 2, 3], 0)
        assert found is not None
        assert (found.state - state).abs().max() <= (0 if name == "float32" else state.abs().max() / 250)
    assert tiers["int8"].bytes < tiers["float32"].bytes / 2


def test_the_longest_beginning_is_found_and_not_what_is_known(tmp_path: Path) -> None:
    tier = ColdTier(tmp_path, model="m", limit=2**20)
    for length in (3, 7, 12):
        tokens = list(range(length))
        tier.write(Frozen(tokens, torch.full((1,), length), torch.zeros(3), torch.zeros(1)))
    found = tier.find(list(range(11)), 0)
    assert found is not None
    assert found.tokens == list(range(7))
    assert tier.find(list(range(11)), 7) is None
    assert tier.find([5, 6, 7, 8], 0) is None
    assert digests([1, 2, 3], [2])[2] == digests([1, 2], [2])[2]


def test_what_cannot_be(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be used as a folder"):
        opened(tiny_folder, tmp_path / "file")
    with pytest.raises(ConfigError, match="float32 or int8"):
        opened(tiny_folder, tmp_path, cold_dtype="int4")
    engine = Engine.from_pretrained(tiny_folder, device="cpu", progress=False)
    with engine.session(PROMPT) as session, pytest.raises(SessionError, match="needs a cold tier"):
        session.save()
    with pytest.raises(SessionError, match="needs a cold tier"):
        engine.save_cache()

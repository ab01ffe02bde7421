"""A model on several ranks is the model on one: the same numbers, sessions and replies; and ranks that fail."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from m1runtime import ConfigError, Engine, Grammar, ModelConfig, ParallelError, SamplingParams
from m1runtime import checkpoint as loading
from m1runtime.memory import Wish, plan_memory
from m1runtime.parallel import Spec, lead

TOLERANCE = 1e-5
GOLDEN = Path(__file__).parents[1] / "data" / "tiny-m1"
DRIVER = Path(__file__).parent / "parallel_driver.py"
IDS = torch.randint(0, 97, (300,), generator=torch.Generator().manual_seed(1)).tolist()


def load(folder: Path, ranks: int = 1, **options: Any) -> Engine:
    return Engine.from_pretrained(folder, device="cpu", progress=False, tensor_parallel=ranks, **options)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Ranks share the machine's cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def one(text_folder: Path) -> Engine:
    return load(text_folder, prefill_chunk=60)


@pytest.fixture(scope="module", params=[2, 4])
def several(request: pytest.FixtureRequest, text_folder: Path) -> Iterator[Engine]:
    """Four ranks share two KV heads."""
    with load(text_folder, request.param, prefill_chunk=60) as engine:
        yield engine


def greedy(count: int) -> SamplingParams:
    return SamplingParams(max_new_tokens=count, temperature=0)


def test_scores(one: Engine, several: Engine) -> None:
    assert (several.score(IDS) - one.score(IDS)).abs().max() < TOLERANCE
    assert several.fingerprint == one.fingerprint


def test_sessions_forks_and_rewinds(one: Engine, several: Engine) -> None:
    expected = one.score(IDS)

    def follows(session: Any) -> bool:
        return bool((session.logits - one.score(session.tokens)[-1]).abs().max() < TOLERANCE)

    with several.session(IDS[:70]) as session:
        session.commit()
        session.append(IDS[70:190])
        fork = session.fork()
        session.rewind(150)  # of the ring
        assert (session.logits - expected[149]).abs().max() < TOLERANCE
        session.append(IDS[200:280])
        fork.append(IDS[190:300])
        assert (fork.logits - expected[299]).abs().max() < TOLERANCE
        session.rewind(70)  # to the boundary
        assert (session.logits - expected[69]).abs().max() < TOLERANCE
        session.append([3] * 40)
        assert follows(session) and follows(fork)
        fork.close()
    sessions = [several.session(IDS[n : n + 90]) for n in range(9)]  # pools grow
    assert all(map(follows, sessions))
    for session in sessions:
        session.close()
    several.clear_cache()
    assert several.stats().sessions == 0 and several.stats().kv_bytes == 0


def test_replies_alone_together_and_under_a_grammar(one: Engine, several: Engine) -> None:
    prompts = [IDS[:5], IDS[7:90], IDS[100:103]]
    assert several.generate(prompts, greedy(20)) == one.generate(prompts, greedy(20))
    seeded = SamplingParams(max_new_tokens=20, temperature=1.0, seed=4)
    assert several.generate([IDS[:9]], seeded) == one.generate([IDS[:9]], seeded)
    schema = {"type": "object", "properties": {"name": {"enum": ["the", "low"]}, "n": {"type": "integer"}}}
    grammar = Grammar.from_json_schema({**schema, "required": ["name", "n"], "additionalProperties": False})
    params = SamplingParams(max_new_tokens=60, temperature=0, drafts=True)
    (ours,), (theirs,) = several.generate([IDS[:9]], params, grammar), one.generate([IDS[:9]], params, grammar)
    assert ours == theirs and json.loads(ours.text)["name"] in ("the", "low")


def test_a_session_file_is_of_any_number_of_ranks(one: Engine, several: Engine, tmp_path: Path) -> None:
    with several.session(IDS[:100]) as session:
        session.commit()
        session.append(IDS[100:130])
        session.save(tmp_path / "ours")
    with one.load_session(tmp_path / "ours") as session:
        assert (session.logits - one.score(IDS[:130])[-1]).abs().max() < TOLERANCE
        session.save(tmp_path / "theirs")
    with several.load_session(tmp_path / "theirs") as session:
        session.append(IDS[130:200])
        assert (session.logits - one.score(IDS[:200])[-1]).abs().max() < TOLERANCE
        session.rewind(100)
        assert (session.logits - one.score(IDS[:100])[-1]).abs().max() < TOLERANCE
    ours, theirs = load_file(tmp_path / "ours"), load_file(tmp_path / "theirs")
    assert ours.keys() == theirs.keys()
    assert all(torch.allclose(ours[name], theirs[name], atol=TOLERANCE) for name in ours)


def test_a_cold_tier_is_of_any_number_of_ranks(text_folder: Path, tmp_path: Path) -> None:
    with load(text_folder, 2, cold=tmp_path) as engine:
        engine.session(IDS[:100]).close()
        engine.save_cache()
    for ranks in (1, 4):
        with load(text_folder, ranks, cold=tmp_path) as engine, engine.session(IDS[:120]) as session:
            assert (session.logits - engine.score(IDS[:120])[-1]).abs().max() < TOLERANCE
            assert engine.stats().cache_hits["cold"] == 1


def test_the_models_original_code() -> None:
    expected = load_file(GOLDEN / "expected.safetensors")
    ids = expected["prefill.600.ids"].tolist()
    with load(GOLDEN, 2) as engine:
        rows = expected["prefill.600.logits"]
        assert (engine.score(ids)[-len(rows) :] - rows).abs().max() < 1e-4
        prompt = expected["prefill.257.ids"].tolist()
        (completion,) = engine.generate([prompt], greedy(48))
        assert list(completion.ids) == expected["greedy.257.ids"].tolist()


def test_weights_of_four_bits(checkpoint: Callable[..., Any], write: Callable[..., Path], tmp_path: Path) -> None:
    """Groups of 128 columns lie on one rank each, so that both quantise alike."""
    folder = write(tmp_path, *checkpoint(seed=2, head_dim=64, intermediate_size=256, shared_intermediate_size=256))
    expected = load(folder, quantization="int4").score(IDS)
    with load(folder, 2, quantization="int4") as engine:
        assert (engine.score(IDS) - expected).abs().max() < TOLERANCE
    whole = load(folder).score(IDS)
    with load(folder, 2, quantization="int8") as engine:
        assert (engine.score(IDS) - whole).abs().mean() < 0.05 * whole.std()


@pytest.mark.parametrize("native", [False, True])
def test_each_rank_reads_its_own_bytes_alone(
    native: bool,
    checkpoint: Callable[..., Any],
    write: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config, tensors = checkpoint(vocab_size=99)
    if native:
        for layer in range(4):
            moe, mlp = f"model.layers.{layer}.block_sparse_moe", f"model.layers.{layer}.mlp"
            tensors[f"{mlp}.gate.weight"] = tensors.pop(f"{moe}.gate.weight")
            w1, w3, w2 = (
                torch.stack([tensors.pop(f"{moe}.experts.{e}.w{i}.weight") for e in range(4)]) for i in (1, 3, 2)
            )
            tensors[f"{mlp}.experts.gate_up_proj"], tensors[f"{mlp}.experts.down_proj"] = torch.cat([w1, w3], 1), w2
    folder = write(tmp_path, config, tensors)
    read = 0
    original = loading.read_parts

    def counting(*arguments: Any) -> Any:
        nonlocal read
        for name, parts in original(*arguments):
            read += sum(part.numel() * part.element_size() for part in parts)
            yield name, parts

    monkeypatch.setattr(loading, "read_parts", counting)
    model = ModelConfig.from_file(folder)
    whole = loading.load(folder, model, dtype=torch.float32)
    assert read == sum(tensor.numel() * 4 for tensor in tensors.values())
    for size in (2, 4):
        plan = plan_memory(model, Wish(torch.float32, context=10, devices=size), device="cuda", available=2**40)
        for rank in range(size):
            read = 0
            own = loading.load(folder, model, dtype=torch.float32, rank=rank, size=size)
            padding = sum(int((own[n] == 0).all(-1).sum()) for n in ("model.embed_tokens.weight", "lm_head.weight"))
            assert read == sum(plan.weights.values()) - padding * 4 * model.hidden_size
            w2 = "model.layers.1.moe.w2"
            assert torch.equal(own[w2], whole[w2].chunk(size, -1)[rank])
            gates, ups = whole["model.layers.0.moe.w13"].chunk(2, 1)
            both = torch.cat([gates.chunk(size, 1)[rank], ups.chunk(size, 1)[rank]], 1)
            assert torch.equal(own["model.layers.0.moe.w13"], both)


def test_a_number_that_does_not_divide(text_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"tensor_parallel=3 .* use one of 1, 2, 4$"):
        load(text_folder, 3)


def test_a_damaged_checkpoint(text_folder: Path) -> None:
    """Rank 0 finds the file whole, and another rank does not find it."""
    before = children()
    spec = Spec("/no/such/folder", 2, "cpu", "float32")
    with pytest.raises((ParallelError, ConfigError), match="no such"):
        lead(spec)
    assert children() == before


def test_a_rank_that_dies(text_folder: Path) -> None:
    before = children()
    engine = load(text_folder, 2)
    (worker,) = children() - before
    with engine.session(IDS[:20]) as session:
        os.kill(worker, signal.SIGKILL)
        with pytest.raises(ParallelError, match="rank 1 of 2 ended: killed by signal 9"):
            session.append(IDS[20:40])
    with pytest.raises(ParallelError, match="killed by signal 9"):
        engine.score(IDS)
    engine.close()
    engine.close()
    assert children() == before


def test_a_rank_that_does_not_answer(text_folder: Path) -> None:
    before = children()
    config = ModelConfig.from_file(text_folder)
    engine = Engine(config, lead(Spec(str(text_folder), 2, "cpu", "float32", answer=1.0)))
    (worker,) = children() - before
    os.kill(worker, signal.SIGSTOP)
    began = time.monotonic()
    with pytest.raises(ParallelError, match=r"a pass over 2 ranks ended"):
        engine.score(IDS)
    assert time.monotonic() - began < 60
    assert children() == before


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT], ids=lambda sent: sent.name)
def test_no_rank_outlives_its_program(end: signal.Signals, tiny_folder: Path) -> None:
    command = [sys.executable, str(DRIVER), str(tiny_folder), "2", "wait"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as program:
        assert program.stdout is not None
        while program.stdout.readline().strip() != "ready":
            assert program.poll() is None
        workers = children(program.pid)
        assert workers
        program.send_signal(end)
        program.wait(30)
    patience = time.monotonic() + 30
    while any(alive(worker) for worker in workers):
        assert time.monotonic() < patience, f"{workers} live on after {end.name}"
        time.sleep(0.05)


def test_under_torchrun(tiny_folder: Path) -> None:
    expected = load(tiny_folder).generate([[5, 9, 1, 44]], greedy(12))[0].ids
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*run, str(DRIVER), str(tiny_folder), "2"], capture_output=True, text=True, timeout=150, check=False
    )
    assert done.returncode == 0, done.stderr
    assert [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")] == [list(expected)]


def test_torchrun_with_another_number(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ConfigError, match="tensor_parallel=2, but torchrun started 4 processes"):
        load(tiny_folder, 2)


def test_a_spec_is_plain_values() -> None:
    spec = Spec("folder", 2, "cpu", "float32", "int4", 1, 2.0)
    assert Spec(**json.loads(json.dumps(asdict(spec)))) == spec


def children(pid: int | None = None) -> set[int]:
    """Living child processes."""
    tasks = Path(f"/proc/{pid or os.getpid()}/task").iterdir()
    return {int(child) for task in tasks for child in (task / "children").read_text().split() if alive(int(child))}


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False

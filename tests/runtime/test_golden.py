"""Weights and outputs of the model's original code: logits, states and greedy tokens must come out."""

from pathlib import Path

import pytest
from safetensors.torch import load_file

from m1runtime import Engine, SamplingParams

TINY = Path(__file__).parents[1] / "data" / "tiny-m1"
EXPECTED = load_file(TINY / "expected.safetensors")


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.from_pretrained(TINY, device="cpu", progress=False)


@pytest.mark.parametrize("length", [1, 5, 255, 256, 257, 600])
def test_prefill_logits_and_state(engine: Engine, length: int, tmp_path: Path) -> None:
    ids = EXPECTED[f"prefill.{length}.ids"].tolist()
    logits = engine.score(ids)
    rows = EXPECTED[f"prefill.{length}.logits"]
    assert (logits[-len(rows) :] - rows).abs().max() < 1e-4
    assert logits.argmax(-1).tolist() == EXPECTED[f"prefill.{length}.argmax"].tolist()
    with engine.session(ids) as session:
        session.save(tmp_path / "session.safetensors")
    state = load_file(tmp_path / "session.safetensors")["state"][0]
    assert (state - EXPECTED[f"prefill.{length}.state0"]).abs().max() < 1e-4


@pytest.mark.parametrize("cut", [1, 255, 256, 257, 599])
def test_a_split_prompt(engine: Engine, cut: int) -> None:
    ids = EXPECTED["prefill.600.ids"].tolist()
    with engine.session(ids[:cut]) as session:
        session.append(ids[cut:])
        assert (session.logits - EXPECTED["prefill.600.logits"][-1]).abs().max() < 1e-4
        assert (session.logits - engine.score(ids)[-1]).abs().max() < 1e-5


@pytest.mark.parametrize("length", [5, 257])
def test_greedy_tokens(engine: Engine, length: int) -> None:
    prompt = EXPECTED[f"prefill.{length}.ids"].tolist()
    expected = EXPECTED[f"greedy.{length}.ids"].tolist()
    (completion,) = engine.generate([prompt], SamplingParams(max_new_tokens=48, temperature=0))
    assert list(completion.ids) == expected
    assert completion.finish_reason == "length"
    assert completion.prompt_tokens == length

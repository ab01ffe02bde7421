"""The ring: a session goes back to any of its last 64 tokens, and nothing is computed again."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from m1kernels.lightning import decay_slopes, lightning_prefill, lightning_replay
from m1runtime import Engine, Grammar, SamplingParams, Session
from m1runtime.grammar import ToolGrammar
from m1runtime.ring import ROWS, WINDOW

PROMPT = [n * 7 % 90 for n in range(300)]
LAYERS = {"hybrid": [0, 1, 0, 1], "lightning": [0, 0, 0, 0], "softmax": [1, 1, 1, 1]}
checked = settings(max_examples=25, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture(scope="module", params=LAYERS.values(), ids=LAYERS.keys())
def engine(
    request: pytest.FixtureRequest,
    checkpoint: Callable[..., Any],
    write: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Engine:
    folder = write(tmp_path_factory.mktemp("ring"), *checkpoint(seed=3, attn_type_list=request.param))
    return Engine.from_pretrained(folder, device="cpu", progress=False, prefill_chunk=150)


def difference(session: Session, engine: Engine) -> float:
    return float((session.logits - engine.score(session.tokens)[-1]).abs().max())


@pytest.mark.parametrize("tokens", [1, 31, 64])
def test_a_replay_is_what_a_prefill_leaves(tokens: int) -> None:
    random = torch.Generator().manual_seed(tokens)
    k, v = (torch.randn(3, tokens, 4, 16, generator=random) for _ in range(2))
    state = torch.randn(3, 4, 16, 16, generator=random)
    slopes = torch.stack([decay_slopes(4, layer, 8) for layer in (0, 3, 7)])
    replayed = lightning_replay(k, v, slopes, state)
    for layer in range(3):
        run = lightning_prefill(k[layer], k[layer], v[layer], slopes[layer], [0, tokens], state[layer, None])
        assert (replayed[layer] - run.state[0]).abs().max() < 1e-5
    with pytest.raises(ValueError, match="do not fit"):
        lightning_replay(k, v, slopes[:2], state)


@pytest.mark.parametrize("back", [1, 2, 31, 63, 64])
@pytest.mark.parametrize("way", ["prefill", "decode", "both"])
def test_the_last_64_tokens_are_a_cursor_move(engine: Engine, back: int, way: str) -> None:
    engine.clear_cache()
    with engine.session(PROMPT if way != "decode" else PROMPT[:40]) as session:
        for token in range(150 if way != "prefill" else 0):
            session._sequence.tokens.append(token % 90)  # one by one and without boundaries, as a reply grows
            engine._executor.advance([session._sequence])
        before = engine.stats()
        session.rewind(session.length - back)
        assert difference(session, engine) < 1e-5
        session.append([5, 6])
        assert difference(session, engine) < 1e-5
        after = engine.stats()
        scored = 2 * session.length - 2
        assert after.tokens_computed - before.tokens_computed - scored == 2
        assert after.tokens_recomputed == before.tokens_recomputed
        assert after.cache_hits["ring"] == before.cache_hits.get("ring", 0) + 1


def test_a_reply_after_a_rewind_computes_nothing_twice(engine: Engine) -> None:
    engine.clear_cache()
    with engine.session(PROMPT) as session:
        session.generate(SamplingParams(max_new_tokens=40, temperature=0))
        tokens = session.tokens
        session.rewind(320)
        before = engine.stats()
        again = session.generate(SamplingParams(max_new_tokens=20, temperature=0))
        assert session.tokens == tokens
        assert engine.stats().tokens_computed == before.tokens_computed + 19
        assert engine.stats().tokens_recomputed == before.tokens_recomputed
        assert again.reused_tokens == 320


steps = st.lists(st.tuples(st.sampled_from("append rewind decode".split()), st.integers(1, 110)), max_size=12)


@checked
@given(steps=steps)
def test_any_way_there_and_back(engine: Engine, steps: list[tuple[str, int]]) -> None:
    ids = PROMPT[:70]
    with engine.session(ids) as session:
        for step, count in steps:
            if step == "append":
                session.append(PROMPT[count : 2 * count])
            elif step == "rewind":
                session.rewind(max(1, session.length - count))
            else:
                session.generate(SamplingParams(max_new_tokens=count, temperature=0))
            assert difference(session, engine) < 1e-5


def test_the_window_holds_whatever_the_phase_of_the_anchor(engine: Engine) -> None:
    """After every single token the last 64 are within the ring."""
    with engine.session(PROMPT[:10]) as session:
        sequence = session._sequence
        for token in range(3 * ROWS):
            sequence.tokens.append(token % 90)
            engine._executor.advance([sequence])
            assert sequence.low <= sequence.anchor.length or sequence.anchor.length == 0
            assert sequence.computed - sequence.anchor.length >= min(WINDOW, sequence.computed - 10)
            assert sequence.computed - sequence.anchor.length < ROWS


def test_rejected_drafts_cost_nothing_again() -> None:
    question = 'What is the weather in Los Angeles for 14 days? {"city": "Los Angeles", "days": 14}\n'
    schema = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}
    engine = Engine.from_pretrained("m1-nano", device="cpu", progress=False)
    calls = Grammar.tool_calls([ToolGrammar("get_weather", schema)], mode="required", max_calls=3)
    with engine.session(question * 2) as session:
        for seed in range(4):
            session.generate(SamplingParams(60, 1.0, seed=seed, drafts=True), calls)
        stats = engine.stats()
        assert 0 < stats.tokens_accepted < stats.tokens_drafted
        assert stats.tokens_recomputed == {}
        assert difference(session, engine) < 1e-4  # A trained model's logits are some 20.

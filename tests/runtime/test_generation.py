"""Choosing tokens: sampling, ends, streams, and a grammar's forced runs in one forward pass."""

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from m1runtime import Engine, GenerationError, Grammar, SamplingError, SamplingParams, SessionError, TokenizerError

GREEDY = SamplingParams(max_new_tokens=40, temperature=0)
PHRASE = "the well: héllo 😀 STOP the wörld"


@pytest.fixture(scope="module")
def engine(text_folder: Path) -> Engine:
    return Engine.from_pretrained(text_folder, device="cpu", progress=False)


def test_a_seed_reproduces_alone_and_in_a_batch(engine: Engine) -> None:
    params = SamplingParams(max_new_tokens=20, seed=7)
    first = engine.generate(["hello"], params)[0]
    assert engine.generate(["other", "hello"], params)[1] == first
    others = {engine.generate(["hello"], SamplingParams(max_new_tokens=20, seed=n))[0].ids for n in range(8, 12)}
    assert others != {first.ids}
    assert len({engine.generate(["hello"], SamplingParams(max_new_tokens=20))[0].ids for _ in range(3)}) > 1


def test_greedy_is_the_likeliest_known_token(engine: Engine) -> None:
    assert engine.tokenizer is not None
    (completion,) = engine.generate(["hello"], SamplingParams(max_new_tokens=1, temperature=0))
    logits = engine.score(engine.tokenizer.encode("hello"))[-1]
    assert completion.ids == (int(logits[: engine.tokenizer.vocab_size].argmax()),)


def test_top_k_of_one_is_greedy(engine: Engine) -> None:
    params = SamplingParams(max_new_tokens=40, temperature=5.0, top_k=1)
    assert engine.generate(["hello"], params) == engine.generate(["hello"], GREEDY)


def test_a_strong_repetition_penalty_never_repeats(engine: Engine) -> None:
    params = SamplingParams(max_new_tokens=30, temperature=0, repetition_penalty=1000.0)
    (completion,) = engine.generate(["xyz"], params)
    assert len(set(completion.ids)) == 30


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_new_tokens", 0),
        ("max_new_tokens", 1.5),
        ("temperature", -1),
        ("temperature", float("nan")),
        ("top_p", 0),
        ("top_p", 1.1),
        ("top_k", -1),
        ("min_p", 2),
        ("repetition_penalty", 0),
        ("stop", ("",)),
        ("stop", (3,)),
        ("seed", -1),
    ],
)
def test_parameters_out_of_range_are_named(field: str, value: Any) -> None:
    with pytest.raises(SamplingError, match=f"{field}=.*: use"):
        SamplingParams(**{field: value})


def test_a_grammar_is_obeyed_and_its_runs_cost_one_forward(engine: Engine) -> None:
    before = engine.stats()
    with engine.session("say: ") as session:
        completion = session.generate(GREEDY, Grammar.from_regex(re.escape(PHRASE) + " [abc]!"))
        assert completion.text[:-2] == PHRASE + " "
        assert completion.text[-2:] in ("a!", "b!", "c!")
        assert completion.finish_reason == "stop"
        assert session.tokens[-1] in engine.eos_ids
        assert completion.ids == session.tokens[completion.prompt_tokens : -1]
        assert completion.forced_tokens >= len(completion.ids) - 3
        after = engine.stats()
        assert after.tokens_forced - before.tokens_forced == completion.forced_tokens
        assert after.forwards - before.forwards <= 1 + len(completion.ids) - completion.forced_tokens
        assert (session.logits - engine.score(session.tokens)[-1]).abs().max() < 1e-5


def test_stop_strings_end_the_text_before_them(engine: Engine) -> None:
    params = SamplingParams(max_new_tokens=80, temperature=0, stop=("STOP", "never"))
    (completion,) = engine.generate(["say: "], params, Grammar.from_regex(re.escape(PHRASE)))
    assert completion.text == PHRASE.partition("STOP")[0]
    assert completion.finish_reason == "stop"
    assert engine.tokenizer is not None
    assert engine.tokenizer.decode(completion.ids).endswith("STOP")


@pytest.mark.parametrize("params", [GREEDY, SamplingParams(max_new_tokens=60, seed=3, stop=("a", "é"))])
@pytest.mark.parametrize("grammar", [None, Grammar.from_regex(r"[é😀a-z ]{4,30}")])
def test_a_stream_is_its_completion_in_pieces(engine: Engine, params: SamplingParams, grammar: Grammar | None) -> None:
    chunks = list(engine.stream("hi", params, grammar))
    completion = chunks[-1].completion
    assert completion == engine.generate(["hi"], params, grammar)[0]
    assert completion is not None
    assert [token for chunk in chunks for token in chunk.ids] == list(completion.ids)
    assert "".join(chunk.text for chunk in chunks) == completion.text
    assert sum(len(chunk.ids) for chunk in chunks if chunk.forced) == completion.forced_tokens
    assert [chunk.completion for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)


def test_an_end_token_ends_and_stays_in_the_session(
    checkpoint: Callable[..., Any], write: Callable[..., Path], tmp_path: Path
) -> None:
    config, tensors = checkpoint(seed=3)
    plain = Engine.from_pretrained(write(tmp_path / "plain", config, tensors), device="cpu", progress=False)
    ids = plain.generate([[1, 2, 3]], GREEDY)[0].ids
    cut = next(n for n in range(3, 40) if ids[n] not in ids[:n])
    folder = write(tmp_path / "eos", config | {"eos_token_id": ids[cut]}, tensors)
    with Engine.from_pretrained(folder, device="cpu", progress=False).session([1, 2, 3]) as session:
        completion = session.generate(GREEDY)
        assert completion.ids == ids[:cut]
        assert completion.finish_reason == "stop"
        assert session.tokens == (1, 2, 3, *ids[: cut + 1])


def test_a_closed_stream_is_cancelled_and_leaves_a_valid_session(engine: Engine) -> None:
    with engine.session("hello") as session:
        stream = session.stream(GREEDY)
        with pytest.raises(SessionError, match="not finished"):
            _ = stream.completion
        got = [next(stream).ids for _ in range(3)]
        with pytest.raises(SessionError, match="being generated"):
            session.append([1])
        stream.close()
        assert stream.completion.finish_reason == "cancelled"
        assert [stream.completion.ids[i : i + 1] for i in range(3)] == got
        session.append([1, 2])
        assert (session.logits - engine.score(session.tokens)[-1]).abs().max() < 1e-5


def test_a_dropped_stream_frees_its_session(engine: Engine) -> None:
    with engine.session("hello") as session:
        session.stream(GREEDY)
        next(session.stream(GREEDY))
        session.append([1])
        assert len(session.tokens) == 6


def test_a_grammar_without_a_single_token_left(engine: Engine) -> None:
    assert engine.tokenizer is not None

    class Refusing:
        done = False

        def mask(self) -> None:
            return None

        def try_accept(self, token: int, remaining: int) -> bool:
            return False

        def forced(self, remaining: int) -> list[int]:
            return []

        held = False

        def ending(self) -> None:
            return None

        def prepare(self) -> None:
            pass

        def fork(self) -> "Refusing":
            return self

    class Start:
        def start(self, tokenizer: object, *, max_new_tokens: int) -> Refusing:
            return Refusing()

    grammar: Any = Start()
    with pytest.raises(GenerationError, match="no token can be chosen"):
        engine.generate(["x"], GREEDY, grammar)


def test_without_a_tokenizer_ids_are_served_and_text_is_refused(tiny_folder: Path) -> None:
    engine = Engine.from_pretrained(tiny_folder, device="cpu", progress=False)
    assert engine.tokenizer is None
    (completion,) = engine.generate([[1, 2]], GREEDY)
    assert (len(completion.ids), completion.text) == (40, "")
    with pytest.raises(TokenizerError, match="pass token ids"):
        engine.generate(["text"], GREEDY)
    with pytest.raises(TokenizerError, match="stop strings"):
        engine.generate([[1]], SamplingParams(stop=("x",)))
    with pytest.raises(TokenizerError, match="grammar"):
        engine.generate([[1]], GREEDY, Grammar.from_regex("a"))


@pytest.mark.parametrize("prompt", [[], [-1], [288], [1.5], ["a"]])
def test_bad_prompts_are_refused(engine: Engine, prompt: Any) -> None:
    with pytest.raises(SessionError, match="token"):
        engine.generate([prompt], GREEDY)
    assert engine.stats().sessions == 0


def test_a_single_text_is_not_a_list_of_prompts(engine: Engine) -> None:
    with pytest.raises(SessionError, match=r"\[prompt\]"):
        engine.generate("hello", GREEDY)


def test_bfloat16_stays_near(text_folder: Path, engine: Engine) -> None:
    half = Engine.from_pretrained(text_folder, device="cpu", dtype="bfloat16", progress=False)
    ids = list(range(60))
    exact = engine.score(ids)
    assert (half.score(ids) - exact).norm() < 0.15 * exact.norm()
    assert half.stats().weight_bytes < 0.7 * engine.stats().weight_bytes


def test_the_context_bounds_prompts_and_replies(
    checkpoint: Callable[..., Any], write: Callable[..., Path], tmp_path: Path
) -> None:
    folder = write(tmp_path, *checkpoint(max_position_embeddings=20))
    engine = Engine.from_pretrained(folder, device="cpu", progress=False)
    with pytest.raises(SessionError, match="21 tokens do not fit the model's context of 20"):
        engine.score(range(21))
    with engine.session(range(15)) as session:
        completion = session.generate(GREEDY)
        assert (len(completion.ids), completion.finish_reason) == (5, "length")
        with pytest.raises(SessionError, match="fills the model's context"):
            session.generate(GREEDY)
        with pytest.raises(SessionError, match="do not fit"):
            session.append([1])


def test_threads_share_an_engine(engine: Engine) -> None:
    params = SamplingParams(max_new_tokens=12, temperature=0)
    prompts = [f"prompt {n}" * (n + 1) for n in range(6)]
    expected = [engine.generate([prompt], params)[0].ids for prompt in prompts]

    def reply(prompt: str) -> tuple[int, ...]:
        with engine.session(prompt) as session, session.fork() as fork:
            return fork.generate(params).ids

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(reply, prompts)) == expected
    assert engine.stats().sessions == 0

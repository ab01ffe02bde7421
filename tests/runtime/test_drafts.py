"""Drafts change how many forward passes a reply takes, and nothing else."""

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from m1runtime import Engine, Grammar, SamplingParams, Session, SessionError
from m1runtime.grammar import ToolGrammar
from m1runtime.grammar.drafts import LONGEST, Lookup

TOLERANCE = 1e-5
checked = settings(max_examples=15, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
LAYERS = {"hybrid": [0, 1, 0, 1], "lightning": [0, 0, 0, 0], "softmax": [1, 1, 1, 1]}
WEATHER = ToolGrammar(
    "get_weather",
    {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "unit": {"enum": ["celsius", "kelvin"]},
        },
        "required": ["city", "unit"],
        "additionalProperties": False,
    },
)
NOTE = ToolGrammar("note", {"type": "object", "properties": {"text": {"type": "string", "maxLength": 30}}})
CALLS = Grammar.tool_calls([WEATHER, NOTE], mode="required", max_calls=2)
QUESTION = 'What is the weather in Los Angeles for 14 days? {"city": "Los Angeles", "days": 14, "unit": "celsius"}\n'


@pytest.fixture(scope="module", params=LAYERS.values(), ids=LAYERS.keys())
def engine(
    request: pytest.FixtureRequest,
    checkpoint: Callable[..., Any],
    write: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Engine:
    folder = write(tmp_path_factory.mktemp("drafts"), *checkpoint(seed=3, attn_type_list=request.param))
    return Engine.from_pretrained(folder, device="cpu", progress=False, prefill_chunk=60)


@pytest.fixture(scope="module")
def text_engine(text_folder: Path) -> Engine:
    return Engine.from_pretrained(text_folder, device="cpu", progress=False)


@pytest.fixture(scope="module")
def nano() -> Engine:
    return Engine.from_pretrained("m1-nano", device="cpu", progress=False)


def greedy(count: int, **changes: Any) -> SamplingParams:
    return SamplingParams(max_new_tokens=count, temperature=0, drafts=True, **changes)


def plain(params: SamplingParams) -> SamplingParams:
    return dataclasses.replace(params, drafts=False)


def follows(session: Session, engine: Engine) -> bool:
    """As exact as a trained model's larger logits are."""
    wanted = engine.score(session.tokens)[-1]
    return bool((session.logits - wanted).abs().max() < TOLERANCE * max(1, wanted.abs().max() / 2))


# Looking up


def naive(ids: list[int], tail: list[int], *, least: int) -> int | None:
    """The place after the longest, then latest, match of tail's end that leaves something to follow."""
    for length in range(min(LONGEST, len(tail)), least - 1, -1):
        for at in range(len(ids) - 1, length - 1, -1):
            if ids[at - length : at] == tail[-length:]:
                return at
    return None


@checked
@given(
    ids=st.lists(st.integers(0, 3), max_size=30), cut=st.integers(0, 30), more=st.lists(st.integers(0, 3), max_size=9)
)
def test_the_longest_latest_match_is_found(ids: list[int], cut: int, more: list[int]) -> None:
    lookup = Lookup(None)
    lookup.extend(ids)
    assert lookup.find(ids[-LONGEST:], single=False) == naive(ids, ids[-LONGEST:], least=2)
    assert lookup.find(ids[-LONGEST:], single=True) == naive(ids, ids[-LONGEST:], least=1)
    copy = lookup.copy()
    lookup.truncate(min(cut, len(ids)))
    rewound = [*ids[:cut], *more]
    lookup.extend(rewound)
    found = lookup.find(rewound[-LONGEST:], single=False)
    # After a rewind a match may be missed, but none is made up.
    assert found is None or (found < len(rewound) and rewound[found - 2 : found] == rewound[-2:])
    assert copy.find(ids[-LONGEST:], single=True) == naive(ids, ids[-LONGEST:], least=1)


def test_a_long_past_costs_no_search() -> None:
    lookup = Lookup(None)
    ids = [n % 7 for n in range(20_000)]
    lookup.extend(ids)
    place = lookup.find(ids[-LONGEST:], single=True)
    assert place is not None
    assert ids[place] == len(ids) % 7


def test_words_match_without_their_spaces_and_punctuation_alone_never() -> None:
    tokens = [b" San", b" Francisco", b'"San', b'": "', b"San", b", "]
    lookup = Lookup(tokens)
    lookup.extend([5, 3, 0, 1, 5, 3])
    for token in (0, 2, 4):
        assert lookup.find([lookup.alike(token)], single=True) == 3
    assert lookup.find([lookup.alike(5), lookup.alike(3)], single=True) is None


# The same reply


@pytest.mark.parametrize("temperature", [0, 1.0])
@pytest.mark.parametrize("penalty", [1.0, 1.3])
@pytest.mark.parametrize(
    "grammar", [None, CALLS, Grammar.tool_calls([WEATHER, NOTE])], ids=["none", "required", "auto"]
)
def test_a_reply_is_the_same_with_and_without_drafts(
    nano: Engine, temperature: float, penalty: float, grammar: Grammar | None
) -> None:
    prompts = [QUESTION, QUESTION * 2 + "ask"]
    before = nano.stats()
    for budget in (1, 7, 45) if grammar is not CALLS else (24, 60):
        params = SamplingParams(
            budget, temperature, repetition_penalty=penalty, min_p=0.02, seed=budget, drafts=True, stop=("Ange", "zq")
        )
        expected = nano.generate(prompts, plain(params), grammar)
        assert nano.generate(prompts, params, grammar) == expected
        assert nano.generate(prompts[1:], params, grammar) == expected[1:]
    after = nano.stats()
    drafted, accepted = after.tokens_drafted - before.tokens_drafted, after.tokens_accepted - before.tokens_accepted
    assert 0 < accepted < drafted


def test_every_budget_closes_the_same_call(nano: Engine) -> None:
    for budget in range(22, 58, 3):
        params = SamplingParams(budget, temperature=1.5, seed=budget)
        drafted, expected = (nano.generate([QUESTION], p, CALLS)[0] for p in (params, plain(params)))
        assert drafted == expected
        assert drafted.text.endswith("</tool_calls>")
        assert drafted.finish_reason == "stop"


def test_a_copied_call_takes_a_fraction_of_the_passes(nano: Engine) -> None:
    passes: dict[bool, int] = {}
    for drafts in (False, True):
        nano.clear_cache()
        before = nano.stats()
        params = SamplingParams(temperature=0, drafts=drafts)
        (reply,) = nano.generate([QUESTION], params, Grammar.from_regex(re.escape(QUESTION.strip()) + " ?"))
        after = nano.stats()
        passes[drafts] = after.forwards - before.forwards
        assert (reply.drafted_tokens > 0) == (after.tokens_drafted > before.tokens_drafted) == drafts
    assert passes[True] <= passes[False]
    assert nano.stats().tokens_recomputed.keys() <= {"drafts"}


def test_grammars_are_drafted_by_default_and_free_text_on_request(nano: Engine) -> None:
    text = "the cat sat on the mat, " * 6
    for params, grammar, drafts in (
        (SamplingParams(30, temperature=0), None, False),
        (SamplingParams(30, temperature=0, drafts=True), None, True),
        (SamplingParams(60, temperature=0), CALLS, True),
        (SamplingParams(60, temperature=0, drafts=False), CALLS, False),
    ):
        before = nano.stats().tokens_drafted
        nano.generate([text], params, grammar)
        assert (nano.stats().tokens_drafted > before) == drafts


@checked
@given(prompt=st.lists(st.integers(0, 4), min_size=2, max_size=40), count=st.integers(1, 20))
def test_drafts_never_add_a_pass(engine: Engine, prompt: list[int], count: int) -> None:
    before = engine.stats().forwards
    expected = engine.generate([prompt], plain(greedy(count)))
    between = engine.stats().forwards
    assert engine.generate([prompt], greedy(count)) == expected
    assert engine.stats().forwards - between <= between - before


# The same distribution


def exact(engine: Engine, prompt: list[int], ids: list[int], params: SamplingParams, choices: int) -> dict[Any, float]:
    """The distribution of replies of `choices` tokens out of `ids`, from uncached logits."""
    found: dict[Any, float] = {(): 1.0}
    for _ in range(choices):
        grown: dict[Any, float] = {}
        for reply, chance in found.items():
            p = filtered(engine.score([*prompt, *reply])[-1][ids].double(), params)
            grown |= {(*reply, token): chance * float(share) for token, share in zip(ids, p, strict=True)}
        found = grown
    return found


def filtered(logits: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    p = (logits / params.temperature).softmax(0)
    if params.top_k:
        p[p < p.sort(descending=True).values[params.top_k - 1]] = 0
        p /= p.sum()
    ranked = p.sort(descending=True)
    p[ranked.indices[ranked.values.cumsum(0) - ranked.values >= params.top_p]] = 0
    p[p < params.min_p * p.max()] = 0
    return p / p.sum()


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(9, temperature=1.7, top_p=1.0),
        SamplingParams(9, temperature=1.2, top_p=0.8),
        SamplingParams(9, temperature=2.0, top_p=1.0, top_k=3, min_p=0.15),
    ],
    ids=["temperature", "top_p", "top_k, min_p"],
)
def test_drafted_replies_have_the_exact_distribution(text_engine: Engine, params: SamplingParams) -> None:
    assert text_engine.tokenizer is not None
    prompt = text_engine.tokenizer.encode("xabcdxabcdxabcdx")
    ids = [text_engine.tokenizer.encode(letter)[0] for letter in "abcd"]
    grammar = Grammar.from_regex("[abcd]{3}")
    wanted = exact(text_engine, prompt, ids, params, 3)
    before = text_engine.stats()
    runs, seen = 700, Counter[tuple[int, ...]]()
    for seed in range(runs):
        (reply,) = text_engine.generate([prompt], dataclasses.replace(params, seed=seed), grammar)
        seen[reply.ids] += 1
    after = text_engine.stats()
    accepted = after.tokens_accepted - before.tokens_accepted
    assert 0.05 < accepted / (after.tokens_drafted - before.tokens_drafted) < 0.95
    assert all(wanted[reply] > 0 for reply in seen)
    likely = {reply: p for reply, p in wanted.items() if p * runs >= 5}
    rest = 1 - sum(likely.values())
    chi = sum((seen[reply] - runs * p) ** 2 / (runs * p) for reply, p in likely.items())
    if rest * runs >= 1:
        chi += (runs - sum(seen[reply] for reply in likely) - runs * rest) ** 2 / (runs * rest)
    freedom = len(likely)
    # Wilson-Hilferty: the 99.9 % quantile of chi-square.
    assert chi < freedom * (1 - 2 / (9 * freedom) + 3.09 * (2 / (9 * freedom)) ** 0.5) ** 3


# The same state


tokens = st.integers(0, 5)
step = st.one_of(
    st.tuples(st.just("append"), st.lists(tokens, min_size=1, max_size=70)),
    st.tuples(st.just("generate"), st.integers(1, 15)),
    st.tuples(st.just("cancel"), st.integers(1, 6)),
    st.tuples(st.just("rewind"), st.floats(0, 1)),
    st.tuples(st.just("commit"), st.none()),
    st.tuples(st.just("fork"), st.none()),
    st.tuples(st.just("file"), st.none()),
)


def uncached_greedy(engine: Engine, ids: list[int], count: int) -> list[int]:
    grown = list(ids)
    for _ in range(count):
        grown.append(int(engine.score(grown)[-1].argmax()))
    return grown[len(ids) :]


def cancelled(session: Session, chunks: int) -> tuple[int, ...]:
    stream = session.stream(greedy(30))
    for _ in range(chunks):
        next(stream)
    stream.close()
    return stream.completion.ids


@checked
@given(start=st.lists(tokens, min_size=1, max_size=90), steps=st.lists(step, max_size=7))
def test_any_history_with_drafted_replies(
    engine: Engine, tmp_path_factory: pytest.TempPathFactory, start: list[int], steps: Any
) -> None:
    path = tmp_path_factory.getbasetemp() / "drafted.safetensors"
    live = [engine.session(start)]
    expected = [list(start)]
    for name, value in steps:
        session, ids = live[-1], expected[-1]
        if name == "append":
            session.append(value)
            ids += value
        elif name == "generate" and ids:
            reply = session.generate(greedy(value))
            assert list(reply.ids) == uncached_greedy(engine, ids, value)
            ids += reply.ids
        elif name == "cancel" and ids:
            got = cancelled(session, value)
            assert list(got) == uncached_greedy(engine, ids, len(got))
            ids += got
        elif name == "rewind":
            del ids[int(value * len(ids)) :]
            session.rewind(len(ids))
        elif name == "commit":
            session.commit()
        elif name == "fork":
            live.append(session.fork())
            expected.append(list(ids))
        elif name == "file":
            session.save(path)
            live.append(engine.load_session(path))
            expected.append(list(ids))
    for session, ids in zip(live, expected, strict=True):
        assert session.tokens == tuple(ids)
        assert not ids or follows(session, engine)
        session.close()
    assert engine.stats().sessions == engine.stats().kv_bytes == 0


@checked
@given(batch=st.lists(st.lists(tokens, min_size=1, max_size=50), min_size=2, max_size=5), count=st.integers(1, 20))
def test_several_drafted_sequences_together(engine: Engine, batch: list[list[int]], count: int) -> None:
    together = engine.generate(batch, greedy(count))
    for ids, completion in zip(batch, together, strict=True):
        assert list(completion.ids) == uncached_greedy(engine, ids, count)


def test_drafts_were_made_and_taken_and_wasted(engine: Engine) -> None:
    engine.generate([[1, 2, 3, 4] * 8, [5, 1, 2, 3] * 5], greedy(60))
    stats = engine.stats()
    assert 0 < stats.tokens_accepted < stats.tokens_drafted
    assert stats.tokens_recomputed.get("drafts", 0) <= stats.tokens_accepted


# Streams


def chunks_of(engine: Engine, params: SamplingParams) -> Iterator[tuple[int, bool]]:
    """Tokens with their flags, as the stream of a session gives them."""
    with engine.session(QUESTION) as session:
        for chunk in session.stream(params, CALLS):
            yield from ((token, chunk.forced) for token in chunk.ids)


def test_a_stream_shows_the_same_tokens_and_flags(nano: Engine) -> None:
    assert list(chunks_of(nano, greedy(80))) == list(chunks_of(nano, plain(greedy(80))))


def test_a_drafted_reply_stops_at_any_chunk(nano: Engine) -> None:
    with nano.session(QUESTION) as session:
        whole = session.generate(plain(greedy(80)), CALLS)
        session.rewind(whole.prompt_tokens)
        for count in (1, 2, 3, 5, 7, 9):
            stream = session.stream(greedy(80), CALLS)
            got = [token for _ in range(count) for token in next(stream).ids]
            with pytest.raises(SessionError, match="being generated"):
                session.commit()
            stream.close()
            assert stream.completion.finish_reason == "cancelled"
            assert tuple(got) == stream.completion.ids == whole.ids[: len(got)]
            assert session.tokens[whole.prompt_tokens :] == tuple(got)
            assert follows(session, nano)
            session.append([7])
            assert follows(session, nano)
            session.rewind(whole.prompt_tokens)


def test_an_interrupted_draft_loses_nothing(nano: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    from m1runtime.executor import Executor

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with nano.session(QUESTION) as session:
        stream = session.stream(greedy(80), CALLS)
        for _ in range(3):
            next(stream)
        with monkeypatch.context() as patch:
            patch.setattr(Executor, "_settle", interrupted)
            with pytest.raises(KeyboardInterrupt):
                for _ in stream:
                    pass
        assert stream.completion.finish_reason == "cancelled"
        assert follows(session, nano)


def test_a_model_without_a_tokenizer_is_drafted_too(engine: Engine) -> None:
    before = engine.stats().tokens_drafted
    assert engine.tokenizer is None
    prompt = torch.arange(40).remainder(5).tolist()
    assert engine.generate([prompt], greedy(20)) == engine.generate([prompt], plain(greedy(20)))
    assert engine.stats().tokens_drafted > before


def test_a_stop_string_does_not_cut_a_call(nano: Engine) -> None:
    whole = nano.generate([QUESTION], greedy(80), CALLS)[0]
    called = whole.text.index("<tool_calls>")
    assert '"' in whole.text[called:]
    assert nano.generate([QUESTION], greedy(80, stop=('"', "}")), CALLS)[0].text == whole.text

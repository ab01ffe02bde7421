"""Vocabularies of different kinds under the same grammars: texts survive, calls are judged alike, replies close.

M1_TOKENIZER names the folder of one more tokenizer, such as MiniMax-M1's of 200,000 tokens.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import pytest
import tokenizers
from jsonschema import Draft202012Validator
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

from m1runtime import Engine, Grammar, SamplingParams, Tokenizer, TokenizerError
from m1runtime.engine import BUNDLED
from m1runtime.grammar import ToolGrammar
from m1runtime.tokenizer import PROBES

ROWS = [json.loads(line) for line in (Path(__file__).parents[1] / "data/bfcl-sample.jsonl").read_text().splitlines()]
SPECIALS = ["<unk>", "<end_of_sentence>", "<begin_of_document>"]
END = "<end_of_sentence>"


def corpus() -> list[str]:
    calls = [render(test["data"]) for row in ROWS for test in row["tests"]]
    return (
        calls
        + ["<tool_calls>\n</tool_calls>\n"] * 5
        + ["The quick brown fox\n\n  jumps over 12 lazy dogs, héhé 🙂."] * 5
    )


def render(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def byte_level(normalizer: normalizers.Normalizer | None = None, *, prefix: bool = False) -> str:
    """GPT-2's: words with the space before them, spelled in 256 printable characters."""
    bpe = tokenizers.Tokenizer(models.BPE())
    if normalizer is not None:
        bpe.normalizer = normalizer
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(corpus(), trainer(special_tokens=SPECIALS, initial_alphabet=alphabet))
    return bpe.to_str()


def trainer(**options: Any) -> trainers.BpeTrainer:
    return trainers.BpeTrainer(vocab_size=700, show_progress=False, **options)


def byte_fallback(*, metaspace: bool, prefix: bool = True) -> str:
    """SentencePiece's: characters, a mark for the space, and bytes for what is in no token."""
    pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    bpe = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    if metaspace:
        scheme = "first" if prefix else "never"
        bpe.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme=scheme, split=False)
        space: Any = decoders.Metaspace("▁", prepend_scheme=scheme)
    else:
        before = [normalizers.Prepend("▁")] if prefix else []
        bpe.normalizer = normalizers.Sequence([*before, normalizers.Replace(" ", "▁")])
        space = decoders.Replace("▁", " ")
    bpe.decoder = decoders.Sequence([space, decoders.ByteFallback(), decoders.Fuse()])
    # Few characters, so that the bytes are needed; the words below are what a real vocabulary would hold.
    bpe.train_from_iterator(corpus(), trainer(special_tokens=[*SPECIALS, *pieces], limit_alphabet=60))
    definition = json.loads(bpe.to_str())
    definition["added_tokens"] = definition["added_tokens"][: len(SPECIALS)]
    return json.dumps(definition)


KINDS: dict[str, Callable[[], str]] = {
    "byte-level": byte_level,
    "byte-level with a space before": lambda: byte_level(prefix=True),
    "byte-level, NFC": lambda: byte_level(normalizers.NFC()),
    "byte fallback": lambda: byte_fallback(metaspace=False, prefix=False),
    "byte fallback with a space before": lambda: byte_fallback(metaspace=False),
    "byte fallback, metaspace": lambda: byte_fallback(metaspace=True, prefix=False),
    "byte fallback, metaspace with a space before": lambda: byte_fallback(metaspace=True),
    "m1-nano": lambda: (BUNDLED["m1-nano"] / "tokenizer.json").read_text(),
    "of the environment": lambda: (Path(os.environ["M1_TOKENIZER"]) / "tokenizer.json").read_text(),
}


@cache
def definition(kind: str) -> str:
    """Trained once: which of two equal pairs is merged first is left to chance."""
    if kind == "of the environment" and "M1_TOKENIZER" not in os.environ:
        pytest.skip("M1_TOKENIZER names no folder of a tokenizer")
    return KINDS[kind]()


@cache
def tokenizer(kind: str) -> Tokenizer:
    return Tokenizer(definition(kind), eos_token=END)


@pytest.mark.parametrize("kind", KINDS)
def test_texts_survive_and_special_tokens_are_single(kind: str) -> None:
    known = tokenizer(kind)
    for text in (*PROBES, *corpus()[:20], *known.special_ids):
        ids = known.encode(text, special=False)
        assert known.decode(ids) == text
        assert not set(ids) & set(known.special_ids.values())
    for text, i in known.special_ids.items():
        assert known.encode(text) == [i] and known.token_bytes[i] == text.encode()


@pytest.mark.parametrize("kind", KINDS)
def test_both_tables_of_bytes_are_the_same(kind: str) -> None:
    known = tokenizer(kind)
    # llguidance marks special tokens by the byte 0xFF, which is in no text.
    plain = [i for i in range(known.vocab_size) if not known.token_bytes[i].startswith(b"\xff")]
    plain = [i for i in plain if i not in known.special_ids.values()]
    assert [known.llg.decode_bytes([i]) for i in plain] == [known.token_bytes[i] for i in plain]


def tokens(known: Tokenizer, text: str) -> list[int]:
    """The canonical tokens, in which both tokenizers agree."""
    ids = known.encode(text, special=False)
    assert ids == list(known.llg.tokenize_bytes(text.encode()))
    return ids


def accepts(known: Tokenizer, grammar: Grammar, text: str, *, masked: bool) -> bool:
    """Whether the grammar takes the tokens of a text; `masked`: each of them must be in its mask."""
    constraint, left = grammar.start(known, max_new_tokens=3000), 3000
    for token in [*tokens(known, text), min(known.eos_ids)]:
        left -= 1
        if masked:
            mask = constraint.mask()
            assert mask is None or mask[token // 32] >> (token % 32) & 1, (text, known.token_bytes[token])
        if not constraint.try_accept(token, left):
            return False
    return True


def tools_of(schema: dict[str, Any]) -> list[ToolGrammar]:
    return [
        ToolGrammar(tool["properties"]["name"]["const"], tool["properties"]["arguments"])
        for tool in schema.get("anyOf", [schema])
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_calls_are_judged_alike(kind: str) -> None:
    known = tokenizer(kind)
    for row in ROWS:
        grammar = Grammar.tool_calls(tools_of(row["schema"]), mode="required")
        for test in row["tests"]:
            text = f"<tool_calls>\n{render(test['data'])}\n</tool_calls>"
            assert accepts(known, grammar, text, masked=test["valid"]) == test["valid"], (row["id"], text)


@pytest.mark.parametrize("kind", KINDS)
def test_forced_tokens_spell_a_call(kind: str) -> None:
    known = tokenizer(kind)
    grammar = Grammar.tool_calls([ToolGrammar("get_weather", {"properties": {}})], mode="required", skip=("", ""))
    constraint, left = grammar.start(known, max_new_tokens=200), 200
    written = list[int]()
    while not constraint.done:
        run = constraint.forced(left)
        if not run:
            mask = constraint.mask()
            assert mask is not None
            token = next(i for i in range(known.vocab_size) if mask[i // 32] >> (i % 32) & 1)
            assert constraint.try_accept(token, left - 1)
            run = [token]
        written += run
        left -= len(run)
    ends = known.eos_ids
    text = known.decode([token for token in written if token not in ends])
    assert text.startswith('<tool_calls>\n{"name": "get_weather", "arguments": {}}\n')


@pytest.mark.parametrize("kind", KINDS)
def test_a_random_model_closes_its_calls_within_every_budget(
    kind: str, checkpoint: Callable[..., Any], write: Callable[..., Path], tmp_path: Path
) -> None:
    known = tokenizer(kind)
    folder = write(tmp_path, *checkpoint(seed=5, vocab_size=known.vocab_size))
    (folder / "tokenizer.json").write_text(definition(kind))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": END}))
    engine = Engine.from_pretrained(folder, device="cpu", progress=False)
    for row in ROWS[:2]:
        grammar, validator = (
            Grammar.tool_calls(tools_of(row["schema"]), mode="required", skip=("", "")),
            Draft202012Validator(row["schema"]),
        )
        least = grammar.start(known, max_new_tokens=10_000).min_tokens
        for budget in (least, least + 5, least + 40):
            params = SamplingParams(max_new_tokens=max(budget, least), temperature=1.0, top_p=1.0, seed=budget)
            (done,) = engine.generate([[1, 2, 3]], params, grammar)
            assert done.finish_reason == "stop", (row["id"], budget, done.text)
            assert done.text.startswith("<tool_calls>\n") and done.text.endswith("\n</tool_calls>")
            for line in done.text.split("\n")[1:-1]:
                validator.validate(json.loads(line))


@pytest.mark.parametrize(
    ("normalizer", "text"),
    [
        (normalizers.Lowercase(), '"ABC'),
        (normalizers.Strip(), " "),
        (normalizers.Replace(Regex(r"\s+"), " "), "a  b"),
        (normalizers.StripAccents(), "é"),
    ],
)
def test_a_tokenizer_that_changes_text_is_refused_and_told_at_what(
    normalizer: normalizers.Normalizer, text: str
) -> None:
    sequence = normalizers.Sequence([normalizers.NFD(), normalizer]) if text == "é" else normalizer
    with pytest.raises(TokenizerError, match=r"tokenizer\.json changes text: "):
        Tokenizer(byte_level(sequence), eos_token=END)


def test_tokens_that_are_no_bytes_are_refused() -> None:
    words = tokenizers.Tokenizer(models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>"))
    with pytest.raises(TokenizerError, match="over bytes"):
        Tokenizer(words.to_str(), eos_token=END)
    odd, poor = json.loads(byte_level()), json.loads(byte_level())
    odd["model"]["vocab"]["漢"] = 700
    with pytest.raises(TokenizerError, match="漢"):
        Tokenizer(json.dumps(odd), eos_token=END)
    poor["model"] |= {"vocab": {"a": 0, "<unk>": 1}, "merges": []}
    with pytest.raises(TokenizerError, match="changes text"):
        Tokenizer(json.dumps(poor), eos_token=END)


def test_a_thought_is_ended_in_time_before_a_call_whose_pattern_has_ends_of_several_lengths() -> None:
    known = tokenizer("m1-nano")
    uuid = "^[0-9a-f]{8}-[0-9a-f]{4}-[1-5][0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$"
    names = {"type": {"enum": ["EiffelActivityStartedEvent"]}, "version": {"enum": ["1.1.0"]}}
    properties = {"id": {"type": "string", "pattern": uuid}, **names, "time": {"type": "integer"}}
    meta = {"type": "object", "properties": properties, "required": list(properties)}
    schema = {"properties": {"meta": meta}, "required": ["meta"]}
    grammar = Grammar.tool_calls([ToolGrammar("tool", schema)], mode="required")
    least = grammar.start(known, max_new_tokens=10_000).min_tokens
    for seed in range(4):
        random, left = Random(seed), least + 15
        constraint, ids = grammar.start(known, max_new_tokens=left), list[int]()
        opening = known.encode("<think>", special=False)
        while not constraint.done:
            mask = constraint.mask()
            assert mask is not None
            allowed = opening[:1] or [i for i in range(known.vocab_size) if mask[i // 32] >> (i % 32) & 1]
            opening = opening[1:]
            random.shuffle(allowed)
            token = next((token for token in allowed if constraint.try_accept(token, left - 1)), None)
            assert token is not None, (seed, left, known.decode(ids))
            ids.append(token)
            left -= 1
        assert left >= 0

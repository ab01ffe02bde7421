"""Constraints: what they accept, what they force, and that they always close within the budget."""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from jsonschema import Draft202012Validator
from tokenizers import decoders, models, pre_tokenizers, trainers

from m1runtime.engine import BUNDLED
from m1runtime.errors import SchemaError
from m1runtime.grammar import BudgetError, Constraint, Grammar, ToolGrammar
from m1runtime.tokenizer import Tokenizer

ROWS = [json.loads(line) for line in (Path(__file__).parents[1] / "data/bfcl-sample.jsonl").read_text().splitlines()]
IDS = [row["id"] for row in ROWS]
MARKUP = "<tool_calls>\n</tool_calls>\n<think>\n</think>\n"
WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city"],
}
PING = {"type": "object", "properties": {}}


@cache
def tokenizer(size: int = 768) -> Tokenizer:
    bpe = tokenizers.Tokenizer(models.BPE())
    words = tokenizers.Regex(r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\p{N}{1,3}| ?\p{L}+|\s+")
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(words, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<end_of_sentence>", "<beginning_of_sentence>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([render(row["tests"]) for row in ROWS] + [MARKUP] * 20, trainer)
    return Tokenizer(bpe.to_str(), eos_token="<end_of_sentence>")


def render(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(", ", ": "))


def ids_of(mask: Any, size: int) -> np.ndarray:
    return (
        np.arange(size)
        if mask is None
        else np.flatnonzero(np.unpackbits(mask.numpy().view(np.uint8), bitorder="little")[:size])
    )


def sample(grammar: Grammar, budget: int, rng: np.random.Generator, *, forced: bool, first: str = "") -> str | None:
    """A random-weight model at temperature 1: uniform over the mask. The text, or None if the budget cut it."""
    known = tokenizer()
    constraint, ids, left = grammar.start(known, max_new_tokens=budget), list[int](), budget
    opening = known.encode(first)
    while left:
        allowed = ids_of(constraint.mask(), known.vocab_size)
        while True:
            assert len(allowed), known.decode(ids)
            token = opening.pop(0) if opening else int(rng.choice(allowed))
            if constraint.try_accept(token, left - 1):
                break
            allowed = allowed[allowed != token]
        ids.append(token)
        left -= 1
        if token in known.eos_ids:
            return known.decode(ids[:-1])
        run = constraint.forced(left) if forced else []
        assert len(run) <= left
        ids += run
        left -= len(run)
    return None


def accepts(grammar: Grammar, text: str, budget: int = 2000) -> bool:
    """Every token of `text` is in the mask or refused by none, and eos may follow."""
    known = tokenizer()
    constraint, left = grammar.start(known, max_new_tokens=budget), budget
    for token in [*known.encode(text, special=False), min(known.eos_ids)]:
        left -= 1
        if not constraint.try_accept(token, left):
            return False
    return True


def tools_of(schema: dict[str, Any]) -> list[ToolGrammar]:
    return [
        ToolGrammar(tool["properties"]["name"]["const"], tool["properties"]["arguments"])
        for tool in schema.get("anyOf", [schema])
    ]


def calls_in(text: str) -> list[Any]:
    if text.startswith("<think>"):
        text = text.split("</think>", 1)[1].lstrip("\n")
    assert text.startswith("<tool_calls>\n") and text.endswith("\n</tool_calls>")
    return [json.loads(line) for line in text.split("\n")[1:-1]]


def take(constraint: Constraint, text: str, left: int = 1000) -> int:
    for token in tokenizer().encode(text, special=False):
        left -= 1
        assert constraint.try_accept(token, left), text
    return left


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_valid_instances_are_accepted_and_invalid_ones_rejected(row: dict[str, Any]) -> None:
    value, calls = Grammar.from_json_schema(row["schema"]), Grammar.tool_calls(tools_of(row["schema"]), mode="required")
    for test in row["tests"]:
        text = render(test["data"])
        assert accepts(value, text) == test["valid"], text
        assert accepts(calls, f"<tool_calls>\n{text}\n</tool_calls>") == test["valid"], text


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_random_sampling_closes_every_value_within_every_budget(row: dict[str, Any]) -> None:
    grammar, validator = Grammar.from_json_schema(row["schema"]), Draft202012Validator(row["schema"])
    rng = np.random.default_rng(0)
    least = grammar.start(tokenizer(), max_new_tokens=10_000).min_tokens
    for budget in [*range(least, least + 41), 128, 256, 512]:
        text = sample(grammar, max(budget, least), rng, forced=budget % 3 > 0)
        assert text is not None, budget
        validator.validate(json.loads(text))
    with pytest.raises(BudgetError, match=str(least)):
        grammar.start(tokenizer(), max_new_tokens=least - 1)


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_random_sampling_closes_every_required_call_within_every_budget(row: dict[str, Any]) -> None:
    grammar, validator = (
        Grammar.tool_calls(tools_of(row["schema"]), mode="required"),
        Draft202012Validator(row["schema"]),
    )
    rng = np.random.default_rng(1)
    least = grammar.start(tokenizer(), max_new_tokens=10_000).min_tokens
    for budget in [*range(least, least + 41), 128, 256, 512]:
        text = sample(grammar, max(budget, least), rng, forced=budget % 3 > 0)
        assert text is not None, budget
        calls = calls_in(text)
        assert calls
        for call in calls:
            validator.validate(call)


@pytest.mark.parametrize("row", ROWS[:4], ids=IDS[:4])
def test_a_thought_before_a_required_call_is_ended_in_time(row: dict[str, Any]) -> None:
    grammar = Grammar.tool_calls(tools_of(row["schema"]), mode="required")
    rng = np.random.default_rng(2)
    least = grammar.start(tokenizer(), max_new_tokens=10_000).min_tokens + len(tokenizer().encode("<think></think>"))
    for budget in [*range(least, least + 20), 256]:
        text = sample(grammar, budget, rng, forced=True, first="<think>")
        assert text is not None and calls_in(text)


def test_budget_error_is_a_value_error_that_names_the_minimum() -> None:
    grammar = Grammar.tool_calls([ToolGrammar("weather", WEATHER)], mode="required")
    least = len(tokenizer().encode('<tool_calls>\n{"name": "weather", "arguments": {"city": ""}}\n</tool_calls>')) + 1
    with pytest.raises(ValueError, match="max_new_tokens") as caught:
        grammar.start(tokenizer(), max_new_tokens=3)
    assert isinstance(caught.value, BudgetError) and caught.value.minimum is not None
    assert 3 < caught.value.minimum <= least


def test_auto_text_is_free_and_the_trigger_starts_the_mask() -> None:
    known = tokenizer()
    constraint = Grammar.tool_calls([ToolGrammar("weather", WEATHER)]).start(known, max_new_tokens=1000)
    left = take(constraint, "Let me look. <tool_call> no; <tool_calls")
    assert constraint.mask() is None and constraint.min_tokens == 0 and not constraint.done
    left = take(constraint, ">", left)
    assert known.decode(constraint.forced(left)).startswith('\n{"name": "weather"')
    mask = constraint.mask()
    assert mask is not None and mask.dtype.is_signed and len(mask) == -(-known.vocab_size // 32)
    allowed = set(ids_of(mask, known.vocab_size))
    assert not allowed & set(known.special_ids.values())


@pytest.mark.parametrize("cut", range(1, 14))
def test_the_trigger_is_found_however_tokens_straddle_it(cut: int) -> None:
    known = tokenizer()
    body = 'ok<tool_calls>\n{"name": "ping", "arguments": {}}\n</tool_calls>'
    constraint = Grammar.tool_calls([ToolGrammar("ping", PING)]).start(known, max_new_tokens=1000)
    ids = known.encode(body[: cut + 2]) + known.encode(body[cut + 2 :])
    for n, token in enumerate(ids):
        assert constraint.try_accept(token, 900 - n)
    assert constraint.done
    assert list(ids_of(constraint.mask(), known.vocab_size)) == sorted(known.eos_ids)
    assert not constraint.try_accept(known.encode("a")[0], 10)


def test_a_token_that_ends_the_trigger_hands_its_rest_to_the_body() -> None:
    known = tokenizer()
    straddling = next(i for i, raw in enumerate(known.token_bytes) if raw == b">\n")
    wrong = [i for i, raw in enumerate(known.token_bytes) if raw.startswith(b">") and raw not in (b">", b">\n")]
    grammar = Grammar.tool_calls([ToolGrammar("ping", PING)])
    constraint = grammar.start(known, max_new_tokens=1000)
    take(constraint, "<tool_calls")
    for token in wrong:
        assert not constraint.try_accept(token, 500)
    assert constraint.mask() is None
    assert constraint.try_accept(straddling, 500)
    assert constraint.mask() is not None


def test_a_trigger_inside_a_thought_is_ignored() -> None:
    constraint = Grammar.tool_calls([ToolGrammar("ping", PING)]).start(tokenizer(), max_new_tokens=1000)
    left = take(constraint, "<think>I could write <tool_calls> now")
    assert constraint.mask() is None
    left = take(constraint, "</think>\n<tool_calls>", left)
    assert constraint.mask() is not None


def test_auto_refuses_a_trigger_whose_shortest_call_does_not_fit() -> None:
    known = tokenizer()
    grammar = Grammar.tool_calls([ToolGrammar("ping", PING)])
    last = known.encode("<tool_calls>")[-1]
    for left in range(60):
        constraint = grammar.start(known, max_new_tokens=500)
        for token in known.encode("<tool_calls>")[:-1]:
            assert constraint.try_accept(token, 400)
        taken = constraint.try_accept(last, left)
        assert constraint.min_tokens <= left if taken else constraint.mask() is None
    assert taken


def test_random_sampling_after_a_trigger_closes_within_every_budget() -> None:
    rng = np.random.default_rng(3)
    grammar = Grammar.tool_calls([ToolGrammar("weather", WEATHER), ToolGrammar("ping", PING)])
    for budget in range(40, 90):
        text = sample(grammar, budget, rng, forced=True, first="<tool_calls>")
        assert text is not None and calls_in(text)


def test_required_begins_with_a_thought_or_the_calls_and_masks_eos_until_done() -> None:
    known = tokenizer()
    grammar = Grammar.tool_calls([ToolGrammar("ping", PING)], mode="required")
    starts = {known.token_bytes[i] for i in ids_of(grammar.start(known, max_new_tokens=100).mask(), known.vocab_size)}
    assert b"<" in starts and {s for s in known.token_bytes if s.startswith(b"<think>")} <= starts
    assert all(b"<think>".startswith(s) or s.startswith(b"<think>") or b"<tool_calls>\n".startswith(s) for s in starts)
    call = '<tool_calls>\n{"name": "ping", "arguments": {}}\n</tool_calls>'
    for text in (call, f"<think>hm</think>{call}", f"<think>\n<tool_calls></think>\n\n{call}"):
        assert accepts(grammar, text), text
    for text in ("ok", f" {call}", f"<think>hm</think> {call}", "<think>hm", "<tool_calls>\n</tool_calls>", call[:-3]):
        assert not accepts(grammar, text), text


def test_required_allows_a_thought_whose_tag_is_part_of_a_longer_token() -> None:
    nano = Tokenizer.from_file(BUNDLED["m1-nano"])
    (opened,) = nano.encode("<think>\n")
    constraint = Grammar.tool_calls([ToolGrammar("ping", PING)], mode="required").start(nano, max_new_tokens=100)
    assert opened in ids_of(constraint.mask(), nano.vocab_size) and constraint.try_accept(opened, 99)


def test_number_of_calls() -> None:
    one = '{"name": "ping", "arguments": {}}\n'
    tools = [ToolGrammar("ping", PING)]
    block = {n: f"<tool_calls>\n{one * n}</tool_calls>" for n in (1, 2, 3)}
    assert [accepts(Grammar.tool_calls(tools, mode="required"), block[n]) for n in block] == [True, True, True]
    assert [accepts(Grammar.tool_calls(tools, mode="required", max_calls=2), block[n]) for n in block] == [
        True,
        True,
        False,
    ]
    assert [accepts(Grammar.tool_calls(tools, mode="required", parallel=False), block[n]) for n in block] == [
        True,
        False,
        False,
    ]


def test_forced_tokens_are_canonical_and_skip_most_of_a_call() -> None:
    known = tokenizer()
    constraint = Grammar.tool_calls([ToolGrammar("weather", WEATHER)], mode="required").start(known, max_new_tokens=500)
    ids = known.encode('<tool_calls>\n{"name": "weather", "arguments": {"city": "Paris", "days": 3}}\n</tool_calls>')
    done, passes, left = list[int](), 0, 500
    while len(done) < len(ids):
        left -= 1
        assert constraint.try_accept(ids[len(done)], left)
        done.append(ids[len(done)])
        run = constraint.forced(left)
        done, left, passes = done + run, left - len(run), passes + 1
        assert done == ids[: len(done)]
    assert passes < 0.6 * len(ids)
    assert constraint.done


def test_forks_and_refusals_leave_the_state_alone() -> None:
    known = tokenizer()
    constraint = Grammar.from_json_schema(WEATHER).start(known, max_new_tokens=100)
    left = take(constraint, '{"city": "A', 100)
    before = constraint.mask()
    other = constraint.fork()
    take(other, '", "days": 3}', left)
    assert not constraint.try_accept(known.encode("x")[0], 1)
    after = constraint.mask()
    assert before is not None and after is not None and before.equal(after)
    assert other.done and not constraint.done


@pytest.mark.parametrize("mode", ["required", "auto"])
def test_threads_share_a_grammar(mode: Any) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "integer"}}, "required": ["a"]}
    grammar = Grammar.tool_calls([ToolGrammar("f", schema), ToolGrammar("g", schema)], mode=mode)
    first = "" if mode == "required" else "<tool_calls>"

    def replies(_: int) -> list[str | None]:
        rng = np.random.default_rng(0)
        return [sample(grammar, budget, rng, forced=True, first=first) for budget in (60, 70, 80, 90)]

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(6) as threads:
            found = list(threads.map(replies, range(6)))
    finally:
        sys.setswitchinterval(interval)
    assert all(texts == found[0] for texts in found)


def test_regex_and_lark() -> None:
    assert accepts(Grammar.from_regex(r"[a-c]{2,4}/\d"), "abc/7") and not accepts(Grammar.from_regex("[a-c]{2,4}"), "d")
    assert accepts(Grammar.from_lark('start: "yes" | "no"'), "no") and not accepts(
        Grammar.from_lark('start: "yes"'), "no"
    )
    rng = np.random.default_rng(4)
    for budget in range(3, 20):
        text = sample(Grammar.from_regex("[a-c]{2,}"), budget, rng, forced=True)
        assert text is not None and len(text) >= 2 and set(text) <= set("abc")
    for broken in ("(", "(?=a)b"):
        with pytest.raises(SchemaError):
            Grammar.from_regex(broken)
    with pytest.raises(SchemaError):
        Grammar.from_lark("start: nowhere")


def test_names_of_any_characters() -> None:
    name = 'say "hi"\n\\é🙂'
    grammar = Grammar.tool_calls([ToolGrammar(name, PING), ToolGrammar("say", PING)], mode="required")
    assert accepts(grammar, f"<tool_calls>\n{render({'name': name, 'arguments': {}})}\n</tool_calls>")
    assert accepts(grammar, f"<tool_calls>\n{render({'name': 'say', 'arguments': {}})}\n</tool_calls>")


def test_the_200k_vocabulary() -> None:
    path = Path(__file__).parents[3] / "shared/m1/tokenizer.json"
    if not path.exists():
        pytest.skip("the tokenizer of MiniMax-M1 is not on this machine")
    known = Tokenizer.from_file(path)
    constraint = Grammar.tool_calls([ToolGrammar("weather", WEATHER)], mode="required").start(known, max_new_tokens=300)
    left, ids = 300, known.encode('<tool_calls>\n{"name": "weather", "arguments": {"city": "Málaga"}}\n</tool_calls>')
    for token in ids:
        mask, left = constraint.mask(), left - 1
        assert mask is not None and token in ids_of(mask, known.vocab_size)
        assert constraint.try_accept(token, left)
    assert constraint.done


def test_masks_agree_with_xgrammar() -> None:
    # Known to differ: llguidance writes neither DEL nor the escapes JSON does not need.
    xgr = pytest.importorskip("xgrammar")
    known = tokenizer()
    schema = {
        "type": "object",
        "properties": {"a": {"type": "boolean"}, "b": {"enum": ["x", "yy", "yz"]}, "c": {"type": "string"}},
        "required": ["a", "b", "c"],
        "additionalProperties": False,
    }
    info = xgr.TokenizerInfo(
        known.token_bytes,
        vocab_type=xgr.VocabType.RAW,
        vocab_size=known.vocab_size,
        stop_token_ids=sorted(known.eos_ids),
    )
    compiled = xgr.GrammarCompiler(info).compile_json_schema(
        json.dumps(schema), any_whitespace=False, separators=(", ", ": ")
    )
    theirs, ours = xgr.GrammarMatcher(compiled), Grammar.from_json_schema(schema).start(known, max_new_tokens=5000)
    for token in known.encode(render({"a": True, "b": "yz", "c": "hé x"})):
        mask = xgr.allocate_token_bitmask(1, known.vocab_size)
        theirs.fill_next_token_bitmask(mask)
        wide, narrow = set(ids_of(mask[0], known.vocab_size)), set(ids_of(ours.mask(), known.vocab_size))
        assert narrow <= wide
        missing = {known.token_bytes[i] for i in wide - narrow if i not in known.special_ids.values()}
        if len(narrow) > 1:  # where bytes are forced, ours holds their canonical token alone
            assert all(b"\x7f" in raw or b"\\" in raw for raw in missing), missing
        assert theirs.accept_token(token) and ours.try_accept(token, 4000)

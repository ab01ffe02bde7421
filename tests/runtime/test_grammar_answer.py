"""Calls or an answer: one mask decides, wherever a token begins and ends."""

from __future__ import annotations

import json
import random
from functools import cache
from typing import Any

import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from m1runtime.engine import BUNDLED
from m1runtime.errors import BudgetError, SchemaError
from m1runtime.grammar import Constraint, Grammar, ToolGrammar
from m1runtime.tokenizer import Tokenizer

FIND = ToolGrammar("find", {"type": "object", "properties": {"q": {"type": "string"}}, "required": ["q"]})
ANSWER: dict[str, Any] = {
    "type": "object",
    "properties": {"n": {"type": "integer"}, "why": {"type": "string"}},
    "required": ["n"],
    "additionalProperties": False,
}
CALL = '<tool_calls>\n{"name": "find", "arguments": {"q": "é"}}\n</tool_calls>'
GIVEN = '{"n": 12, "why": "<tool_calls> é"}'
THOUGHT = "<think>\nhm {<tool_calls>\n</think>\n"
REPLIES = [CALL, GIVEN, THOUGHT + CALL, THOUGHT + GIVEN, "<think></think>" + GIVEN, "<think>\n</think>\n\n" + CALL]
END = "<end_of_sentence>"
BUDGET = 400


@cache
def every_piece(longest: int = 24) -> Tokenizer:
    """A vocabulary of all bytes, and of everything up to that length that stands in one of the replies."""
    byte_of = {chr_: index for index, chr_ in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    spelled = ["".join(piece for piece, _ in _pre(reply)) for reply in REPLIES]
    pieces = {text[i : i + n] for text in spelled for i in range(len(text)) for n in range(2, longest + 1)}
    vocab = byte_of | {piece: 256 + index for index, piece in enumerate(sorted(pieces - byte_of.keys()))}
    bpe = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens([AddedToken(END, special=True, normalized=False)])
    return Tokenizer(bpe.to_str(), eos_token=END)


def _pre(text: str) -> list[tuple[str, tuple[int, int]]]:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)


@cache
def nano() -> Tokenizer:
    return Tokenizer.from_file(BUNDLED["m1-nano"])


def allowed(constraint: Constraint, token: int) -> bool:
    mask = constraint.mask()
    return mask is None or bool(int(mask.view(-1)[token // 32]) >> (token % 32) & 1)


def closes(constraint: Constraint, known: Tokenizer, left: int) -> bool:
    return constraint.done or constraint.try_accept(known.special_ids[END], left)


def takes(grammar: Grammar, known: Tokenizer, tokens: list[int], *, masked: bool = False) -> bool:
    """Whether it takes these tokens and then an end; `masked`: each must also be in the mask."""
    constraint, left = grammar.start(known, max_new_tokens=BUDGET), BUDGET
    for token in tokens:
        left -= 1
        if (masked and not allowed(constraint, token)) or not constraint.try_accept(token, left):
            return False
    return closes(constraint, known, left - 1)


def grammars() -> dict[str, tuple[Grammar, list[str]]]:
    """Each kind of reply, and those of REPLIES that are of it."""
    calls = [reply for reply in REPLIES if reply.endswith("</tool_calls>")]
    return {
        "calls or answer": (Grammar.tool_calls([FIND], answer=ANSWER), REPLIES),
        "answer": (Grammar.tool_calls([], answer=ANSWER), [reply for reply in REPLIES if reply not in calls]),
        "calls": (Grammar.tool_calls([FIND], mode="required"), calls),
        "free": (Grammar.tool_calls([FIND]), calls),
    }


@pytest.mark.parametrize("kind", ["calls or answer", "answer", "calls", "free"])
def test_a_token_may_straddle_any_boundary(kind: str) -> None:
    grammar, replies = grammars()[kind]
    known = every_piece()
    id_of = {raw: token for token, raw in enumerate(known.token_bytes)}
    for reply in replies:
        raw = reply.encode()
        for start in range(len(raw)):
            for length in (2, 3, 5, 9, 17, 24):
                pieces = [raw[i : i + 1] for i in range(start)] + [raw[start : start + length]]
                pieces += [raw[i : i + 1] for i in range(start + length, len(raw))]
                assert takes(grammar, known, [id_of[piece] for piece in pieces]), (reply, pieces[start])


@pytest.mark.parametrize("kind", ["calls or answer", "answer", "calls", "free"])
@pytest.mark.parametrize("known", [nano, every_piece], ids=["nano", "bytes"])
def test_the_models_own_spelling_is_in_the_mask(kind: str, known: Any) -> None:
    grammar, replies = grammars()[kind]
    for reply in replies:
        assert takes(grammar, known(), known().encode(reply, special=False), masked=True), reply


@pytest.mark.parametrize("kind", ["calls or answer", "answer", "calls"])
def test_nothing_else_is_taken(kind: str) -> None:
    grammar, _ = grammars()[kind]
    wrong = ["Hello", GIVEN + CALL, CALL + GIVEN, "\n" + CALL, '{"n": "x"}', "{}", " ", "<tool", THOUGHT, ""]
    wrong += [THOUGHT + "Well", THOUGHT + "\n\n\n" + CALL, THOUGHT + THOUGHT + CALL, GIVEN + "\n"]
    wrong += [reply for other in grammars().values() for reply in other[1] if reply not in grammars()[kind][1]]
    for known in (nano(), every_piece()):
        for text in wrong:
            assert not takes(grammar, known, known.encode(text, special=False)), text


@pytest.mark.parametrize("known", [nano, every_piece], ids=["nano", "bytes"])
def test_a_random_model_gives_one_or_the_other_within_every_budget(known: Any) -> None:
    grammar, rng, kinds = Grammar.tool_calls([FIND], answer=ANSWER), random.Random(0), set[str]()
    least = grammar.start(known(), max_new_tokens=BUDGET).min_tokens
    with pytest.raises(BudgetError):
        grammar.start(known(), max_new_tokens=least - 1)
    for budget in [least + extra for extra in range(24)] * 4:
        text = written(grammar, known(), budget, rng)
        rest = text.partition("</think>")[2] if text.startswith("<think>") else text
        rest = rest.lstrip("\n")
        kinds.add(("think " if text.startswith("<think>") else "") + rest[0])
        if rest.startswith("<tool_calls>\n"):
            assert rest.endswith("\n</tool_calls>")
            assert all("q" in json.loads(line)["arguments"] for line in rest.split("\n")[1:-1])
        else:
            assert isinstance(json.loads(rest)["n"], int)
    assert {"<", "{"} <= kinds


def written(grammar: Grammar, known: Tokenizer, budget: int, rng: random.Random) -> str:
    """Tokens drawn evenly from the mask, to the end."""
    constraint, ids, left = grammar.start(known, max_new_tokens=budget), list[int](), budget
    while not constraint.done:
        mask = constraint.mask()
        assert mask is not None
        words = mask.tolist()
        open_ = [i for i in range(known.vocab_size) if words[i // 32] >> (i % 32) & 1]
        rng.shuffle(open_)
        token = next(token for token in open_ if constraint.try_accept(token, left - 1))
        left -= 1
        if token in known.eos_ids:
            break
        ids += [token, *(run := constraint.forced(left))]
        left -= len(run)
    return known.decode(ids)


@pytest.mark.parametrize("before", ["", THOUGHT, THOUGHT + "\n", "<think>\n</think>"])
def test_while_both_are_open_the_constraint_tells_the_answer_apart(before: str) -> None:
    known = nano()
    for reply, brackets in ((CALL, "<"), (GIVEN, "{")):
        constraint, left = Grammar.tool_calls([FIND], answer=ANSWER).start(known, max_new_tokens=BUDGET), BUDGET
        for token in known.encode(before, special=False):
            left -= 1
            assert constraint.try_accept(token, left)
        mask = constraint.mask()
        assert mask is not None
        narrow = constraint.answering(mask)
        assert narrow is not None and bool((mask & ~narrow).any()) and not bool((narrow & ~mask).any())
        (first, *rest) = known.encode(reply, special=False)
        assert known.decode([first]).startswith(brackets)
        assert bool(int(narrow[first // 32]) >> (first % 32) & 1) == (brackets == "{")
        for token in (first, *rest):
            left -= 1
            assert constraint.try_accept(token, left)
            after = constraint.mask()
            assert after is not None and constraint.answering(after) is None
    for other in (Grammar.tool_calls([FIND], mode="required"), Grammar.tool_calls([], answer=ANSWER)):
        constraint = other.start(known, max_new_tokens=BUDGET)
        mask = constraint.mask()
        assert mask is not None and constraint.answering(mask) is None


def test_an_answer_nobody_can_compile_is_reported_and_left_to_validation() -> None:
    deep: dict[str, Any] = {"type": "integer"}
    for _ in range(200):
        deep = {"type": "array", "items": deep}
    grammar = Grammar.tool_calls([FIND], answer=deep)
    tool, answer = grammar.reports
    assert tool.enforced and [(item.path, item.keyword) for item in answer.unenforced] == [("", "*")]
    assert takes(grammar, nano(), nano().encode('{"any": [1]}', special=False))


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(SchemaError, match="at least one tool"):
        Grammar.tool_calls([])
    with pytest.raises(SchemaError, match=r"leave answer= out, or take mode='auto'"):
        Grammar.tool_calls([FIND], mode="required", answer=ANSWER)

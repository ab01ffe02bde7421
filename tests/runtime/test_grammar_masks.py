"""Masks that are held, shared and written in batches say what masks found anew say."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import pytest
import torch

import m1runtime
from m1runtime import Engine, Grammar, SamplingParams
from m1runtime.executor import Executor
from m1runtime.grammar import Constraint, ToolGrammar
from m1runtime.grammar import table as tables
from m1runtime.grammar.inside import programs
from m1runtime.grammar.lexicon import Lexicon
from m1runtime.grammar.masks import fill_masks
from m1runtime.grammar.rows import Rows
from m1runtime.grammar.table import Plan, Table
from m1runtime.grammar.vocabulary import vocabulary
from m1runtime.tokenizer import Tokenizer

NANO = Tokenizer.from_file(Path(m1runtime.__file__).parent / "nano")
KNOWN = vocabulary(NANO)
LEXICON = Lexicon(KNOWN)
PLAIN: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1, "maximum": 30}},
    "required": ["city"],
}
FOREIGN: dict[str, Any] = {
    "type": "object",
    "properties": {"code": {"type": "string", "pattern": "^[A-Z]{3}[0-9]+$"}},
    "required": ["code"],
}


def calls(schema: Any, name: str = "f", **options: Any) -> Grammar:
    return Grammar.tool_calls([ToolGrammar(name, schema), ToolGrammar("other", PLAIN)], **options)


def ids(mask: torch.Tensor) -> list[int]:
    return ((mask[:, None] >> torch.arange(32)) & 1).flatten().nonzero().flatten().tolist()


def walk(constraint: Constraint, left: int, seed: int, steps: int) -> list[int]:
    """Random tokens, taken one by one, with the mask looked at before each if `seed` is even."""
    pick, said = random.Random(seed), list[int]()
    while len(said) < steps and not constraint.done:
        mask = constraint.mask()
        token = pick.choice(ids(mask)) if mask is not None else pick.randrange(32, 90)
        if constraint.try_accept(token, left - len(said) - 1):
            said.append(token)
    return said


@pytest.mark.parametrize("schema", [PLAIN, FOREIGN])
@pytest.mark.parametrize("budget", [60, 5000])
def test_a_mask_that_was_prepared_is_the_one_found_when_asked(schema: Any, budget: int) -> None:
    for seed in range(4):
        grammar = calls(schema, name=f"held{seed}", mode="required", skip=("", ""))
        said = walk(grammar.start(NANO, max_new_tokens=budget), budget, seed, 50)
        prepared, asked = (grammar.start(NANO, max_new_tokens=budget) for _ in range(2))
        for n, token in enumerate(said, start=1):
            prepared.prepare()
            held = prepared.mask()
            prepared.prepare()
            assert held is not None and prepared.mask() is held
            other = asked.mask()
            assert other is not None and held.equal(other)
            assert prepared.try_accept(token, budget - n) and asked.try_accept(token, budget - n)


def test_a_prepared_mask_is_not_taken_for_the_next_one() -> None:
    grammar = calls(PLAIN, mode="required", skip=("", ""))
    constraint = grammar.start(NANO, max_new_tokens=500)
    constraint.prepare()
    branch = constraint.fork()
    first = constraint.mask()
    assert first is not None
    assert constraint.forced(500)
    after, before = constraint.mask(), branch.mask()
    assert after is not None and before is not None
    assert before.equal(first) and not after.equal(first)


def test_refused_tokens_leave_the_mask() -> None:
    constraint = calls(PLAIN, mode="required", skip=("", "")).start(NANO, max_new_tokens=500)
    mask = constraint.mask()
    assert mask is not None
    refused = [token for token, raw in enumerate(NANO.token_bytes) if not raw.startswith(b"<")]
    for token in [*refused[:50], *KNOWN.eos_ids]:
        assert not constraint.try_accept(token, 499)
    again = constraint.mask()
    assert again is not None and again.equal(mask)


def test_masks_of_a_batch_are_those_of_each() -> None:
    required = {"mode": "required", "skip": ("", "")}
    grammars = [calls(PLAIN, **required), calls(FOREIGN, **required), calls(PLAIN), Grammar.from_json_schema(PLAIN)]
    constraints: list[Constraint | None] = []
    for seed in range(16):
        budget = 300 if seed % 3 else 60
        constraint = grammars[seed % len(grammars)].start(NANO, max_new_tokens=budget)
        walk(constraint, budget, seed, seed)
        constraints += [constraint, None]
    out = torch.full((len(constraints), KNOWN.words + 3), 12345, dtype=torch.int32)
    fill_masks(constraints, out)
    some = 0
    for row, constraint in zip(out, constraints, strict=True):
        mask = None if constraint is None else constraint.mask()
        if mask is None:
            assert (row == -1).all()
            continue
        some += 1
        assert row[: KNOWN.words].equal(mask) and not row[KNOWN.words :].any()
    assert 8 <= some < len(constraints)


def test_a_batch_that_does_not_fit_is_told() -> None:
    constraint = calls(PLAIN, mode="required", skip=("", "")).start(NANO, max_new_tokens=300)
    with pytest.raises(ValueError, match=r"must be torch\.int32 \[2, words\]"):
        fill_masks([constraint, None], torch.zeros(1, KNOWN.words, dtype=torch.int32))
    with pytest.raises(ValueError, match=r"torch\.int64"):
        fill_masks([constraint], torch.zeros(1, KNOWN.words, dtype=torch.int64))
    with pytest.raises(ValueError, match=f"needs {KNOWN.words}"):
        fill_masks([constraint], torch.zeros(1, KNOWN.words - 1, dtype=torch.int32))


def test_the_row_of_every_token_is_that_token() -> None:
    for token in [*range(0, NANO.vocab_size, 7), 31, 32, 63, NANO.vocab_size - 1, 32 * KNOWN.words - 1]:
        assert ids(KNOWN.only(token)) == [token] and KNOWN.only(token).equal(KNOWN.mask_of([token]))


def test_blocks_hold_their_tokens_and_those_of_others() -> None:
    rows, pick = Rows(KNOWN.words), random.Random(0)
    for count in (0, 1, 64, 65, 500):
        some = sorted(pick.sample(range(32 * KNOWN.words), count))
        block = rows.block(some)
        assert ids(block.row) == some and block.any == bool(some)
        more = pick.sample(range(32 * KNOWN.words), 5)
        assert ids(rows.block(more, [block]).row) == sorted({*some, *more})
        assert ids(block.without(some[:3]).row) == some[3:] and ids(block.row) == some


def fresh(schema: Any) -> Table:
    """A table that nothing has been asked of yet."""
    plan = calls(schema, mode="required", skip=("", ""))._text.direct  # type: ignore[union-attr]
    assert isinstance(plan, Plan)
    return Table(LEXICON, plan, programs(NANO).get)


def masks_along(table: Table, tokens: list[int]) -> list[torch.Tensor]:
    constraint, found = Constraint(KNOWN, table.start, 800), list[torch.Tensor]()
    for n, token in enumerate(tokens, start=1):
        mask = constraint.mask()
        assert mask is not None and token in ids(mask)
        found.append(mask.clone())
        assert constraint.try_accept(token, 800 - n)
    return found


def test_masks_do_not_depend_on_what_was_asked_before() -> None:
    text = '<tool_calls>\n{"name": "f", "arguments": {"city": "Rome", "days": 3}}\n</tool_calls>'
    tokens, split = NANO.encode(text, special=False), [NANO.encode(char, special=False)[0] for char in text]
    first, second = fresh(PLAIN), fresh(PLAIN)
    for said in (split, tokens):  # spelled otherwise, and without a look at the masks
        constraint = Constraint(KNOWN, second.start, 800)
        assert all(constraint.try_accept(token, 800 - n) for n, token in enumerate(said, start=1))
    for one, other in zip(masks_along(first, tokens), masks_along(second, tokens), strict=True):
        assert one.equal(other)


def test_masks_are_right_where_nothing_more_may_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    wide, said = fresh(PLAIN), list[list[int]]()
    for seed in range(4):
        said.append(walk(Constraint(KNOWN, wide.start, 800), 800, seed, 60))
    known = [masks_along(wide, tokens) for tokens in said]
    monkeypatch.setattr(tables, "MAX_MOVES", 12)
    monkeypatch.setattr(tables, "MAX_MASKS", 2)
    tight = fresh(PLAIN)
    for _ in range(2):
        for tokens, masks in zip(said, known, strict=True):
            for mask, other in zip(masks, masks_along(tight, tokens), strict=True):
                assert mask.equal(other)


FREE: dict[str, Any] = {
    "type": "object",
    "properties": {"n": {"type": "number"}, "value": {}, "kind": {"enum": ["red", "reddish", "blue"]}},
    "required": ["n", "value", "kind"],
}


def passes(table: Table, budget: int, seed: int, *, ahead: int) -> list[tuple[int, list[int], list[int]]]:
    """A random reply of up to 40 passes: each token with the run and the mask after it, up to `ahead` pieces looked
    ahead before it."""
    constraint, pick, left = Constraint(KNOWN, table.start, budget), random.Random(seed), budget
    found: list[tuple[int, list[int], list[int]]] = []
    allowed = constraint.mask()
    while len(found) < 40 and left and allowed is not None and not constraint.done:
        assert all(piece is None for piece in itertools.islice(constraint.look_ahead(), ahead))
        some = ids(allowed)
        token = pick.choice([one for one in some if NANO.token_bytes[one][:1] in b'",}]0'] or some)
        if not constraint.try_accept(token, left - 1):
            continue
        run = constraint.forced(left - 1)
        left -= 1 + len(run)
        allowed = constraint.mask()
        found.append((token, run, [] if allowed is None else ids(allowed)))
    return found


@pytest.mark.parametrize("schema", [PLAIN, FOREIGN, FREE])
@pytest.mark.parametrize("budget", [50, 60, 5000])
def test_looking_ahead_changes_nothing(schema: Any, budget: int) -> None:
    for seed in range(3):
        plain = passes(fresh(schema), budget, seed, ahead=0)
        assert any(run for _, run, _ in plain)
        assert passes(fresh(schema), budget, seed, ahead=1) == plain
        assert passes(fresh(schema), budget, seed, ahead=10**6) == plain


def test_what_was_looked_ahead_at_is_not_looked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    text = '<tool_calls>\n{"name": "f", "arguments": {"city": "Rome", "days": 21}}\n</tool_calls>'
    said = NANO.encode(text, special=False)
    constraint, at = Constraint(KNOWN, fresh(PLAIN).start, 800), 0
    constraint.prepare()
    runs = list[int]()
    while at < len(said):
        list(constraint.look_ahead())
        assert list(constraint.look_ahead()) == []
        with monkeypatch.context() as patch:
            for owner, name in ((Lexicon, "mask"), (Lexicon, "firm"), (Table, "forced")):
                patch.setattr(owner, name, None)
            assert constraint.try_accept(said[at], 799 - at)
            run = constraint.forced(799 - at)
            constraint.prepare()
        assert run[: len(said) - at - 1] == said[at + 1 : at + 1 + len(run)]
        at += 1 + len(run)
        runs.append(len(run))
    assert sum(runs) > 6


def test_values_that_are_not_plain_are_not_made_before_they_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    table = fresh(FOREIGN)
    monkeypatch.setattr(table, "free", None)
    assert list(Constraint(KNOWN, table.start, 800).look_ahead()) == []


def test_an_engine_looks_ahead_while_a_pass_runs_and_replies_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    nano = Engine.from_pretrained("m1-nano", device="cpu", progress=False)

    def replies(name: str) -> tuple[list[tuple[int, ...]], int]:
        grammar = calls(PLAIN, name, mode="required")
        plan = grammar._text.after_thinking  # type: ignore[union-attr]
        params = SamplingParams(max_new_tokens=60, seed=3)
        found = [one.ids for one in nano.generate([[1, 2], [3, 4, 5]], params, grammar)]
        table = programs(nano.tokenizer).get(plan)  # type: ignore[arg-type]
        return found, len(table._looked)  # type: ignore[union-attr]

    assert nano.tokenizer is not None and not nano._executor.running
    before, none = replies("look")
    programs(nano.tokenizer)._programs.clear()
    monkeypatch.setattr(Executor, "running", property(lambda executor: True))
    after, some = replies("look")
    assert before == after
    assert none == 0 and some > 0

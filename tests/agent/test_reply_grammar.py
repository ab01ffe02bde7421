"""The grammar and the reply parser must agree on where a reply's calls begin."""

from __future__ import annotations

import json
from functools import cache

from hypothesis import example, given, settings
from hypothesis import strategies as st

from m1agent.messages import ToolSpec
from m1agent.prompt.envelope import CALLS_OPEN, THINK_CLOSE, THINK_OPEN, Envelope
from m1agent.prompt.reply import ReplyParser, parse_reply
from m1runtime.engine import BUNDLED
from m1runtime.grammar import Grammar, ToolGrammar
from m1runtime.grammar.matcher import Scanner
from m1runtime.tokenizer import Tokenizer

CALL = '{"name": "f", "arguments": {}}'
FRAGMENTS = st.sampled_from(
    ["<think>", "</think>", "<tool_calls>", "<tool_", "calls>", "<think", ">", "</", "think>", "\n", " ", "é", "a", "<"]
)


@settings(max_examples=500, deadline=None)
@given(st.lists(FRAGMENTS, max_size=10).map("".join))
@example("<think><tool_calls></think><tool_calls>")
@example("a<think><tool_calls></think><tool_calls>")
@example("<tool_calls")
def test_the_calls_begin_where_the_grammar_does(text: str) -> None:
    scanner = Scanner(CALLS_OPEN.encode(), THINK_OPEN.encode(), THINK_CLOSE.encode())
    rest = scanner.scan(text.encode())[1]
    if rest is None:
        assert parse_reply(text + CALL).calls == ()
        return
    start = text[: len(text) - len(rest.decode())]
    assert [call.name for call in parse_reply(start + CALL).calls] == ["f"]
    assert parse_reply(start[:-1] + CALL).calls == ()


ANSWER = {"type": "object"}
ENVELOPE = Envelope((ToolSpec("f", "", {"type": "object", "properties": {}}),), answer=ANSWER)
TEXTS = st.lists(FRAGMENTS, max_size=6).map("".join)


@cache
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(BUNDLED["m1-nano"])


@settings(max_examples=200, deadline=None)
@given(
    thinking=st.none() | TEXTS.filter(lambda text: THINK_CLOSE not in text),
    newlines=st.sampled_from(["", "\n", "\n\n"]),
    said=st.integers(1, 3) | st.dictionaries(TEXTS, TEXTS, max_size=2),
    cuts=st.lists(st.integers(0, 200), max_size=8),
)
def test_calls_or_an_answer_are_read_as_they_were_written(
    thinking: str | None, newlines: str, said: int | dict[str, str], cuts: list[int]
) -> None:
    """`said`: how many calls, or the answer. Each piece may be of many tokens, or of a part of one."""
    before = "" if thinking is None else f"<think>{thinking}</think>{newlines}"
    calls = f"{CALLS_OPEN}\n" + f"{CALL}\n" * said + "</tool_calls>" if isinstance(said, int) else ""
    text = before + (calls or json.dumps(said, ensure_ascii=False))
    grammar = Grammar.tool_calls([ToolGrammar("f", {"type": "object", "properties": {}})], answer=ANSWER)
    constraint, left = grammar.start(tokenizer(), max_new_tokens=900), 900
    ends = sorted({*(cut for cut in cuts if cut < len(text)), len(text)})
    parser = ReplyParser(ENVELOPE)
    for start, end in zip([0, *ends], ends, strict=False):
        parser.feed(text[start:end])
        for token in tokenizer().encode(text[start:end], special=False):
            left -= 1
            assert constraint.try_accept(token, left), text[:end]
    assert constraint.done or constraint.try_accept(min(tokenizer().eos_ids), left - 1)
    reply = parser.finish()[1]
    assert reply == parse_reply(text, ENVELOPE)
    if isinstance(said, int):
        assert [call.name for call in reply.calls] == ["f"] * said and not reply.text.strip()
    else:
        assert reply.calls == () and json.loads(reply.text) == said

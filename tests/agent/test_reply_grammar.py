"""The grammar and the reply parser must agree on where a reply's calls begin."""

from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st

from m1agent.prompt.envelope import CALLS_OPEN, THINK_CLOSE, THINK_OPEN
from m1agent.prompt.reply import parse_reply
from m1runtime.grammar.matcher import Scanner

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

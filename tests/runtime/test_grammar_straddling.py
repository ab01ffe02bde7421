"""A token that begins in forced text and ends in what is free is never cut up."""

from __future__ import annotations

import pytest

from m1runtime import Engine, Grammar
from m1runtime.grammar import ToolGrammar

OPTIONAL = {"type": "object", "properties": {"slow": {"type": "boolean"}}}


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.from_pretrained("m1-nano")


@pytest.mark.parametrize("arguments", ["{}", '{"slow": true}'])
def test_the_models_own_spelling_of_a_call_is_open_to_the_end(engine: Engine, arguments: str) -> None:
    tokenizer = engine.tokenizer
    assert tokenizer is not None
    tools = [ToolGrammar("wash", OPTIONAL), ToolGrammar("dry", OPTIONAL)]
    text = f'<tool_calls>\n{{"name": "wash", "arguments": {arguments}}}\n</tool_calls>'
    spelled = tokenizer.encode(text, special=False)
    constraint = Grammar.tool_calls(tools).start(tokenizer, max_new_tokens=100)
    at = 0
    while at < len(spelled):
        token, mask = spelled[at], constraint.mask()
        assert mask is None or (int(mask.view(-1)[token // 32]) >> (token % 32)) & 1
        assert constraint.try_accept(token, 100 - at - 1)
        at += 1
        forced = constraint.forced(100 - at)
        assert forced == spelled[at : at + len(forced)]
        at += len(forced)

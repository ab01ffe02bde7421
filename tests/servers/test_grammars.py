"""Every tool that an official server lists can be called by a local model: its calls are written under a grammar, and
the shortest call that the grammar allows passes the server's own schema."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from m1agent.mcp.config import StdioServer
from m1agent.mcp.hub import McpHub
from m1agent.models.local import LocalModel
from m1agent.prompt.envelope import Envelope
from m1agent.tools import Tool
from m1runtime import Grammar, Tokenizer

FAKE = {"MINIMAX_API_KEY": "unused", "MINIMAX_API_HOST": "http://127.0.0.1:9"}
COUNTS = {
    "time": 2,
    "fetch": 1,
    "git": 12,
    "filesystem": 14,
    "everything": 12,
    "memory": 9,
    "sequential-thinking": 1,
    "minimax-0.0.18": 9,
    "minimax-0.0.19": 8,
}

LEFT_OUT = {"everything": ["simulate-research-query"]}  # It must be run as a task.


@pytest.fixture(scope="session")
def model() -> LocalModel:
    return LocalModel("m1-nano")


@pytest.fixture(params=COUNTS)
def server(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[StdioServer, int]:
    name: str = request.param
    if name in ("time", "fetch", "git"):
        return request.getfixturevalue(f"{name}_server"), COUNTS[name]
    if name.startswith("minimax"):
        return request.getfixturevalue("minimax")(name.removeprefix("minimax-"), **FAKE), COUNTS[name]
    args = {"filesystem": [str(tmp_path)], "everything": ["stdio"]}.get(name, [])
    env = {"MEMORY_FILE_PATH": str(tmp_path / "memory.jsonl")} if name == "memory" else {}
    return request.getfixturevalue("node_server")(name, *args, **env), COUNTS[name]


def test_every_tool_has_a_grammar_that_its_schema_agrees_with(
    server: tuple[StdioServer, int], connected: Callable[..., Any], model: LocalModel
) -> None:
    async def use(hub: McpHub, tools: dict[str, Tool]) -> tuple[Tool, ...]:
        assert [bad.name for bad in hub.status[0].left_out] == LEFT_OUT.get(hub.status[0].name, [])
        return hub.tools

    config, count = server
    tools: tuple[Tool, ...] = connected(use, config)
    assert len(tools) == count
    together = grammar(model, *tools)
    assert [report.name for report in together.reports] == [tool.name for tool in tools]
    assert [report for report in together.reports if not report.enforced] == []
    for tool in tools:
        written = shortest(grammar(model, tool), model.tokenizer)
        call = json.loads(written.removeprefix("<tool_calls>\n").removesuffix("\n</tool_calls>"))
        assert call["name"] == tool.name
        assert tool.validate(call["arguments"]).coercions == ()
        assert takes(together, model.tokenizer, written)
        empty = f'<tool_calls>\n{{"name": "{tool.name}", "arguments": {{}}}}\n</tool_calls>'
        assert takes(together, model.tokenizer, empty) == (not tool.spec.parameters.get("required"))


def grammar(model: LocalModel, *tools: Tool) -> Grammar:
    made = model.grammar(Envelope(tuple(tool.spec for tool in tools), "required"))
    assert made is not None
    return made


def shortest(grammar: Grammar, tokenizer: Tokenizer) -> str:
    """What is written when the token budget is just enough and the model always wants the last token it may have."""
    budget = grammar.start(tokenizer, max_new_tokens=10_000).min_tokens
    constraint = grammar.start(tokenizer, max_new_tokens=budget)
    ids: list[int] = []
    while not constraint.done:
        mask = constraint.mask()
        assert mask is not None
        allowed = np.flatnonzero(np.unpackbits(mask.numpy().view(np.uint8), bitorder="little")[: tokenizer.vocab_size])
        ids.append(int(allowed[-1]))
        assert constraint.try_accept(ids[-1], budget - len(ids))
    assert len(ids) <= budget
    return b"".join(tokenizer.token_bytes[i] for i in ids if i not in tokenizer.eos_ids).decode()


def takes(grammar: Grammar, tokenizer: Tokenizer, text: str) -> bool:
    ids = [*tokenizer.encode(text, special=False), next(iter(tokenizer.eos_ids))]
    constraint = grammar.start(tokenizer, max_new_tokens=10_000)
    return all(constraint.try_accept(token, 5_000) for token in ids)

"""Requests that are wrong: each is refused in OpenAI's shape, and the message names the field and the remedy."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from m1agent.models.local import LocalModel
from m1agent.models.scripted import ScriptedModel

Serving = Callable[..., Any]
USER = {"role": "user", "content": "Hi"}
TOOL = {"type": "function", "function": {"name": "go", "parameters": {"type": "object"}}}
CALLED = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "go", "arguments": "{}"}}],
}


@pytest.mark.parametrize(
    ("body", "param", "told"),
    [
        ({"messages": []}, "messages", "at least 1 item"),
        ({"messages": None}, "messages", "list"),
        ({"messages": [{"role": "system", "content": "Be kind."}]}, "messages", "add a user message"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "missing"),
        ({"messages": [{"role": "robot", "content": ""}]}, "messages[0]", "'robot'"),
        ({"messages": [{"content": ""}]}, "messages[0]", "role"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content[0].type",
            "reads text",
        ),
        ({"messages": [USER, CALLED]}, "messages", "'c1' before it has no result"),
        ({"messages": [USER, CALLED, USER]}, "messages", "has no result"),
        ({"messages": [USER, {"role": "tool", "tool_call_id": "c2", "content": ""}]}, "messages[1].tool_call_id", "c2"),
        (
            {"messages": [USER, CALLED, *[{"role": "tool", "tool_call_id": "c1", "content": ""}] * 2]},
            "messages[3].tool_call_id",
            "a result already",
        ),
        (
            {"messages": [USER, {"role": "assistant", "function_call": {"name": "go", "arguments": "[1]"}}]},
            "messages[1].function_call.arguments",
            "JSON object",
        ),
        ({"temperature": 3}, "temperature", "less than or equal to 2"),
        ({"temperature": "0"}, "temperature", "number"),
        ({"top_p": 0}, "top_p", "greater than 0"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"max_tokens": True}, "max_tokens", "integer"),
        ({"n": 17}, "n", "at most 16"),
        ({"stop": ""}, "stop", "empty"),
        ({"stop": ["a", ""]}, "stop", "empty"),
        ({"seed": 1.5}, "seed", "integer"),
        ({"presence_penalty": 1}, "presence_penalty", "leave it out"),
        ({"logit_bias": {"1": 2}}, "logit_bias", "leave it out"),
        ({"temprature": 1}, "temprature", 'Did you mean "temperature"'),
        ({"stream_options": {"include_usage": True}}, "stream_options", "stream: true"),
        ({"tools": [TOOL, TOOL]}, "tools[1].function.name", "two tools called 'go'"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name", "pattern"),
        (
            {"tools": [{"type": "function", "function": {"name": "go", "parameters": {"type": "objekt"}}}]},
            "tools",
            "'go'",
        ),
        (
            {"tools": [{"type": "function", "function": {"name": "go", "parameters": {"$ref": "http://x/y"}}}]},
            "tools",
            "'go'",
        ),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "functions"),
        ({"tool_choice": "required"}, "tool_choice", "send tools"),
        ({"tools": [TOOL], "tool_choice": "sometimes"}, "tool_choice", "'required'"),
        (
            {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "stop"}}},
            "tool_choice",
            "there are: go",
        ),
        ({"tools": [TOOL], "functions": [TOOL["function"]]}, "functions", "older form"),
        ({"tools": [TOOL], "function_call": "auto"}, "function_call", "does not go with tools"),
        ({"response_format": {"type": "yaml"}}, "response_format", "'json_schema'"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": 1}}}},
            "response_format",
            "not a JSON Schema",
        ),
        ({"logprobs": True}, "logprobs", "leave them out"),
        ({"top_logprobs": 2}, "top_logprobs", "logprobs: true"),
    ],
)
def test_a_wrong_field_is_named_with_its_remedy(serving: Serving, body: Any, param: str, told: str) -> None:
    model = ScriptedModel([])
    answer = serving(model).chat(**body)
    error = answer.json()["error"]
    assert answer.status_code == 400, answer.text
    assert error["param"] == param and told in error["message"], error
    assert error["type"] == "invalid_request_error" and model.requests == []


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"", "JSON"),
        (b"{", "JSON"),
        (b"[]", "object"),
        (b'{"model": NaN}', "JSON"),
        (b"\xff", "JSON"),
        (b'{"messages":' + b"[" * 100_000, "recursion"),
    ],
)
def test_a_body_that_is_no_json(serving: Serving, body: bytes, told: str) -> None:
    served = serving(ScriptedModel([]))
    answer = served.client.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400 and told in answer.json()["error"]["message"]


def test_paths_methods_kinds_and_names(serving: Serving) -> None:
    client = (served := serving(ScriptedModel([]))).client
    answer = client.get("/v2/chat")
    assert answer.status_code == 404 and "/openapi.json" in answer.json()["error"]["message"]
    answer = client.get("/v1/chat/completions")
    assert (
        answer.status_code == 405 and answer.headers["allow"] == "POST" and "POST" in answer.json()["error"]["message"]
    )
    answer = client.post("/v1/chat/completions", content=b"{}", headers={"Content-Type": "text/plain"})
    assert answer.status_code == 415 and "application/json" in answer.json()["error"]["message"]
    answer = served.chat(model="gpt-4")
    assert answer.status_code == 404 and answer.json()["error"]["code"] == "model_not_found"
    answer = client.post("/v1/completions", json={"model": "scripted", "prompt": "Once"})
    assert answer.status_code == 400 and "/v1/chat/completions" in answer.json()["error"]["message"]


def test_a_body_is_bounded_in_size_and_time(serving: Serving) -> None:
    served = serving(ScriptedModel([]), body_bytes=1000, body_seconds=0.3)
    answer = served.chat(messages=[{"role": "user", "content": "word " * 1000}])
    assert answer.status_code == 413 and "--max-body" in answer.json()["error"]["message"]

    def parts() -> Any:
        yield from [b" " * 600] * 4

    headers = {"Content-Type": "application/json"}
    answer = served.client.post("/v1/chat/completions", content=parts(), headers=headers)
    assert answer.status_code == 413
    host, port = served.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as slow:
        slow.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n")
        slow.sendall(b"Content-Length: 900\r\n\r\n{")
        assert slow.recv(1000).startswith(b"HTTP/1.1 408")


def test_a_conversation_beyond_the_context_is_refused(serving: Serving, folder: Path) -> None:
    model = LocalModel(folder)
    long = "word " * model.engine.config.max_position_embeddings
    answer = serving(model).chat(messages=[{"role": "user", "content": long}])
    assert answer.status_code == 400 and answer.json()["error"]["code"] == "context_length_exceeded"


def test_a_budget_no_call_fits_in_is_refused(serving: Serving, folder: Path) -> None:
    served = serving(LocalModel(folder))
    answer = served.chat(tools=[TOOL], tool_choice="required", max_completion_tokens=3)
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["param"] == "max_completion_tokens" and "at least" in error["message"]
    streamed = served.chat(tools=[TOOL], tool_choice="required", max_completion_tokens=3, stream=True)
    assert streamed.status_code == 400 and streamed.json()["error"] == error


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
FIELDS = st.sampled_from(
    "messages tools tool_choice functions function_call response_format stop n seed stream temperature top_p "
    "max_tokens max_completion_tokens stream_options logprobs model other".split()
)


def test_whatever_is_sent_is_answered_and_never_as_a_failure_of_the_server(serving: Serving) -> None:
    served = serving(ScriptedModel([lambda _: "Hi." for _ in range(100_000)]))

    @settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.dictionaries(FIELDS, JSON, max_size=4), st.binary(max_size=30) | st.none())
    def ask(fields: dict[str, Any], garbage: bytes | None) -> None:
        body = json.dumps({"model": "scripted", "messages": [USER], **fields}).encode()
        if garbage is not None:
            body = body[: len(body) // 2] + garbage + body[len(body) // 2 :]
        answer = served.client.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code in (200, 400, 404), answer.text

    ask()
    assert served.client.get("/health").json()["running"] == 0

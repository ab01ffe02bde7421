"""Chat requests over real HTTP: what clients send, and what they get."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from m1agent import cli_serve
from m1agent.messages import AssistantMessage, SystemMessage, ToolCall, ToolMessage, UserMessage
from m1agent.models.local import LocalModel
from m1agent.models.scripted import ScriptedModel
from m1agent.prompt.envelope import Named
from m1runtime import ConfigError
from m1runtime.compiled import check

Serving = Callable[..., Any]

PAINT = {
    "name": "paint",
    "description": "Paint the wall.",
    "parameters": {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "green"]}, "coats": {"type": "integer"}},
        "required": ["colour"],
        "additionalProperties": False,
    },
}
WASH = {"name": "wash", "description": "Wash it.", "parameters": {"type": "object", "properties": {}}}
TOOLS = [{"type": "function", "function": PAINT}, {"type": "function", "function": WASH}]
CALL = '<tool_calls>\n{"name": "paint", "arguments": {"colour": "red"}}\n</tool_calls>'


ANSWER: Any = PAINT["parameters"]


@pytest.fixture
def random_model(folder: Path) -> LocalModel:
    return LocalModel(folder, max_tokens=64)


def assembled(chunks: list[dict[str, Any]], index: int = 0) -> dict[str, Any]:
    """The message that the chunks of a choice tell, as clients put it together."""
    message: dict[str, Any] = {"content": "", "calls": {}}
    for chunk in chunks:
        for choice in chunk["choices"]:
            if choice["index"] != index:
                continue
            delta = choice["delta"]
            message["content"] += delta.get("content") or ""
            message["finish"] = choice["finish_reason"]
            for call in delta.get("tool_calls", ()):
                held = message["calls"].setdefault(call["index"], {"name": "", "arguments": ""})
                held["name"] += call["function"].get("name", "")
                held["arguments"] += call["function"]["arguments"]
            if "reasoning_content" in delta:
                message["thinking"] = message.get("thinking", "") + delta["reasoning_content"]
    return message


def test_a_reply_whole_and_in_chunks(serving: Serving) -> None:
    reply = f"<think>\nWell.\n</think>\nI paint. {CALL}"
    model = ScriptedModel([reply, reply], chunk=3)
    served = serving(model)
    whole = served.chat(tools=TOOLS).json()
    message = whole["choices"][0]["message"]
    assert whole["object"] == "chat.completion" and whole["model"] == "scripted"
    assert message["content"] == "I paint. " and message["reasoning_content"] == "Well."
    assert message["tool_calls"][0]["function"] == {"name": "paint", "arguments": '{"colour": "red"}'}
    assert whole["choices"][0]["finish_reason"] == "tool_calls"
    usage = whole["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"] > 0

    chunks = served.chunks(tools=TOOLS, stream_options={"include_usage": True})
    assert len({chunk["id"] for chunk in chunks}) == 1 and chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    told = assembled(chunks)
    assert told["content"] == "I paint. " and told["thinking"] == "Well." and told["finish"] == "tool_calls"
    assert told["calls"] == {0: {"name": "paint", "arguments": '{"colour": "red"}'}}
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"] == usage
    assert all(chunk["usage"] is None for chunk in chunks[:-1])


def test_every_kind_of_message_reaches_the_model(serving: Serving) -> None:
    model = ScriptedModel(["Done."])
    call = {"id": "a", "type": "function", "function": {"name": "paint", "arguments": '{"colour": "red"}'}}
    other = {"id": "b", "type": "function", "function": {"name": "wash", "arguments": ""}}
    answer = serving(model).chat(
        tools=TOOLS,
        messages=[
            {"role": "system", "content": "Be kind. "},
            {"role": "developer", "content": [{"type": "text", "text": "Be brief."}]},
            {"role": "user", "content": [{"type": "text", "text": "Pa"}, {"type": "text", "text": "int."}]},
            {"role": "assistant", "content": None, "reasoning_content": "Hm.", "tool_calls": [call, other]},
            {"role": "tool", "tool_call_id": "b", "content": "washed"},
            {"role": "tool", "tool_call_id": "a", "content": "painted"},
            {"role": "system", "content": "Go on."},
            {"role": "user", "content": "More.", "name": "ann"},
        ],
    )
    assert answer.status_code == 200, answer.text
    asked = model.requests[0]
    user, reply, results, system, more = asked.messages
    assert user == UserMessage("Paint.") and system == SystemMessage("Go on.") and more == UserMessage("More.")
    calls = (ToolCall("a", "paint", {"colour": "red"}), ToolCall("b", "wash", {}))
    assert reply == AssistantMessage("", "Hm.", calls)
    assert isinstance(results, ToolMessage)
    assert [(one.name, one.content) for one in results.results] == [("paint", "painted"), ("wash", "washed")]


@pytest.mark.parametrize(
    ("choice", "expected", "tools"),
    [
        (None, "auto", 2),
        ("auto", "auto", 2),
        ("none", "none", 2),
        ("required", "required", 2),
        ({"type": "function", "function": {"name": "wash"}}, Named("wash"), 2),
        (
            {
                "type": "allowed_tools",
                "allowed_tools": {
                    "mode": "required",
                    "tools": [{"type": "function", "function": {"name": "paint"}}],
                },
            },
            "required",
            1,
        ),
    ],
)
def test_tool_choice_in_all_forms(serving: Serving, choice: Any, expected: Any, tools: int) -> None:
    name = "wash" if isinstance(expected, Named) else "paint"
    reply = "Fine." if expected in ("auto", "none") else CALL.replace("paint", name)
    model = ScriptedModel([reply])
    answer = serving(model).chat(tools=TOOLS, tool_choice=choice, parallel_tool_calls=False)
    assert answer.status_code == 200, answer.text
    envelope = model.requests[0].envelope
    assert envelope.choice == expected and len(envelope.tools) == tools and not envelope.parallel


def test_the_older_form_of_functions(serving: Serving) -> None:
    model = ScriptedModel([CALL, CALL, "It is red."])
    served = serving(model)
    answer = served.chat(functions=[PAINT], function_call={"name": "paint"}).json()["choices"][0]
    assert answer["finish_reason"] == "function_call"
    assert answer["message"]["function_call"] == {"name": "paint", "arguments": '{"colour": "red"}'}
    assert "tool_calls" not in answer["message"] and answer["message"]["content"] is None
    deltas = [chunk["choices"][0]["delta"] for chunk in served.chunks(functions=[PAINT])]
    told = [delta["function_call"] for delta in deltas if "function_call" in delta]
    assert told[0]["name"] == "paint" and "".join(one["arguments"] for one in told) == '{"colour": "red"}'
    history = [
        {"role": "user", "content": "Paint."},
        answer["message"],
        {"role": "function", "name": "paint", "content": "painted"},
    ]
    last = served.chat(functions=[PAINT], messages=history).json()["choices"][0]
    assert last["message"]["content"] == "It is red." and last["finish_reason"] == "stop"


def test_a_random_model_makes_valid_calls_and_answers_only(serving: Serving, random_model: LocalModel) -> None:
    import jsonschema

    served = serving(random_model)
    for seed in range(2):
        calls = served.chat(tools=TOOLS, tool_choice="required", seed=seed, parallel_tool_calls=False).json()
        (call,) = calls["choices"][0]["message"]["tool_calls"]
        schema: Any = PAINT if call["function"]["name"] == "paint" else WASH
        jsonschema.validate(json.loads(call["function"]["arguments"]), schema["parameters"])
        wanted = {"type": "json_schema", "json_schema": {"name": "it", "schema": PAINT["parameters"], "strict": True}}
        answer = served.chat(response_format=wanted, seed=seed).json()["choices"][0]["message"]["content"]
        jsonschema.validate(json.loads(answer), PAINT["parameters"])
        answer = served.chat(response_format={"type": "json_object"}, seed=seed).json()
        assert isinstance(json.loads(answer["choices"][0]["message"]["content"]), dict)


def test_seeds_budgets_and_stops(serving: Serving, random_model: LocalModel) -> None:
    served = serving(random_model)

    def said(**body: Any) -> dict[str, Any]:
        return served.chat(**{"temperature": 1.5, "max_tokens": 24, "seed": 7, **body}).json()["choices"][0]

    text = said()["message"]["content"]
    assert text == said()["message"]["content"] != said(seed=8)["message"]["content"]
    assert said(seed=-7)["message"]["content"] != text  # any 64-bit number will do
    cut = said(max_completion_tokens=5)
    assert cut["finish_reason"] == "length" and text.startswith(cut["message"]["content"])
    stop = text[6:9]
    short = said(stop=["never said", stop])
    assert short["message"]["content"] == text[: text.index(stop)] and short["finish_reason"] == "stop"


def test_the_server_bounds_replies(serving: Serving, random_model: LocalModel) -> None:
    served = serving(random_model, tokens=6)
    for asked, written in (({}, 6), ({"max_tokens": 2000}, 6), ({"max_tokens": 4}, 4)):
        answer = served.chat(seed=7, temperature=1.5, **asked).json()
        assert answer["usage"]["completion_tokens"] == written
        assert answer["choices"][0]["finish_reason"] == "length"


def test_several_choices_part_from_one_prompt(serving: Serving, random_model: LocalModel) -> None:
    served = serving(random_model)
    body: dict[str, Any] = {"temperature": 1.5, "max_tokens": 12, "seed": 3}
    messages = [{"role": "user", "content": "word " * 60}]
    single = served.chat(messages=messages, **body).json()
    answer = served.chat(messages=messages, n=3, **body).json()
    texts = [choice["message"]["content"] for choice in answer["choices"]]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2] and len(set(texts)) == 3
    assert texts[0] == single["choices"][0]["message"]["content"]
    assert answer["usage"]["prompt_tokens"] == single["usage"]["prompt_tokens"]
    assert answer["usage"]["completion_tokens"] > 2 * single["usage"]["completion_tokens"]
    chunks = served.chunks(messages=messages, n=3, **body)
    assert [assembled(chunks, index)["content"] for index in range(3)] == texts


def test_a_conversation_goes_on_from_its_own_tokens(serving: Serving, random_model: LocalModel) -> None:
    served = serving(random_model)
    messages: list[dict[str, Any]] = [{"role": "user", "content": "word " * 50}]
    known = 0
    for turn in range(3):
        answer = served.chat(messages=messages, tools=TOOLS, tool_choice="required", seed=turn).json()
        usage = answer["usage"]
        assert usage["prompt_tokens_details"]["cached_tokens"] >= known
        assert known == 0 or usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"] < 100
        known = usage["total_tokens"] - 1
        message = answer["choices"][0]["message"]
        results = [{"role": "tool", "tool_call_id": call["id"], "content": "ok"} for call in message["tool_calls"]]
        messages += [message, *results]
    # The same question again, from where it was asked before.
    again = served.chat(messages=[*messages[:-1], {**messages[-1], "content": "no"}], tools=TOOLS).json()
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] >= known - 40
    # Another beginning shares nothing of it beyond the setup.
    other = served.chat(messages=[{"role": "user", "content": "other " * 50}], tools=TOOLS).json()
    assert other["usage"]["prompt_tokens_details"]["cached_tokens"] < known / 2


def test_a_reply_is_found_without_its_thinking_too(serving: Serving) -> None:
    model = ScriptedModel(["<think>\nLong.\n</think>\nOne.", "Two.", "Three.", "Four."])
    served = serving(model, sessions=8)
    first = served.chat().json()["choices"][0]["message"]
    assert first["reasoning_content"] == "Long."
    ask, go = {"role": "user", "content": "Hi"}, {"role": "user", "content": "Go on"}
    bare = {"role": "assistant", "content": "One."}

    def cached(reply: dict[str, Any]) -> int:
        return served.chat(messages=[ask, reply, go]).json()["usage"]["prompt_tokens_details"]["cached_tokens"]

    assert cached(bare) > 0 and cached(first) > 0
    assert cached({**bare, "reasoning_content": "Something else."}) == 0


def test_what_is_kept_is_bounded(serving: Serving) -> None:
    model = ScriptedModel([f"Reply {number}." for number in range(12)])
    served = serving(model, sessions=2)
    for number in range(12):
        served.chat(messages=[{"role": "user", "content": str(number)}])
    assert model.open_threads == 2
    served.stop()
    assert model.open_threads == 0


def test_models_health_and_metrics(serving: Serving) -> None:
    served = serving(ScriptedModel(["Hi."]), name="my/model")
    assert served.client.get("/v1/models/my/model").json()["id"] == "my/model"
    assert served.client.get("/v1/models/other").json()["error"]["code"] == "model_not_found"
    assert served.chat().json()["model"] == "my/model"
    assert served.client.get("/health").json() == {"status": "ok", "model": "my/model", "running": 0, "waiting": 0}
    page = served.client.get("/metrics").text
    assert 'm1agent_requests_total{path="/v1/chat/completions",status="200"} 1.0' in page
    assert 'm1agent_tokens_total{kind="completion"} 3.0' in page and "m1agent_sessions 1.0" in page


# Models that no grammar holds


def test_a_call_that_does_not_fit_is_made_again(serving: Serving) -> None:
    wrong = CALL.replace("red", "blue")
    model = ScriptedModel([f"Now. {wrong}", CALL, wrong, CALL])
    served = serving(model)
    answer = served.chat(tools=TOOLS).json()["choices"][0]["message"]
    assert json.loads(answer["tool_calls"][0]["function"]["arguments"]) == {"colour": "red"}
    told = model.requests[1].messages[-1]
    assert isinstance(told, ToolMessage) and "colour" in told.results[0].content and told.results[0].is_error
    calls = assembled(served.chunks(tools=TOOLS))["calls"]
    assert calls == {0: {"name": "paint", "arguments": '{"colour": "red"}'}}


def test_safe_readings_are_made(serving: Serving) -> None:
    model = ScriptedModel([CALL.replace('"red"', '"red", "coats": "2"')])
    answer = serving(model).chat(tools=TOOLS).json()["choices"][0]["message"]
    assert json.loads(answer["tool_calls"][0]["function"]["arguments"]) == {"colour": "red", "coats": 2}


@pytest.mark.parametrize(
    ("replies", "body"),
    [
        ([CALL.replace("red", "blue")] * 2, {"tools": TOOLS}),
        ([CALL.replace("paint", "drill")] * 2, {"tools": TOOLS}),
        (["<tool_calls>\n{not json}\n</tool_calls>"] * 2, {"tools": TOOLS}),
        (["No."] * 2, {"tools": TOOLS, "tool_choice": "required"}),
        ([CALL] * 2, {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "wash"}}}),
        (
            ["{}"] * 2,
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": PAINT["parameters"]}}},
        ),
        (["[]"] * 2, {"response_format": {"type": "json_object"}}),
    ],
)
def test_what_does_not_fit_twice_is_an_error_and_no_call(
    serving: Serving, replies: list[str], body: dict[str, Any]
) -> None:
    served = serving(ScriptedModel(replies * 2))
    answer = served.chat(**body)
    assert answer.status_code == 502 and answer.json()["error"]["code"] == "invalid_reply"
    streamed = served.chat(stream=True, **body).text
    assert "invalid_reply" in streamed and "tool_calls" not in streamed and "[DONE]" not in streamed


def test_a_failing_model_is_told_and_leaves_nothing_open(serving: Serving) -> None:
    from m1agent.errors import ModelError

    model = ScriptedModel([ModelError("the other server is down"), RuntimeError("secret"), ModelError("down")])
    served = serving(model)
    answer = served.chat()
    assert answer.status_code == 502 and "the other server is down" in answer.json()["error"]["message"]
    answer = served.chat()
    assert answer.status_code == 500 and "secret" not in answer.text
    assert served.chat(stream=True).status_code == 502
    assert model.open_threads == 0


# Bare texts


def test_a_bare_text_goes_on(serving: Serving, random_model: LocalModel) -> None:
    served = serving(random_model)
    name = served.name

    def complete(**body: Any) -> Any:
        given = {"model": name, "prompt": "Once upon", "temperature": 1.5, "seed": 4, **body}
        return served.client.post("/v1/completions", json=given)

    whole = complete(max_tokens=12).json()
    choice = whole["choices"][0]
    assert whole["object"] == "text_completion" and choice["finish_reason"] == "length" and choice["text"]
    assert whole["usage"]["completion_tokens"] == 12 and len(complete().json()["choices"][0]["text"]) > 0
    ids = random_model.tokenizer.encode("Once upon")
    assert whole["usage"]["prompt_tokens"] == len(ids)
    several = complete(prompt=["Once upon", "Once"], n=2, max_tokens=12).json()["choices"]
    assert [one["index"] for one in several] == [0, 1, 2, 3]
    assert several[0]["text"] == choice["text"] not in (several[1]["text"], several[2]["text"])
    assert complete(prompt=ids, max_tokens=12).json()["choices"] == whole["choices"]
    assert complete(prompt=[ids], max_tokens=12, echo=True).json()["choices"][0]["text"] == "Once upon" + choice["text"]
    stop = choice["text"][2:4]
    assert complete(max_tokens=12, stop=stop).json()["choices"][0]["text"] == choice["text"].partition(stop)[0]
    lines = [line[6:] for line in complete(max_tokens=12, stream=True).text.split("\n\n") if line]
    chunks = [json.loads(line) for line in lines[:-1]]
    assert lines[-1] == "[DONE]" and "".join(one["choices"][0]["text"] for one in chunks) == choice["text"]
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    for wrong in ([100_000], [], [[]], [ids, []], ""):
        answer = complete(prompt=wrong)
        assert answer.status_code == 400 and answer.json()["error"]["param"].startswith("prompt"), answer.text
    assert random_model.engine.stats().sessions == 0


# How likely tokens were


def test_how_likely_tokens_were(serving: Serving, random_model: LocalModel) -> None:
    served = serving(random_model)
    body: dict[str, Any] = {"seed": 2, "temperature": 1.5, "max_tokens": 16, "logprobs": True, "top_logprobs": 3}
    choice = served.chat(**body).json()["choices"][0]
    tokens = choice["logprobs"]["content"]
    assert b"".join(bytes(one["bytes"]) for one in tokens).decode(errors="replace") == choice["message"]["content"]
    for one in tokens:
        likeliest = [other["logprob"] for other in one["top_logprobs"]]
        assert len(likeliest) == 3 and likeliest == sorted(likeliest, reverse=True)
        assert likeliest[0] >= one["logprob"] and one["logprob"] < 0
    chunks = served.chunks(**body)
    told = [one for chunk in chunks for one in (chunk["choices"][0]["logprobs"] or {"content": []})["content"]]
    assert told == tokens
    # What the grammar left no choice about was certain.
    named = {"type": "function", "function": {"name": "wash"}}
    calls = served.chat(tools=TOOLS, tool_choice=named, **{**body, "max_tokens": 64}).json()
    certain = [one["logprob"] for one in calls["choices"][0]["logprobs"]["content"]].count(0.0)
    assert certain >= calls["usage"]["completion_tokens_details"]["forced_tokens"] > 0

    bare = {"model": served.name, "prompt": "Once", "seed": 2, "temperature": 1.5, "max_tokens": 8, "logprobs": 2}
    choice = served.client.post("/v1/completions", json=bare).json()["choices"][0]
    logprobs = choice["logprobs"]
    assert len(logprobs["tokens"]) == len(logprobs["token_logprobs"]) == len(logprobs["top_logprobs"]) > 2
    assert logprobs["text_offset"][0] == 0 and all(len(one) == 2 for one in logprobs["top_logprobs"])


@pytest.mark.parametrize("words", [["--compile"], []])
def test_compile_is_handed_to_the_engine(folder: Path, words: list[str], caplog: pytest.LogCaptureFixture) -> None:
    try:
        check(torch.device("cpu"), torch.float32)
    except ConfigError as error:
        pytest.skip(str(error))
    caplog.set_level("INFO", "m1runtime")
    parser = argparse.ArgumentParser()
    cli_serve.add_serve(parser.add_subparsers())
    model = cli_serve._model(parser.parse_args(["serve", str(folder), "--device", "cpu", *words]))
    with model.engine:
        assert ("compiled in" in caplog.text) == bool(words)

"""Models behind a server, over real HTTP: what is sent, what is read, what is tried again, what is told."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from typing import Any, Literal

import pytest
from pydantic import BaseModel

from m1agent import Agent, Conversation, Limits, Named, Settings, Tool, load_model, tool
from m1agent.errors import ModelError
from m1agent.events import ArgumentsDelta, CallReady, CallStarted, ReplyFinished, TextDelta, ThinkingDelta
from m1agent.messages import AssistantMessage, Setup, SystemMessage, ToolCall, ToolMessage, ToolResult, UserMessage
from m1agent.models.openai import OpenAIModel
from m1agent.models.openai_dialect import DIALECTS
from m1agent.prompt.envelope import Envelope

SECRET = "sk-very-secret-0123456789"


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def text(*parts: str, finish: str | None = "stop", **more: Any) -> list[Any]:
    """The chunks of a reply of text."""
    made: list[Any] = [{"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}]
    made += [{"choices": [{"index": 0, "delta": {"content": part}}]} for part in parts]
    return [*made, {"choices": [{"index": 0, "delta": {}, "finish_reason": finish}], **more}, "[DONE]"]


def call(name: str, arguments: str, id: str = "call_abc", index: int = 0) -> dict[str, Any]:
    one = {"index": index, "id": id, "type": "function", "function": {"name": name, "arguments": arguments}}
    return {"choices": [{"index": 0, "delta": {"tool_calls": [one]}}]}


END = {"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]}


def model(stand_in: Any, **options: Any) -> OpenAIModel:
    return OpenAIModel("stand-in", stand_in.url, **{"patience": 2.0} | options)


def reply(
    model: OpenAIModel, envelope: Envelope | None = None, settings: Settings | None = None, *, tools: Any = ()
) -> list[Any]:
    """The events of one reply to "hi"."""

    async def go() -> list[Any]:
        specs = tuple(one.spec for one in tools)
        thread = model.open(Setup("Be kind.", specs))
        stream = thread.respond([UserMessage("hi")], envelope or Envelope(specs), settings or Settings())
        events = [event async for event in stream]
        await model.aclose()
        return events

    return asyncio.run(go())


def test_a_tool_loop(stand_in: Any) -> None:
    stand_in.say(call("add", '{"a": 1, '), call("", '"b": 2}', id=""), END, "[DONE]")
    stand_in.say(*text("It is ", "3."))
    with Agent(model(stand_in), tools=[add], instructions="Be kind.") as agent:
        talk = Conversation()
        result = agent.run_sync("1 + 2?", conversation=talk)
    assert (result.output, result.stop) == ("It is 3.", "done")
    first, second = stand_in.requests
    assert [m["role"] for m in first["messages"]] == ["system", "user"]
    assert first["tools"][0]["function"]["name"] == "add" and "tool_choice" not in first
    assert second["messages"][: len(first["messages"])] == first["messages"]
    assert second["messages"][2:] == [
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "call_abc", "type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": 2}'}}
            ],
        },
        {"role": "tool", "tool_call_id": "call_abc", "content": "3"},
    ]
    assert talk.ids is None


def test_events_come_while_the_server_writes(stand_in: Any) -> None:
    go_on = threading.Event()
    pieces = [
        f"data: {json.dumps(one)}\n\n".encode() for one in (call("add", '{"a": 1,'), call("", ' "b": 2}', id=""), END)
    ]
    stand_in.send(b"")
    stand_in.answers[0].pieces, stand_in.answers[0].held = [pieces[0], pieces[1] + pieces[2]], go_on
    seen: list[Any] = []

    async def read() -> None:
        one = model(stand_in)
        thread = one.open(Setup(tools=(add.spec,)))
        async for event in thread.respond([UserMessage("hi")], Envelope((add.spec,)), Settings()):
            seen.append(event)
            go_on.set()  # Only what has come already can set this.
        await one.aclose()

    asyncio.run(read())
    made = ToolCall("call_abc", "add", {"a": 1, "b": 2})
    assert seen[:-1] == [
        CallStarted(0, "call_abc", "add"),
        ArgumentsDelta(0, '{"a": 1,'),
        ArgumentsDelta(0, ' "b": 2}'),
        CallReady(0, made),
    ]
    assert seen[-1].message == AssistantMessage(calls=(made,))


def test_an_invalid_call_is_told_and_made_again(stand_in: Any) -> None:
    stand_in.say(call("add", '{"a": 1, "b": "many"}'), END, "[DONE]")
    stand_in.say(call("add", '{"a": 1, "b": 2', id="call_def"), END, "[DONE]")
    stand_in.say(call("add", '{"a": 1, "b": 2}', id="call_ghi"), END, "[DONE]")
    stand_in.say(*text("3"))
    with Agent(model(stand_in), tools=[add]) as agent:
        result = agent.run_sync("1 + 2?")
    assert result.output == "3"
    told = [message["content"] for message in stand_in.requests[-1]["messages"] if message["role"] == "tool"]
    assert "b: expected integer" in told[0] and "could not be read" in told[1] and told[2] == "3"
    broken = [m for m in stand_in.requests[-1]["messages"] if m["role"] == "assistant"][1]
    assert json.loads(broken["tool_calls"][0]["function"]["arguments"]) == {}  # Servers refuse broken arguments.


def test_settings_are_mapped(stand_in: Any) -> None:
    settings = Settings(max_tokens=7, temperature=0, top_p=0.5, seed=3, thinking=64, stop=("END",))
    stand_in.models = {"data": [{"id": "stand-in", "owned_by": "vllm", "max_model_len": 100}]}
    stand_in.say(*text("a"))
    reply(model(stand_in), settings=settings, tools=[add])
    sent = stand_in.requests[0]
    wanted = {"max_tokens": 7, "temperature": 0, "top_p": 0.5, "seed": 3, "stop": ["END"], "thinking_token_budget": 64}
    assert wanted.items() <= sent.items() and sent["tools"][0]["function"]["strict"] is True
    assert sent["stream"] is True and sent["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize(
    ("kind", "bounded", "none"),
    [
        (
            "sglang",
            {"chat_template_kwargs": {"thinking_budget": 9}},
            {"chat_template_kwargs": {"enable_thinking": False}},
        ),
        ("llama.cpp", {"thinking_budget_tokens": 9}, {"thinking_budget_tokens": 0}),
        ("openai", {}, {"reasoning_effort": "none"}),
        ("unknown", {}, {}),
    ],
)
def test_thinking_is_bounded_where_it_can_be(stand_in: Any, kind: Any, bounded: Any, none: Any) -> None:
    for tokens, wanted in ((9, bounded), (0, none)):
        stand_in.say(*text("a"))
        reply(model(stand_in, dialect=DIALECTS[kind]), settings=Settings(thinking=tokens))
        assert wanted.items() <= stand_in.requests[-1].items()
        names = {"thinking_token_budget", "thinking_budget_tokens", "chat_template_kwargs", "reasoning_effort"}
        assert wanted or not names & set(stand_in.requests[-1])


def test_choices(stand_in: Any) -> None:
    for choice, sent in (
        ("required", "required"),
        (Named("add"), {"type": "function", "function": {"name": "add"}}),
    ):
        stand_in.say(call("add", '{"a": 1, "b": 1}'), END, "[DONE]")
        reply(model(stand_in), Envelope((add.spec,), choice, parallel=False), tools=[add])  # type: ignore[arg-type]
        assert stand_in.requests[-1]["tool_choice"] == sent
        assert stand_in.requests[-1]["parallel_tool_calls"] is False
    stand_in.say(*text("<tool_calls> are tags"))
    events = reply(model(stand_in), Envelope((add.spec,), "none"), tools=[add])
    assert stand_in.requests[-1]["tool_choice"] == "none" and stand_in.requests[-1]["tools"]
    assert events[-1].message.text == "<tool_calls> are tags"


def test_a_server_that_does_not_hold_the_model_to_a_choice_is_told(stand_in: Any) -> None:
    stand_in.say(*text("No."))
    with Agent(model(stand_in), tools=[add]) as agent:
        result = agent.run_sync("Go.", tool_choice="required")
    assert result.stop == "error" and "had to call a tool" in str(result.error)
    assert result.messages[-1] == AssistantMessage("No.")


class Colour(BaseModel):
    name: Literal["red", "blue"]
    shade: int


def test_answers_of_a_type(stand_in: Any) -> None:
    stand_in.say(*text('{"name": "red", "shade": 2}'))
    with Agent(model(stand_in), output=Colour) as agent:
        assert agent.run_sync("Which?").output == Colour(name="red", shade=2)
    sent = stand_in.requests[0]["response_format"]
    assert sent["type"] == "json_schema" and set(sent["json_schema"]["schema"]["required"]) == {"name", "shade"}


def test_an_answers_schema_waits_where_it_would_forbid_the_calls(stand_in: Any) -> None:
    stand_in.say(*text("red, I think"))
    stand_in.say(*text('{"name": "red", "shade": 2}'))
    with Agent(model(stand_in), tools=[add], output=Colour) as agent:
        assert agent.run_sync("Which?").output == Colour(name="red", shade=2)
    first, second = stand_in.requests
    assert "response_format" not in first and second["response_format"]["type"] == "json_schema"
    assert second["tool_choice"] == "none"
    stand_in.say(*text('{"name": "red", "shade": 2}'))
    with Agent(model(stand_in, dialect=DIALECTS["openai"]), tools=[add], output=Colour) as agent:
        agent.run_sync("Which?")
    sent = stand_in.requests[-1]
    assert sent["response_format"]["json_schema"]["strict"] is True
    assert sent["response_format"]["json_schema"]["schema"]["additionalProperties"] is False
    assert sent["tools"][0]["function"]["strict"] is True


def test_names_that_servers_refuse_are_sent_as_others(stand_in: Any) -> None:
    def play(song: str) -> str:
        """Play a song."""
        return f"playing {song}"

    spotify = Tool.from_schema(
        "spotify.play",
        "Play a song.",
        {"type": "object", "properties": {"song": {"type": "string"}}},
        play,
    )
    stand_in.say(*text("a"))
    reply(model(stand_in), tools=[spotify])
    name = stand_in.requests[0]["tools"][0]["function"]["name"]
    assert name.startswith("spotify_play_") and name.isascii()
    stand_in.say(call(name, '{"song": "x"}'), END, "[DONE]")
    stand_in.say(*text("done"))
    with Agent(model(stand_in), tools=[spotify]) as agent:
        result = agent.run_sync("Play x")
    assert result.calls[0].call.name == "spotify.play" and result.calls[0].result.content == "playing x"
    assert stand_in.requests[-1]["messages"][1]["tool_calls"][0]["function"]["name"] == name


def test_histories_are_sent_as_they_were(stand_in: Any) -> None:
    history = [
        SystemMessage("Short."),
        UserMessage("a\ud800"),
        AssistantMessage("b", "thought", (ToolCall("call_4", "add", {"a": 1}),)),
        ToolMessage((ToolResult("call_4", "add", "2"),)),
        SystemMessage("Now long."),
    ]
    stand_in.say(call("add", "{}", id="call_4"), END, "[DONE]")
    stand_in.say(*text("c"))
    with Agent(model(stand_in), tools=[add], instructions="Kind.", limits=Limits(steps=1)) as agent:
        result = agent.run_sync("d", conversation=Conversation(history))
    sent = stand_in.requests[0]["messages"]
    assert [m["role"] for m in sent] == ["system", "system", "user", "assistant", "tool", "system", "user"][
        -len(sent) :
    ]
    assert sent[-1] == {"role": "user", "content": "d"}
    assert result.messages[-2].calls[0].id == "call_5"  # type: ignore[union-attr]


def test_thinking_goes_back_the_way_it_came(stand_in: Any) -> None:
    for name in ("reasoning_content", "reasoning"):
        stand_in.say({"choices": [{"delta": {name: "hm"}}]}, *text("a"))
        stand_in.say(*text("b"))
        with Agent(model(stand_in)) as agent:
            talk = Conversation()
            first = agent.run_sync("x", conversation=talk)
            agent.run_sync("y", conversation=talk)
        assert first.messages[-1] == AssistantMessage("a", "hm")
        assert stand_in.requests[-1]["messages"][1] == {"role": "assistant", "content": "a", name: "hm"}
    stand_in.say(*text("<think>\nhm\n</think>\n", "a"))
    stand_in.say(*text("b"))
    with Agent(model(stand_in)) as agent:
        talk = Conversation()
        assert agent.run_sync("x", conversation=talk).messages[-1] == AssistantMessage("a", "hm")
        agent.run_sync("y", conversation=talk)
    assert stand_in.requests[-1]["messages"][1]["content"] == "<think>\nhm\n</think>\na"
    assert not {"reasoning", "reasoning_content"} & set(stand_in.requests[-1]["messages"][1])


def test_usage(stand_in: Any) -> None:
    counts = {
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 4},
        "completion_tokens_details": {"reasoning_tokens": 2},
    }
    chunks = text("a")
    stand_in.say(*chunks[:-1], {"choices": [], "usage": counts}, "[DONE]")
    used = reply(model(stand_in))[-1].usage
    assert (used.input_tokens, used.output_tokens, used.reused_tokens, used.thinking_tokens) == (10, 5, 4, 2)
    stand_in.say(*text("a" * 400))
    estimated = reply(model(stand_in))[-1].usage
    assert estimated.output_tokens == 100 and estimated.input_tokens > 10


def test_a_reply_cut_by_its_bound(stand_in: Any) -> None:
    stand_in.say(*text("half an ans", finish="length"))
    assert reply(model(stand_in))[-1].stop == "length"
    stand_in.say(call("add", '{"a": 1, "b"'), {"choices": [{"delta": {}, "finish_reason": "length"}]}, "[DONE]")
    last = reply(model(stand_in), tools=[add])[-1]
    assert last.stop == "length" and "token budget ended" in last.message.calls[0].problem


# What passes


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504, 529])
def test_what_passes_is_tried_again(stand_in: Any, status: int) -> None:
    stand_in.refuse(status, {"error": {"message": "later"}}, retry_after="0")
    stand_in.say(*text("a"))
    assert reply(model(stand_in))[-1].message.text == "a"
    assert len(stand_in.requests) == 2 and stand_in.requests[0] == stand_in.requests[1]


@pytest.mark.parametrize("after", ["3600", "Fri, 01 Jan 2100 00:00:00 GMT"])
def test_a_longer_wait_than_patience_is_told(stand_in: Any, after: str) -> None:
    stand_in.refuse(429, {"error": {"message": "too many requests"}}, retry_after=after)
    with pytest.raises(ModelError, match=r"too many requests\. Wait, or raise patience="):
        reply(model(stand_in))
    assert len(stand_in.requests) == 1


@pytest.mark.parametrize(
    ("status", "text"),
    [(400, "bad"), (429, "You exceeded your current quota (insufficient_quota)"), (501, "no")],
)
def test_what_does_not_pass_is_told_at_once(stand_in: Any, status: int, text: str) -> None:
    stand_in.refuse(status, {"error": {"message": text}}, retry_after="0")
    with pytest.raises(ModelError, match=text[:8]):
        reply(model(stand_in))
    assert len(stand_in.requests) == 1


def test_a_stream_that_breaks_before_it_says_anything_is_tried_again(stand_in: Any) -> None:
    role = b'data: {"choices": [{"delta": {"role": "assistant", "content": ""}}]}\n\n'
    stand_in.send(role, broken=True)
    stand_in.say(*text("a"))
    assert reply(model(stand_in, patience=5.0))[-1].message.text == "a"
    assert len(stand_in.requests) == 2


def test_a_reply_that_had_begun_is_never_asked_for_again(stand_in: Any) -> None:
    begun = json.dumps({"choices": [{"delta": {"content": "half"}}]})
    stand_in.send(f"data: {begun}\n\n".encode(), broken=True)
    stand_in.say(*text("other"))
    talk = Conversation()
    with Agent(model(stand_in)) as agent:
        result = agent.run_sync("x", conversation=talk)
        assert result.stop == "error" and "broke off" in str(result.error)
        assert result.messages == (UserMessage("x"), AssistantMessage("half"))
        assert len(stand_in.requests) == 1
        assert agent.run_sync("y", conversation=talk).output == "other"
    assert [m["content"] for m in stand_in.requests[-1]["messages"]] == ["x", "half", "y"]


def test_no_server() -> None:
    with Agent(OpenAIModel("m", "http://127.0.0.1:9", patience=0.1)) as agent:
        result = agent.run_sync("x")
    assert result.stop == "error" and "Is the server running" in str(result.error)


def test_silence(stand_in: Any) -> None:
    stand_in.send(b"data: 1\n\n", held=threading.Event())
    with pytest.raises(ModelError, match="ReadTimeout"):
        reply(model(stand_in, timeout=0.2, patience=0.1))
    stand_in.answers.clear()


# What is wrong


def test_wrong_and_missing_keys(stand_in: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    stand_in.refuse(401, {"error": {"message": "no key", "type": "invalid_request_error"}})
    with pytest.raises(ModelError, match="set OPENAI_API_KEY, or name another variable with api_key_env="):
        reply(model(stand_in))
    assert "authorization" not in stand_in.headers[-1]
    monkeypatch.setenv("MY_KEY", SECRET)
    stand_in.refuse(401, {"error": {"message": f"Incorrect API key provided: {SECRET}"}})
    with pytest.raises(ModelError, match=r"Incorrect API key provided: \*\*\*.*MY_KEY") as raised:
        reply(model(stand_in, api_key_env="MY_KEY"))
    assert stand_in.headers[-1]["authorization"] == f"Bearer {SECRET}"
    assert SECRET not in str(raised.value) and SECRET not in repr(raised.value.__context__)
    monkeypatch.setenv("MY_KEY", "b\u00e4d\n")
    with pytest.raises(ModelError, match="MY_KEY holds no API key"):
        reply(model(stand_in, api_key_env="MY_KEY"))


def test_no_key_is_shown(stand_in: Any, caplog: pytest.LogCaptureFixture) -> None:
    import traceback

    one = model(stand_in, api_key=SECRET, headers={"x-gateway": "gateway-secret-42"})
    caplog.set_level(logging.DEBUG)
    stand_in.refuse(503, {"error": f"{SECRET} gateway-secret-42"}, retry_after="0")
    stand_in.refuse(400, {"error": f"{SECRET} gateway-secret-42"})
    with pytest.raises(ModelError) as raised:
        reply(one)
    shown = [repr(one), repr(one.server.key), "".join(traceback.format_exception(raised.value)), caplog.text]
    for secret in (SECRET, "gateway-secret-42"):
        assert all(secret not in text for text in shown)
    assert stand_in.headers[0]["x-gateway"] == "gateway-secret-42"


def test_an_unknown_model_is_told_the_known_ones(stand_in: Any) -> None:
    stand_in.models = {"data": [{"id": "a/b"}, {"id": "c:8b"}]}
    for body in (
        {"error": {"message": "The model `x` does not exist.", "code": 404}},
        {"object": "error", "message": "The model `x` does not exist."},
        {"error": {"message": 'model "x" not found, try pulling it first', "type": "api_error"}},
    ):
        stand_in.refuse(404, body)
        with pytest.raises(ModelError, match=r"Its models are: a/b, c:8b"):
            reply(model(stand_in))


def test_a_wrong_address(stand_in: Any) -> None:
    one = OpenAIModel("m", f"http://127.0.0.1:{stand_in.port}/api", patience=0.1)
    with pytest.raises(ModelError, match=r"/api the base URL of the API \(it usually ends in /v1\)"):
        reply(one)


@pytest.mark.parametrize(
    ("status", "value"),
    [
        (400, {"object": "error", "message": "This model's maximum context length is 4096 tokens. However, ..."}),
        (400, {"error": {"message": "x", "code": "context_length_exceeded"}}),
        (500, {"error": {"code": 500, "message": "the request exceeds the available context size"}}),
        (400, {"error": {"message": "Requested token count exceeds the model's maximum context length"}}),
    ],
)
def test_a_conversation_that_is_too_long(stand_in: Any, status: int, value: Any) -> None:
    stand_in.refuse(status, value)
    with pytest.raises(ModelError, match=r"does not fit into the context of 'stand-in'.*compaction="):
        reply(model(stand_in), settings=Settings(max_tokens=9))
    assert len(stand_in.requests) == 1


def test_a_server_without_a_tool_parser(stand_in: Any) -> None:
    told = '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'
    stand_in.refuse(400, {"error": {"message": told}})
    with pytest.raises(ModelError, match=r"Start vLLM with --enable-auto-tool-choice"):
        reply(model(stand_in), tools=[add])


@pytest.mark.parametrize(
    ("refusal", "gone"),
    [
        ({"error": {"message": "Unrecognized request argument supplied: stream_options"}}, "stream_options"),
        ({"detail": [{"loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}]}, "seed"),
        ({"error": {"message": "Unsupported value: 'temperature' does not support 0"}}, "temperature"),
    ],
)
def test_a_field_that_is_refused_is_left_out_and_told(
    stand_in: Any, refusal: Any, gone: str, caplog: pytest.LogCaptureFixture
) -> None:
    stand_in.refuse(422, refusal)
    stand_in.say(*text("a"))
    stand_in.say(*text("b"))
    one = model(stand_in)
    for said in "ab":
        assert reply(one, settings=Settings(seed=1, temperature=0))[-1].message.text == said
    assert gone in stand_in.requests[0] and all(gone not in sent for sent in stand_in.requests[1:])
    assert len(stand_in.requests) == 3 and f"'{gone}', which is left out" in caplog.text


def test_the_other_name_of_the_bound(stand_in: Any) -> None:
    told = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
    stand_in.refuse(400, {"error": {"message": told, "param": "max_tokens"}})
    stand_in.say(*text("a"))
    reply(model(stand_in), settings=Settings(max_tokens=5))
    assert "max_tokens" not in stand_in.requests[1] and stand_in.requests[1]["max_completion_tokens"] == 5


def test_strict_alone_is_taken_back(stand_in: Any) -> None:
    stand_in.refuse(400, {"error": {"message": "Invalid schema for function 'add': 'strict' is not supported"}})
    stand_in.say(*text("a"))
    reply(model(stand_in, dialect=DIALECTS["vllm"]), tools=[add])
    assert "strict" not in stand_in.requests[1]["tools"][0]["function"]


def test_a_content_filter(stand_in: Any) -> None:
    stand_in.say(*text("so", finish="content_filter"))
    with Agent(model(stand_in)) as agent:
        result = agent.run_sync("x")
    assert result.stop == "error" and "content filter" in str(result.error)


# Ends


def test_a_reader_that_leaves_ends_the_request(stand_in: Any) -> None:
    begun = json.dumps({"choices": [{"delta": {"content": "half"}}]})
    stand_in.send(b"")
    stand_in.answers[0].pieces = [f"data: {begun}\n\n".encode(), b"data: [DONE]\n\n"]
    stand_in.answers[0].held = threading.Event()

    async def go() -> None:
        one = model(stand_in)
        thread = one.open(Setup())
        stream = thread.respond([UserMessage("hi")], Envelope(), Settings())
        assert await anext(stream) == TextDelta("half")
        await stream.aclose()
        await asyncio.to_thread(stand_in.gone.wait, 5)
        stand_in.say(*text("more"))
        stream = thread.respond([UserMessage("go on")], Envelope(), Settings())
        assert [event async for event in stream][-1].message.text == "more"
        await one.aclose()

    asyncio.run(go())
    assert stand_in.gone.is_set()
    assert [m["content"] for m in stand_in.requests[-1]["messages"]] == ["hi", "half", "go on"]


def test_forks_and_rewinds(stand_in: Any) -> None:
    async def go() -> None:
        one = model(stand_in)
        thread = one.open(Setup())

        async def ask(which: Any, question: str, answer: str) -> None:
            stand_in.say(*text(answer))
            events = [e async for e in which.respond([UserMessage(question)], Envelope(), Settings())]
            assert isinstance(events[-1], ReplyFinished) and ThinkingDelta not in map(type, events)

        await ask(thread, "1", "a")
        mark, twin = thread.mark(), thread.fork()
        await ask(thread, "2", "b")
        await ask(twin, "3", "c")
        assert [m["content"] for m in stand_in.requests[-1]["messages"]] == ["1", "a", "3"]
        assert await thread.rewind(mark)
        await ask(thread, "4", "d")
        assert [m["content"] for m in stand_in.requests[-1]["messages"]] == ["1", "a", "4"]
        await one.aclose()

    asyncio.run(go())


def test_one_model_serves_event_loops_one_after_the_other(stand_in: Any) -> None:
    agent = Agent(model(stand_in))
    for said in "abc":
        stand_in.say(*text(said))
        assert agent.run_sync("x").output == said


def test_models_by_name() -> None:
    named = {
        "openai:Qwen/Qwen3-8B@http://localhost:8000/v1": ("Qwen/Qwen3-8B", "http://localhost:8000/v1"),
        "openai:qwen3:8b@http://localhost:11434": ("qwen3:8b", "http://localhost:11434/v1"),
        "openai:@cf/meta/llama@https://x.example/ai/v1/": ("@cf/meta/llama", "https://x.example/ai/v1"),
        "openai:gpt-5@https://u:p@x.example/v1/chat/completions": ("gpt-5", "https://x.example/v1"),
        "openai:gpt-5": ("gpt-5", "https://api.openai.com/v1"),
    }
    for name, (known, url) in named.items():
        made = load_model(name)
        assert isinstance(made, OpenAIModel) and (made.name, made.server.shown) == (known, url)

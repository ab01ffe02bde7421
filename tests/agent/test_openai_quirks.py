"""What servers really send, recorded from vLLM, SGLang, llama.cpp, Ollama, MiniMax and gateways, replayed over HTTP in
one piece and split at every byte: whatever the form, the reply is the same."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

import pytest

from m1agent import Settings, tool
from m1agent.errors import ModelError
from m1agent.events import ArgumentsDelta, CallReady, CallStarted, ReplyFinished, TextDelta, ThinkingDelta
from m1agent.messages import AssistantMessage, Setup, ToolCall, UserMessage
from m1agent.models.openai import OpenAIModel
from m1agent.models.openai_sse import EventDecoder
from m1agent.prompt.envelope import Envelope


@tool
def weather(city: str, days: int = 1) -> str:
    """Tell the weather.

    Args:
        city: Where.
        days: How many.
    """
    return f"sunny in {city} for {days}"


ENVELOPE = Envelope((weather.spec,))
PARIS = ("weather", {"city": "Paris", "days": 2})
ROME = ("weather", {"city": 'Rom\u00e9 \u2028\U0001f600 "q" \\ }'})
JSON = {"content-type": "application/json"}


@dataclass(frozen=True)
class Quirk:
    """What a server sends, and what it means."""

    name: str
    body: bytes
    text: str = ""
    thinking: str = ""
    calls: tuple[tuple[str, dict[str, Any]], ...] = ()
    stop: str = "done"
    headers: dict[str, str] = field(default_factory=lambda: {"content-type": "text/event-stream; charset=utf-8"})
    usage: tuple[int, int] | None = None
    late: bool = False  # What was thinking shows at the end alone.


def delta(finish: str | None = None, **part: Any) -> dict[str, Any]:
    return {
        "id": "1",
        "object": "chat.completion.chunk",
        "choices": [{"index": 0, "delta": part, "finish_reason": finish}],
    }


def called(name: str | None = None, arguments: Any = None, **more: Any) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return delta(tool_calls=[more | {"function": {k: v for k, v in function.items() if v is not None}}])


def sse(*chunks: Any, end: str = "\n\n", done: bool = True) -> bytes:
    lines = ["data: " + (one if isinstance(one, str) else json.dumps(one, ensure_ascii=False)) for one in chunks]
    return "".join(line + end for line in [*lines, *(["data: [DONE]"] if done else [])]).encode()


def arguments(call: tuple[str, dict[str, Any]]) -> str:
    return json.dumps(call[1], ensure_ascii=False)


def pieces(text: str, size: int = 5) -> list[str]:
    return [text[i : i + size] for i in range(0, len(text), size)]


M1_CALLS = (
    "<tool_calls>\n"
    + "\n".join(json.dumps({"name": n, "arguments": a}, ensure_ascii=False) for n, a in (PARIS, ROME))
    + "\n</tool_calls>"
)
USAGE = {"choices": [], "usage": {"prompt_tokens": 12, "completion_tokens": 7, "total_tokens": 19}}

QUIRKS = [
    # vLLM
    Quirk(
        "vllm: name first, arguments in pieces, usage in a chunk of its own",
        sse(
            delta(role="assistant", content=""),
            called("weather", "", index=0, id="chatcmpl-tool-1", type="function"),
            *(called(None, part, index=0) for part in pieces(arguments(PARIS))),
            called("weather", "", index=1, id="chatcmpl-tool-2", type="function"),
            *(called(None, part, index=1) for part in pieces(arguments(ROME))),
            delta("tool_calls"),
            USAGE,
        ),
        calls=(PARIS, ROME),
        usage=(12, 7),
    ),
    Quirk(
        "vllm: thinking in `reasoning` and, in older releases, `reasoning_content` beside it",
        sse(
            delta(role="assistant", content=None, reasoning=None),
            delta(reasoning="Let me ", reasoning_content="Let me "),
            delta(reasoning="see.", reasoning_content="see."),
            delta(content="Sunny."),
            delta("stop", content=""),
            USAGE,
        ),
        thinking="Let me see.",
        text="Sunny.",
        usage=(12, 7),
    ),
    Quirk(
        "vllm: no parser for tools: calls of M1 are text, and the end is 'stop'",
        sse(*(delta(content=part) for part in pieces("<think>\nhm\n</think>\n" + M1_CALLS, 7)), delta("stop")),
        thinking="hm",
        calls=(PARIS, ROME),
    ),
    Quirk(
        "vllm: an id with every piece, and the whole arguments once more at the end",
        sse(
            called("weather", arguments(PARIS)[:9], index=0, id="a"),
            called(None, arguments(PARIS)[9:], index=0, id="a"),
            called(None, arguments(PARIS), index=0, id="a"),
            delta("tool_calls"),
        ),
        calls=(PARIS,),
    ),
    Quirk(
        "vllm: usage with every chunk",
        sse(
            delta(content="Sun") | {"usage": {"prompt_tokens": 12, "completion_tokens": 1}},
            delta("stop", content="ny.") | {"usage": {"prompt_tokens": 12, "completion_tokens": 7}},
        ),
        text="Sunny.",
        usage=(12, 7),
    ),
    # SGLang
    Quirk(
        "sglang: null everywhere, and the finish in a chunk that still has a piece",
        sse(
            delta(role="assistant", content="", reasoning_content=None, tool_calls=None) | {"usage": None},
            delta(content=None, reasoning_content="hm", tool_calls=None) | {"usage": None},
            called("weather", None, index=0, id="call_1", type="function"),
            called(None, arguments(PARIS)[:4], index=0, id=None),
            {
                "choices": [
                    {
                        "index": 0,
                        "delta": {
                            "tool_calls": [
                                {"index": 0, "id": None, "function": {"name": None, "arguments": arguments(PARIS)[4:]}}
                            ]
                        },
                        "finish_reason": "tool_calls",
                        "matched_stop": None,
                    }
                ]
            },
        ),
        thinking="hm",
        calls=(PARIS,),
    ),
    Quirk(
        "sglang: the same index for all calls of a reply",
        sse(
            called("weather", arguments(PARIS), index=0, id="call_1"),
            called("weather", arguments(ROME), index=0, id="call_2"),
            delta("tool_calls"),
        ),
        calls=(PARIS, ROME),
    ),
    # llama.cpp
    Quirk(
        "llama.cpp: the name with every piece, ids without form, comments to keep the connection",
        b": ping\n\n"
        + sse(
            delta(role="assistant", content=None),
            delta(reasoning_content="hm"),
            *(called("weather", part, index=0, id="Xy1") for part in pieces(arguments(PARIS), 11)),
            done=False,
        )
        + b": ping\n\n"
        + sse(delta("tool_calls"), USAGE | {"timings": {"prompt_n": 12}}),
        thinking="hm",
        calls=(PARIS,),
        usage=(12, 7),
    ),
    Quirk(
        "llama.cpp: lines end in CRLF, and nothing ends the stream",
        sse(delta(content="Sun"), delta(content="ny."), delta("stop"), end="\r\n\r\n", done=False).removesuffix(
            b"\r\n\r\n"
        ),
        text="Sunny.",
    ),
    # Ollama
    Quirk(
        "ollama: calls whole, in one chunk, all numbered 0 and without ids",
        sse(
            delta(
                role="assistant",
                content="",
                tool_calls=[
                    {"id": "", "index": 0, "type": "function", "function": {"name": c[0], "arguments": arguments(c)}}
                    for c in (PARIS, ROME)
                ],
            ),
            delta("stop", content=""),
        ),
        calls=(PARIS, ROME),
    ),
    Quirk(
        "ollama: arguments as an object, no index, no type, no id",
        sse(delta(tool_calls=[{"function": {"name": c[0], "arguments": c[1]}} for c in (PARIS, ROME)]), delta("stop")),
        calls=(PARIS, ROME),
    ),
    Quirk(
        "ollama: thinking in `reasoning`, and two calls of one id",
        sse(
            delta(role="assistant", content="", reasoning="hm"),
            delta(
                tool_calls=[{"id": "call_0", "index": 0, "function": {"name": PARIS[0], "arguments": arguments(PARIS)}}]
            ),
            delta(
                tool_calls=[{"id": "call_0", "index": 1, "function": {"name": ROME[0], "arguments": arguments(ROME)}}]
            ),
            delta("tool_calls"),
        ),
        thinking="hm",
        calls=(PARIS, ROME),
    ),
    # MiniMax (its own errors are in test_minimax_api.py)
    Quirk(
        "minimax: roles that are empty, thinking in details, and the whole message once more at the end",
        sse(
            delta(
                role="",
                content="",
                name="MiniMax AI",
                audio_content="",
                reasoning_details=[{"type": "reasoning.text", "id": "r", "text": "Let me "}],
            ),
            delta(role="assistant", reasoning_details=[{"type": "reasoning.text", "id": "r", "text": "see."}]),
            delta(content="Sunny."),
            {
                "object": "chat.completion",
                "choices": [
                    {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Sunny."}}
                ],
                "usage": {"prompt_tokens": 12, "completion_tokens": 7},
                "base_resp": {"status_code": 0, "status_msg": ""},
            },
            done=False,
        ),
        thinking="Let me see.",
        text="Sunny.",
        usage=(12, 7),
    ),
    # Gateways and others
    Quirk(
        "a whole completion although a stream was asked for",
        json.dumps(
            {
                "object": "chat.completion",
                "choices": [
                    {
                        "index": 0,
                        "finish_reason": "stop",
                        "message": {
                            "role": "assistant",
                            "content": "Well.",
                            "reasoning_content": "hm",
                            "tool_calls": [{"type": "function", "function": {"name": PARIS[0], "arguments": PARIS[1]}}],
                        },
                    }
                ],
                "usage": {"prompt_tokens": 12, "completion_tokens": 7},
            }
        ).encode(),
        text="Well.",
        thinking="hm",
        calls=(PARIS,),
        headers=JSON,
        usage=(12, 7),
    ),
    Quirk(
        "events without a blank line between them, and fields nobody needs",
        b"\xef\xbb\xbfevent: message\nid: 1\nretry: 100\n"
        + sse(delta(content="Sun"), delta(content="ny."), delta("stop"), end="\n"),
        text="Sunny.",
    ),
    Quirk(
        "one event in several data lines",
        b"data: "
        + json.dumps(delta(content="Sunny."), indent=1).replace("\n", "\ndata: ").encode()
        + b"\n\n"
        + sse(delta("stop")),
        text="Sunny.",
    ),
    Quirk(
        "arguments as a string that holds a string that holds the object",
        sse(called("weather", json.dumps(arguments(PARIS)), index=0, id="a"), delta("tool_calls")),
        calls=(PARIS,),
    ),
    Quirk(
        "an empty object before the arguments",
        sse(called("weather", "{}", index=0, id="a"), called(None, arguments(PARIS), index=0), delta("tool_calls")),
        calls=(PARIS,),
    ),
    Quirk(
        "no arguments, and null for them",
        sse(
            delta(tool_calls=[{"index": 0, "id": "a", "function": {"name": "weather"}}]),
            delta(tool_calls=[{"index": 1, "id": "b", "function": {"name": "weather", "arguments": None}}]),
            delta("tool_calls"),
        ),
        calls=(("weather", {}), ("weather", {})),
    ),
    Quirk(
        "pieces of two calls in turns",
        sse(
            called("weather", arguments(PARIS)[:6], index=0, id="a"),
            called("weather", arguments(ROME)[:6], index=1, id="b"),
            called(None, arguments(PARIS)[6:], index=0),
            called(None, arguments(ROME)[6:], index=1),
            delta("tool_calls"),
        ),
        calls=(PARIS, ROME),
    ),
    Quirk(
        "the older function_call",
        sse(
            delta(function_call={"name": "weather", "arguments": ""}),
            *(delta(function_call={"arguments": part}) for part in pieces(arguments(PARIS))),
            delta("function_call"),
        ),
        calls=(PARIS,),
    ),
    Quirk(
        "content in parts, thinking among them",
        sse(
            delta(content=[{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}]),
            delta(content=[{"type": "text", "text": "Sun"}, {"type": "text", "text": "ny."}]),
            delta("stop"),
        ),
        thinking="hm",
        text="Sunny.",
    ),
    Quirk(
        "a thinking block that the prompt had opened",
        sse(delta(content="hm\n</thi"), delta(content="nk>\n\nSunny."), delta("stop")),
        thinking="hm\n",
        text="Sunny.",
        late=True,
    ),
    Quirk(
        "other choices, unknown objects, numbers where objects belong",
        sse(
            "3",
            "[]",
            {"choices": None},
            {"choices": [7]},
            {"choices": [{"index": 1, "delta": {"content": "no"}}]},
            delta(content="Sunny."),
            delta("stop"),
        ),
        text="Sunny.",
    ),
    Quirk(
        "no finish reason, but the end mark",
        sse(delta(content="Sunny.")),
        text="Sunny.",
    ),
    Quirk(
        "cut by the bound",
        sse(delta(content="Sun"), delta("length")),
        text="Sun",
        stop="length",
    ),
]


def read(stand_in: Any, model: OpenAIModel | None = None) -> list[Any]:
    async def go() -> list[Any]:
        one = model or OpenAIModel("stand-in", stand_in.url, patience=0.0)
        thread = one.open(Setup(tools=(weather.spec,)))
        events = [event async for event in thread.respond([UserMessage("hi")], ENVELOPE, Settings())]
        await one.aclose()
        return events

    return asyncio.run(go())


@pytest.mark.parametrize("every_byte", [False, True], ids=["whole", "bytes"])
@pytest.mark.parametrize("quirk", QUIRKS, ids=lambda quirk: quirk.name)
def test_a_reply_is_the_same_in_every_form(stand_in: Any, quirk: Quirk, every_byte: bool) -> None:
    stand_in.send(quirk.body, every_byte=every_byte, headers=quirk.headers)
    events = read(stand_in)
    last = events[-1]
    assert isinstance(last, ReplyFinished) and last.stop == quirk.stop
    message = last.message
    assert (message.text, message.thinking) == (quirk.text, quirk.thinking)
    assert tuple((call.name, call.arguments) for call in message.calls) == quirk.calls
    assert all(call.problem is None for call in message.calls)
    assert len({call.id for call in message.calls}) == len(quirk.calls)
    if quirk.usage is not None:
        assert (last.usage.input_tokens, last.usage.output_tokens) == quirk.usage
    if not quirk.late:
        assert "".join(e.text for e in events if isinstance(e, TextDelta)) == message.text
        assert "".join(e.text for e in events if isinstance(e, ThinkingDelta)) == message.thinking
    told_as_they_were_said(events, message)


def told_as_they_were_said(events: list[Any], message: AssistantMessage) -> None:
    """A call is begun, told and ready, in that order; what is told, joined, is its arguments."""
    for index, call in enumerate(message.calls):
        own = [e for e in events if getattr(e, "index", None) == index]
        assert own[0] == CallStarted(index, call.id, call.name) and own[-1] == CallReady(index, call)
        told = [e.text for e in own[1:-1] if isinstance(e, ArgumentsDelta)]
        assert len(told) == len(own) - 2 and json.loads("".join(told)) == call.arguments


ERRORS = [
    ("vllm: an error in the stream", sse({"error": {"message": "the engine died", "type": "x", "code": 500}})),
    (
        "llama.cpp: an error in a field of its own",
        b'error: {"code": 500, "message": "the engine died"}\n\n'.replace(b'{"c', b'{"error": {"c').replace(
            b'"}\n', b'"}}\n'
        ),
    ),
    ("an error event", b"event: error\n" + sse({"error": "the engine died"}, done=False)),
    ("status 200 and an error for a body", json.dumps({"error": {"message": "the engine died"}}).encode()),
    ("an old error object", json.dumps({"object": "error", "message": "the engine died", "code": 40303}).encode()),
    ("FastAPI's details", json.dumps({"detail": "the engine died"}).encode()),
    ("no JSON at all", b"data: the engine died\n\n"),
    ("a page", b"<html><head><style>x{}</style></head><body><h1>the engine died</h1></body></html>"),
]


@pytest.mark.parametrize("every_byte", [False, True], ids=["whole", "bytes"])
@pytest.mark.parametrize(("name", "body"), ERRORS, ids=[name for name, _ in ERRORS])
def test_errors_that_come_with_status_200(stand_in: Any, name: str, body: bytes, every_byte: bool) -> None:
    kind = "application/json" if body[:1] in (b"{", b"<") else "text/event-stream"
    stand_in.send(body, every_byte=every_byte, headers={"content-type": kind})
    with pytest.raises(ModelError, match="the engine died"):
        read(stand_in)


@pytest.mark.parametrize("body", [b"", b": ping\n\n", sse(delta(role="assistant"), done=False), b"data: {\n\n"])
def test_streams_that_end_too_early(stand_in: Any, body: bytes) -> None:
    stand_in.send(body)
    with pytest.raises(ModelError, match=r"broke off|no JSON"):
        read(stand_in)


def test_a_reply_that_breaks_off_in_a_call(stand_in: Any) -> None:
    stand_in.send(sse(delta(content="Well."), called("weather", '{"city": "Par', index=0, id="a"), done=False))
    with pytest.raises(ModelError, match="broke off"):
        read(stand_in)


def test_tags_are_text_once_calls_came_as_calls(stand_in: Any) -> None:
    model = OpenAIModel("stand-in", stand_in.url)
    stand_in.send(sse(called("weather", arguments(PARIS), index=0, id="a"), delta("tool_calls")))
    assert read(stand_in, model)[-1].message.calls
    stand_in.send(sse(delta(content=f"M1 writes {M1_CALLS}"), delta("stop")))
    message = read(stand_in, model)[-1].message
    assert not message.calls and message.text == f"M1 writes {M1_CALLS}"


def test_ids_that_were_used_before_are_replaced(stand_in: Any) -> None:
    async def go() -> list[str]:
        model = OpenAIModel("stand-in", stand_in.url)
        thread, ids = model.open(Setup(tools=(weather.spec,))), list[str]()
        for _ in range(3):
            stand_in.send(sse(called("weather", arguments(PARIS), index=0, id="call_0"), delta("tool_calls")))
            events = [event async for event in thread.respond([UserMessage("hi")], ENVELOPE, Settings())]
            ids += [call.id for call in events[-1].message.calls]
        await model.aclose()
        return ids

    assert len(set(asyncio.run(go()))) == 3


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_events_split_anywhere(end: str) -> None:
    body = sse({"a": "\u2028\u0085\u00e9"}, {"b": [1]}, end=end * 2)
    whole = EventDecoder()
    expected = [*whole.feed(body), *whole.finish()]
    assert len(expected) == 3
    for at in range(len(body)):
        decoder = EventDecoder()
        assert [*decoder.feed(body[:at]), *decoder.feed(body[at:]), *decoder.finish()] == expected


def test_a_call_of_m1_that_is_text_gets_ids_and_counts_on(stand_in: Any) -> None:
    stand_in.send(sse(delta(content=M1_CALLS), delta("stop")))
    calls = read(stand_in)[-1].message.calls
    assert calls == (ToolCall("call_1", *PARIS), ToolCall("call_2", *ROME))

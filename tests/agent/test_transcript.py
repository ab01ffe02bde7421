"""Messages as JSON and back."""

from __future__ import annotations

import dataclasses
import json
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m1agent.errors import TranscriptError
from m1agent.messages import (
    AssistantMessage,
    FilePart,
    ImagePart,
    Message,
    SystemMessage,
    ToolCall,
    ToolMessage,
    ToolResult,
    UserMessage,
    whole_text,
)
from m1agent.transcript import VERSION, from_json, results_from_json, results_to_json, to_json

ODD = st.text(st.characters(exclude_categories=[]))  # with lone surrogates
WHOLE = ODD.map(whole_text)


def values(text: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | text
    return st.recursive(plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3))


def messages(text: st.SearchStrategy[str]) -> st.SearchStrategy[list[Message]]:
    parts = st.builds(ImagePart, st.binary(max_size=9), text) | st.builds(FilePart, st.binary(max_size=9), text, text)
    arguments = st.dictionaries(text, values(text), max_size=3)
    call = st.builds(ToolCall, text, text, arguments, st.none() | text)
    result = st.builds(ToolResult, text, text, text, st.booleans(), st.lists(parts, max_size=2).map(tuple))
    return st.lists(
        st.builds(SystemMessage, text)
        | st.builds(UserMessage, text)
        | st.builds(AssistantMessage, text, text, st.lists(call, max_size=3).map(tuple))
        | st.builds(ToolMessage, st.lists(result, max_size=3).map(tuple)),
        max_size=5,
    )


@given(messages(WHOLE))
def test_every_message_comes_back_through_json_text(history: list[Message]) -> None:
    text = json.dumps(to_json(history), ensure_ascii=False).encode()
    assert from_json(json.loads(text)) == history


@given(messages(ODD))
def test_lone_surrogates_become_the_replacement_character(history: list[Message]) -> None:
    text = json.dumps(to_json(history), ensure_ascii=False).encode()
    once = from_json(json.loads(text))
    assert [type(message) for message in once] == [type(message) for message in history]
    assert from_json(to_json(once)) == once
    for before, after in zip(history, once, strict=True):
        if isinstance(before, UserMessage):
            assert after == UserMessage(whole_text(before.text))


def test_every_field_of_every_message_is_written() -> None:
    history: list[Message] = [
        SystemMessage("s"),
        UserMessage("u"),
        AssistantMessage("t", "th", (ToolCall("1", "f", {"x": [1, {"y": None}]}, "bad"),)),
        ToolMessage((ToolResult("1", "f", "c", True, (ImagePart(b"\x00", "image/png"), FilePart(b"b", "a/b", "n"))),)),
    ]
    written = to_json(history)
    assert {type(message) for message in history} == set(get_args(Message))

    def check(value: Any, said: dict[str, Any]) -> None:
        assert {field.name for field in dataclasses.fields(value)} == set(said) - {"version", "role", "type"}
        for field in dataclasses.fields(value):
            inner = getattr(value, field.name)
            for item, item_said in zip(inner, said[field.name], strict=False) if isinstance(inner, tuple) else ():
                check(item, item_said)

    for message, said in zip(history, written, strict=True):
        check(message, said)
        assert said["version"] == VERSION
    assert from_json(written) == history


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ({"role": "user"}, "a transcript is a list of messages"),
        (["hi"], 'messages[0]: expected an object, got "hi"'),
        (
            [{"role": "robot", "text": "x"}],
            'messages[0].role: expected one of system, user, assistant, tool, got "robot"',
        ),
        ([{"text": "x"}], "messages[0].role: expected one of system, user, assistant, tool, got null"),
        ([{"role": "user", "text": "x"}, {"role": "user"}], "messages[1].text: missing"),
        ([{"role": "user", "txet": "x"}], 'messages[0]: unknown field "txet". Did you mean "text"? Allowed: text.'),
        ([{"role": "user", "text": 7}], "messages[0].text: expected text, got 7"),
        ([{"role": "user", "text": "x", "version": 99}], "messages[0].version: this m1agent reads version 1, got 99"),
        ([{"role": "assistant", "calls": {}}], "messages[0].calls: expected a list, got {}"),
        ([{"role": "assistant", "calls": [{"id": "1"}]}], "messages[0].calls[0].name: missing"),
        (
            [{"role": "assistant", "calls": [{"id": "1", "name": "f", "arguments": []}]}],
            "messages[0].calls[0].arguments: expected an object, got []",
        ),
        (
            [{"role": "tool", "results": [{"call_id": "1", "name": "f", "content": "", "is_error": 1}]}],
            "messages[0].results[0].is_error: expected true or false, got 1",
        ),
        (
            [{"role": "tool", "results": [{"call_id": "1", "name": "f", "content": "", "parts": [{"type": "song"}]}]}],
            'messages[0].results[0].parts[0].type: expected one of image, file, got "song"',
        ),
        (
            [
                {
                    "role": "tool",
                    "results": [
                        {"call_id": "1", "name": "f", "content": "", "parts": [{"type": "file", "data": "no!"}]}
                    ],
                }
            ],
            "messages[0].results[0].parts[0].data: not base64",
        ),
    ],
)
def test_what_is_no_transcript_is_told_by_place(value: Any, told: str) -> None:
    with pytest.raises(TranscriptError) as error:
        from_json(value)
    assert str(error.value).startswith(told)


def test_arguments_that_are_no_json_are_told_by_place() -> None:
    call = ToolCall("1", "f", {"when": [{"at": object()}]})
    with pytest.raises(TranscriptError, match=r"messages\[1\]\.calls\[0\]\.arguments\.when\[0\]\.at: .* got a obj"):
        to_json([UserMessage("x"), AssistantMessage(calls=(call,))])
    with pytest.raises(TranscriptError, match=r"arguments: the keys of an object are text, got 1"):
        to_json([AssistantMessage(calls=(ToolCall("1", "f", {1: 2}),))])  # type: ignore[dict-item]


def test_a_message_written_by_hand_needs_only_what_it_says() -> None:
    assert from_json([{"role": "assistant", "text": "Hello."}]) == [AssistantMessage("Hello.")]


def test_results_come_back_and_gaps_stay_gaps() -> None:
    results = (None, ToolResult("1", "f", "c", parts=(FilePart(b"x"),)), None)
    assert results_from_json(json.loads(json.dumps(results_to_json(results)))) == results
    with pytest.raises(TranscriptError, match=r"results\[1\]\.call_id: missing"):
        results_from_json([None, {"name": "f"}])

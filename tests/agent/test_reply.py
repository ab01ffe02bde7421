from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m1agent.events import ArgumentsDelta, CallReady, CallStarted, ModelEvent, TextDelta, ThinkingDelta
from m1agent.messages import AssistantMessage, ToolCall
from m1agent.prompt.envelope import CALLS_CLOSE, CALLS_OPEN, Envelope
from m1agent.prompt.reply import ReplyParser, parse_reply
from m1agent.prompt.template import reply_text

ADD = '{"name": "add", "arguments": {"a": 1, "b": 2}}'
SUB = '{"name": "sub", "arguments": {"a": 5}}'


def group(*lines: str) -> str:
    return "<tool_calls>\n" + "\n".join(lines) + "\n</tool_calls>"


def call(number: int, name: str, arguments: dict[str, object]) -> ToolCall:
    return ToolCall(f"call_{number}", name, arguments)


def read(parts: Sequence[str], envelope: Envelope | None = None) -> tuple[list[ModelEvent], AssistantMessage]:
    parser = ReplyParser(envelope)
    events = [event for part in parts for event in parser.feed(part)]
    last, message = parser.finish()
    return merged(events + last), message


def merged(events: list[ModelEvent]) -> list[ModelEvent]:
    """Neighbouring deltas of one kind joined: what does not depend on where the stream was split."""
    out: list[ModelEvent] = []
    for event in events:
        match out[-1] if out else None, event:
            case TextDelta(a), TextDelta(b):
                out[-1] = TextDelta(a + b)
            case ThinkingDelta(a), ThinkingDelta(b):
                out[-1] = ThinkingDelta(a + b)
            case ArgumentsDelta(i, a), ArgumentsDelta(j, b) if i == j:
                out[-1] = ArgumentsDelta(i, a + b)
            case _:
                out.append(event)
    return out


A, S = call(1, "add", {"a": 1, "b": 2}), call(2, "sub", {"a": 5})

CASES: dict[str, tuple[str, AssistantMessage]] = {
    "no tags": ("Hello.", AssistantMessage("Hello.")),
    "nothing": ("", AssistantMessage()),
    "one call": (group(ADD), AssistantMessage(calls=(A,))),
    "two calls": (group(ADD, SUB), AssistantMessage(calls=(A, S))),
    "text before": ("Let me see.\n" + group(ADD), AssistantMessage("Let me see.\n", calls=(A,))),
    "text after": (group(ADD) + "\nDone.", AssistantMessage("\nDone.", calls=(A,))),
    "blanks after": (group(ADD) + " \n ", AssistantMessage(calls=(A,))),
    "tags and call on one line": (f"<tool_calls>{ADD}</tool_calls>", AssistantMessage(calls=(A,))),
    "no closing tag": (f"<tool_calls>\n{ADD}\n", AssistantMessage(calls=(A,))),
    "closing tag cut": (f"<tool_calls>\n{ADD}\n</tool_", AssistantMessage(calls=(A,))),
    "two on a line": (group(ADD + " " + SUB), AssistantMessage(calls=(A, S))),
    "two on a line, no space": (group(ADD + SUB), AssistantMessage(calls=(A, S))),
    "comma between": (group(ADD + ",", SUB), AssistantMessage(calls=(A, S))),
    "a JSON list of calls": (group(f"[{ADD}, {SUB}]"), AssistantMessage(calls=(A, S))),
    "one brace too many": (group(ADD + "}", SUB), AssistantMessage(calls=(A, S))),
    "a code fence": (group("```json", ADD, "```"), AssistantMessage(calls=(A,))),
    "two groups": (group(ADD) + "\n" + group(SUB), AssistantMessage(calls=(A, S))),
    "text between groups": (group(ADD) + "and" + group(SUB), AssistantMessage("and", calls=(A, S))),
    "group opened twice": (f"<tool_calls>\n{ADD}\n<tool_calls>\n{SUB}\n</tool_calls>", AssistantMessage(calls=(A, S))),
    "empty group": ("a" + group() + "b", AssistantMessage("ab")),
    "pretty-printed": (group(json.dumps(json.loads(ADD), indent=2), SUB), AssistantMessage(calls=(A, S))),
    "brace in a string": (
        group('{"name": "f", "arguments": {"a": "}{\\"]", "b": "\\\\"}}', SUB),
        AssistantMessage(calls=(call(1, "f", {"a": '}{"]', "b": "\\"}), S)),
    ),
    "closing tag in a string": (
        group('{"name": "f", "arguments": {"a": "</tool_calls>"}}'),
        AssistantMessage(calls=(call(1, "f", {"a": "</tool_calls>"}),)),
    ),
    "line break in a string": (
        group('{"name": "f", "arguments": {"a": "x\ny"}}'),
        AssistantMessage(calls=(call(1, "f", {"a": "x\ny"}),)),
    ),
    "a parameter called name": (
        group('{"name": "f", "arguments": {"name": "x", "arguments": {"name": "y"}}}', SUB),
        AssistantMessage(calls=(call(1, "f", {"name": "x", "arguments": {"name": "y"}}), S)),
    ),
    "arguments before name": (
        group('{"arguments": {"name": "x"}, "name": "f"}'),
        AssistantMessage(calls=(call(1, "f", {"name": "x"}),)),
    ),
    "arguments as a string": (
        group('{"name": "f", "arguments": "{\\"a\\": [1]}"}'),
        AssistantMessage(calls=(call(1, "f", {"a": [1]}),)),
    ),
    "arguments as an empty string": (
        group('{"name": "f", "arguments": ""}'),
        AssistantMessage(calls=(call(1, "f", {}),)),
    ),
    "no arguments": (group('{"name": "f"}'), AssistantMessage(calls=(call(1, "f", {}),))),
    "null arguments": (group('{"name": "f", "arguments": null}'), AssistantMessage(calls=(call(1, "f", {}),))),
    "unknown keys": (
        group('{"id": "7", "name": "f", "x": {"name": "g"}, "arguments": {}}'),
        AssistantMessage(calls=(call(1, "f", {}),)),
    ),
    "thinking": ("<think>\nHm.\n</think>\nYes.", AssistantMessage("Yes.", "Hm.")),
    "thinking without line breaks": ("<think>Hm.</think>Yes.", AssistantMessage("Yes.", "Hm.")),
    "thinking keeps its own line breaks": ("<think>\n\nHm.\n\n</think>\n\nYes.", AssistantMessage("\nYes.", "\nHm.\n")),
    "blanks before thinking": (" \n<think>\nHm.\n</think>\nYes.", AssistantMessage("Yes.", "Hm.")),
    "thinking never closed": ("<think>\nHm. <tool_calls>", AssistantMessage("", "Hm. <tool_calls>")),
    "thinking cut in its closing tag": ("<think>\nHm.\n</thi", AssistantMessage("", "Hm.\n</thi")),
    "empty thinking": ("<think>\n</think>\nYes.", AssistantMessage("Yes.")),
    "call inside thinking": (
        f"<think>\n{group(SUB)}\n</think>\n{group(ADD)}",
        AssistantMessage("", group(SUB), (A,)),
    ),
    "all of it": (
        f"<think>\nfake: {group(SUB)}\n</think>\nI call.\n{group(ADD, SUB)}\nDone.",
        AssistantMessage("I call.\n\nDone.", "fake: " + group(SUB), (A, S)),
    ),
    "a later thinking block is text": (
        f"So <think>{group(SUB)}</think> it is. {group(ADD)}",
        AssistantMessage(f"So <think>{group(SUB)}</think> it is. ", calls=(A,)),
    ),
    "partial tags are text": ("a < b <tool_ <tool_callsx <thin", AssistantMessage("a < b <tool_ <tool_callsx <thin")),
    "partial opening tag at the end": ("so <tool_cal", AssistantMessage("so <tool_cal")),
    "partial opening tag after a group": (group(ADD) + "\n<tool", AssistantMessage("\n<tool", calls=(A,))),
    "stray closing tag": ("a</tool_calls>b", AssistantMessage("a</tool_calls>b")),
}


@pytest.mark.parametrize("name", CASES)
def test_cases(name: str) -> None:
    text, message = CASES[name]
    assert parse_reply(text) == message


PROBLEMS = {
    "words": ("oops", "", "not a call: oops"),
    "broken object": ('{"name": "f", "arguments": {a: 1}}', "f", "not valid JSON (Expecting property name"),
    "no name": ('{"arguments": {}}', "", 'a call needs one "name", a string'),
    "name is no string": ('{"name": 3, "arguments": {}}', "", 'a call needs one "name", a string'),
    "empty name": ('{"name": "", "arguments": {}}', "", 'a call needs one "name", a string'),
    "two names": ('{"name": "f", "name": "g", "arguments": {}}', "f", "not valid JSON (a key is given twice)"),
    "arguments are a list": ('{"name": "f", "arguments": [1]}', "f", "the arguments must be a JSON object, not [1]"),
    "string of no JSON": (
        '{"name": "f", "arguments": "a=1"}',
        "f",
        "the arguments are a string that is not valid JSON",
    ),
    "string of a list": ('{"name": "f", "arguments": "[1]"}', "f", "the arguments must be a JSON object"),
    "NaN": ('{"name": "f", "arguments": {"a": NaN}}', "f", "not valid JSON (NaN is not JSON)"),
    "single quotes": ("{'name': 'f'}", "", "not valid JSON"),
    "string not closed": ('{"name": "f", "arguments": {"a": "x}}', "f", "not valid JSON (a string is not closed)"),
    "nested without end": ('{"name": "f", "arguments": ' + '{"a":' * 3000 + "1" + "}" * 3001, "f", "not valid JSON"),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_an_unreadable_call_is_kept_but_never_runnable_and_the_next_line_is_read(name: str) -> None:
    line, called, problem = PROBLEMS[name]
    first, second = parse_reply(group(line, SUB)).calls
    assert (first.name, first.arguments) == (called, {})
    assert first.problem is not None and first.problem.startswith(problem)
    assert second == S
    assert len(first.problem) < 300


@pytest.mark.parametrize("cut", range(len("<tool_calls>\n"), len("<tool_calls>\n" + ADD)))
def test_a_call_cut_anywhere_is_kept_and_not_runnable(cut: int) -> None:
    parser = ReplyParser()
    parser.feed(("<tool_calls>\n" + ADD)[:cut])
    calls = parser.finish("length")[1].calls
    assert len(calls) == (cut > len("<tool_calls>\n"))
    assert all(item.problem and "token budget" in item.problem and item.arguments == {} for item in calls)


def test_with_choice_none_tags_are_text() -> None:
    text = group(ADD)
    assert parse_reply("<think>\nHm.\n</think>\n" + text, Envelope(choice="none")) == AssistantMessage(text, "Hm.")


def test_with_an_output_schema_calls_stand_only_before_any_text() -> None:
    envelope = Envelope(answer={"type": "object"})
    answer = '{"text": "<tool_calls>{}</tool_calls>"}'
    assert parse_reply(answer, envelope) == AssistantMessage(answer)
    assert parse_reply("\n" + group(ADD), envelope).calls == (A,)


def test_ids_count_from_the_callers_number() -> None:
    assert [item.id for item in parse_reply(group(ADD, SUB), first_call=41).calls] == ["call_41", "call_42"]


def test_events_of_a_call_come_as_soon_as_they_are_known() -> None:
    parser = ReplyParser()
    assert parser.feed('<tool_calls>\n{"name": "f') == []
    assert parser.feed('"') == [CallStarted(0, "call_1", "f")]
    assert parser.feed(', "arguments": {"a"') == [ArgumentsDelta(0, '{"a"')]
    assert parser.feed(": 1") == [ArgumentsDelta(0, ": 1")]
    assert parser.feed("}") == [ArgumentsDelta(0, "}")]
    assert parser.feed("}") == [CallReady(0, call(1, "f", {"a": 1}))]


def test_arguments_wait_for_the_name() -> None:
    parser = ReplyParser()
    assert parser.feed('<tool_calls>{"arguments": {"a": 1}, "name": "f') == []
    assert parser.feed('"}') == [
        CallStarted(0, "call_1", "f"),
        ArgumentsDelta(0, '{"a": 1}'),
        CallReady(0, call(1, "f", {"a": 1})),
    ]


def test_ordinary_angle_brackets_are_not_delayed() -> None:
    parser = ReplyParser()
    assert parser.feed("a <") == [TextDelta("a ")]
    assert parser.feed("b> <tab") == [TextDelta("<b> <tab")]
    assert parser.feed("le></t") == [TextDelta("le></t")]


FRAGMENTS = st.sampled_from(
    [
        "<think>", "</think>", "<tool_calls>", "</tool_calls>", "\n", " ", ",", "{", "}", '"', "\\", "<", "a", "1",
        ADD, SUB, '{"name": "f", "arguments": {"x": "abc}}', '{"arguments": {"name": "}"}, "name": "é"}',
        '{"name": "f", "arguments": "{}"}', '"name"', '"arguments"', ":", "[", "]", "null", "</tool", "<tool_", "```",
    ]
)  # fmt: skip
ENVELOPES = st.sampled_from([Envelope(), Envelope(choice="none"), Envelope(answer={"type": "object"})])


@settings(max_examples=400, deadline=None)
@given(st.lists(FRAGMENTS, max_size=14).map("".join), ENVELOPES, st.data())
def test_no_split_of_the_stream_changes_anything(text: str, envelope: Envelope, data: st.DataObject) -> None:
    whole = read([text], envelope)
    assert read(list(text), envelope) == whole
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=6)) | {0, len(text)})
    assert read([text[a:b] for a, b in pairwise(cuts)], envelope) == whole


@pytest.mark.parametrize("name", CASES)
def test_every_single_cut_of_the_cases(name: str) -> None:
    text = CASES[name][0]
    whole = read([text])
    assert all(read([text[:cut], text[cut:]]) == whole for cut in range(len(text) + 1))


@settings(max_examples=300, deadline=None)
@given(st.lists(FRAGMENTS, max_size=14).map("".join))
def test_events_tell_the_message(text: str) -> None:
    events, message = read([text])
    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == message.text
    assert "".join(event.text for event in events if isinstance(event, ThinkingDelta)) == message.thinking
    assert tuple(event.call for event in events if isinstance(event, CallReady)) == message.calls
    for index, made in enumerate(message.calls):
        kinds = [type(event) for event in events if getattr(event, "index", None) == index]
        assert kinds[0] is CallStarted and kinds[-1] is CallReady and set(kinds[1:-1]) <= {ArgumentsDelta}
        told = [event.text for event in events if isinstance(event, ArgumentsDelta) and event.index == index]
        if made.problem is None:
            assert json.loads("".join(told), strict=False) == made.arguments


WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40).filter(
    lambda text: not any(tag in text for tag in ("<think>", "</think>", CALLS_OPEN, CALLS_CLOSE))
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
CALLS = st.lists(st.tuples(st.text(min_size=1, max_size=12), st.dictionaries(st.text(max_size=8), JSON)), max_size=3)


@settings(max_examples=300, deadline=None)
@given(WORDS, WORDS, CALLS)
def test_a_rendered_message_is_read_back(text: str, thinking: str, calls: list[tuple[str, dict[str, object]]]) -> None:
    made = tuple(call(number, name, arguments) for number, (name, arguments) in enumerate(calls, 1))
    message = AssistantMessage(text, thinking, made)
    assert parse_reply(reply_text(message)) == message


def test_a_long_reply_is_read_in_linear_time() -> None:
    value = "x" * 200_000
    text = group(json.dumps({"name": "write", "arguments": {"text": value}}))
    parser = ReplyParser()
    for at in range(0, len(text), 5):
        parser.feed(text[at : at + 5])
    assert parser.finish()[1].calls[0].arguments == {"text": value}

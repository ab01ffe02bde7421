"""Calls or an answer in one reply, and calls that are checked, and written again once, before they are told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import BaseModel

from m1agent.agent import Agent
from m1agent.conversation import Conversation
from m1agent.events import (
    ArgumentsDelta,
    CallReady,
    CallStarted,
    Event,
    ReplyFinished,
    StepFinished,
    TokensScored,
    ToolFinished,
)
from m1agent.limits import Limits
from m1agent.messages import AssistantMessage, Setup, ToolSpec, UserMessage
from m1agent.models.base import Settings
from m1agent.models.local import LocalModel
from m1agent.prompt.envelope import Envelope, Named
from m1agent.prompt.places import place
from m1agent.prompt.reply import parse_reply
from m1agent.tools import Tool, tool
from m1agent.validation import ArgumentsSchema

BEGUN, END = "ai name=assistant\n", "<end_of_sentence>"
Chain = Callable[[Path, dict[str, list[str]]], Path]


class Verdict(BaseModel):
    good: bool
    colour: Literal["red", "green"]


@tool
def paint(colour: Literal["red", "green"], coats: int = 1) -> str:
    """Paint the wall."""
    return f"{coats} coats of {colour}"


TEXTS = {"type": "array", "items": {"type": "string"}}
DIFFERENT = {**TEXTS, "minItems": 2, "maxItems": 2, "uniqueItems": True}
WITH_Z = {"type": "array", "items": {"type": "string", "pattern": "(?=z)z"}, "minItems": 1, "maxItems": 1}


def tag(schema: dict[str, Any], name: str = "tag") -> Tool:
    parameters = {"type": "object", "properties": {"tags": schema}, "required": ["tags"]}
    return Tool.from_schema(name, "Tag it.", parameters, lambda tags: f"tagged {tags}")


# Calls or an answer


@pytest.mark.parametrize("thinking", [None, 3])
def test_a_random_model_calls_or_answers_and_is_never_asked_twice(folder: Path, thinking: int | None) -> None:
    model, kinds = LocalModel(folder, max_tokens=80), set[str]()
    limits = Limits(steps=1, thinking=thinking)
    for seed in range(12):
        agent = Agent(model, tools=[paint], output=Verdict, settings=Settings(seed=seed), limits=limits)
        result = agent.run_sync("Well?")
        reply = result.messages[1]
        assert isinstance(reply, AssistantMessage) and result.error is None
        kinds |= {"thinking"} if reply.thinking else set()
        if reply.calls:
            kinds.add("calls")
            assert reply.text == "" and all(call.problem is None for call in reply.calls) and result.stop == "steps"
        else:
            kinds.add("answer")
            assert isinstance(result.output, Verdict) and result.stop == "done" and len(result.messages) == 2
        asyncio.run(result.conversation.aclose())
    assert "answer" in kinds


@pytest.mark.parametrize("thinks", [False, True])
def test_what_the_model_means_decides_between_calls_and_an_answer(tmp_path: Path, chain: Chain, thinks: bool) -> None:
    """It was never taught to answer in JSON: "ok" is what it says where it means to answer."""
    first = "</think>\n" if thinks else BEGUN
    for name, said in {"answers": ["ok"], "calls": ["ok", "<tool_calls>\n"]}.items():
        model = LocalModel(chain(tmp_path / name, {BEGUN: ["<think>\n"], first: said}), max_tokens=99)
        limits = Limits(steps=1, thinking=3)
        agent = Agent(model, tools=[paint], output=Verdict, settings=Settings(temperature=0), limits=limits)
        result = agent.run_sync("Well?")
        assert (len(result.calls) > 0, isinstance(result.output, Verdict)) == (name == "calls", name == "answers")


@pytest.mark.parametrize("bound", [0, 1, 20])
@pytest.mark.parametrize("choice", ["auto", "none", "required", paint])
def test_after_thinking_that_was_closed_the_choice_holds(thinker: Path, bound: int, choice: Any) -> None:
    agent = Agent(
        LocalModel(thinker, max_tokens=99),
        tools=[paint],
        output=Verdict,
        settings=Settings(temperature=0),
        limits=Limits(steps=1, thinking=bound),
    )
    result = agent.run_sync("Go.", tool_choice=choice)
    reply = result.messages[1]
    assert isinstance(reply, AssistantMessage) and reply.thinking == "a" * (max(bound, 1) - 1)
    if choice == "none":
        assert not reply.calls
    if choice in ("required", paint):
        assert [call.name for call in reply.calls][:1] == ["paint"]
    assert reply.calls or isinstance(result.output, Verdict)
    if choice is paint:
        assert len(reply.calls) == 1


def test_thinking_at_the_end_of_the_tokens_leaves_room_for_what_must_follow(thinker: Path) -> None:
    model = LocalModel(thinker)
    least = model.least(Envelope((paint.spec,), "required"))
    for most in range(least + 4, least + 12):
        settings = Settings(temperature=0, max_tokens=most)
        agent = Agent(model, tools=[paint], settings=settings, limits=Limits(steps=1, thinking=5))
        result = agent.run_sync("Go.", tool_choice="required")
        assert result.error is None and result.calls and result.calls[0].call.problem is None


def test_the_parser_reads_what_the_mask_allows() -> None:
    envelope = Envelope((paint.spec,), answer={"type": "object"})
    calls = '<tool_calls>\n{"name": "paint", "arguments": {"colour": "red"}}\n</tool_calls>'
    given = json.dumps({"say": calls, "think": "<think></think>"})
    thought = "<think>\n<tool_calls> {\n</think>\n"
    for before in ("", thought, thought + "\n"):
        assert [call.name for call in parse_reply(before + calls, envelope).calls] == ["paint"]
        reply = parse_reply(before + given, envelope)
        assert reply.calls == () and json.loads(reply.text) == json.loads(given)
        assert parse_reply(before + calls, replace(envelope, choice="none")).calls == ()


# Calls that no mask promises


DOUBLE = {
    BEGUN: ["<tool_calls>\n"],
    "s": ['": ["'],
    '": ["': ["a"],
    '", "': ["a"],
    "a": ['", "', '"]}}\n', "b"],
    "b": ['"]}}\n', '", "'],
    '"]}}\n': ["</tool_calls>"],
    "</tool_calls>": [END],
    "</think>\n": ["<tool_calls>\n"],
}


def events_of(agent: Agent[None, str], talk: Conversation, **options: Any) -> list[Event]:
    async def go() -> list[Event]:
        return [event async for event in agent.stream("Tag it.", conversation=talk, **options)]

    return asyncio.run(go())


def agent_of(model: LocalModel, schema: dict[str, Any], **options: Any) -> Agent[None, str]:
    given: dict[str, Any] = {"settings": Settings(temperature=0, max_tokens=99), "limits": Limits(steps=1)} | options
    return Agent(model, tools=[tag(schema)], **given)


@pytest.mark.parametrize("choice", ["auto", "required"])
@pytest.mark.parametrize("begin", ["<tool_calls>\n", "<think>\n"])
def test_a_wrong_value_is_written_again_and_all_before_it_stays(
    tmp_path: Path, chain: Chain, choice: Any, begin: str
) -> None:
    model = LocalModel(chain(tmp_path, DOUBLE | {BEGUN: [begin]}))
    talk = Conversation()
    agent = agent_of(model, DIFFERENT, limits=Limits(steps=1, thinking=4))
    events = events_of(agent, talk, tool_choice=choice)
    call = next(event.call for event in events if isinstance(event, CallReady))
    assert call.arguments == {"tags": ["a", "ab"]}
    assert [type(event) for event in events if isinstance(event, CallStarted | CallReady)] == [CallStarted, CallReady]
    told = "".join(event.text for event in events if isinstance(event, ArgumentsDelta))
    assert told == json.dumps(call.arguments)
    result = next(event.result for event in events if isinstance(event, ToolFinished))
    assert result.content == "tagged ['a', 'ab']"
    text = model.tokenizer.decode(talk.ids or ()).split(BEGUN)[1]
    thought = '<think>\na", "a\n</think>\n' if begin == "<think>\n" else ""
    assert text == f'{thought}<tool_calls>\n{{"name": "tag", "arguments": {{"tags": ["a", "ab"]}}}}\n</tool_calls>{END}'
    reply = next(event for event in events if isinstance(event, ReplyFinished))
    written = len(talk.ids or ()) - reply.usage.input_tokens - 1
    assert reply.usage.output_tokens == written + len(['", "', "a", '"]}}\n'])
    assert model.engine.stats().sessions == 1


def test_a_second_wrong_value_is_told_as_it_is_and_the_loop_takes_over(tmp_path: Path, chain: Chain) -> None:
    model, talk = LocalModel(chain(tmp_path, DOUBLE)), Conversation()
    agent, seen = agent_of(model, WITH_Z, limits=Limits(steps=3)), list[tuple[int, ...]]()

    async def go() -> list[Event]:
        events: list[Event] = []
        async for event in agent.stream("Tag it.", conversation=talk):
            events.append(event)
            if isinstance(event, StepFinished):
                seen.append(talk.ids or ())
        return events

    events = asyncio.run(go())
    calls = [event.call.arguments["tags"] for event in events if isinstance(event, CallReady)]
    assert calls == [["ab"]] * 3
    results = [event.result for event in events if isinstance(event, ToolFinished)]
    assert [result.is_error for result in results] == [True] * 3, results
    assert len(seen) == 3 and all(after[: len(before)] == before for before, after in pairwise(seen))


def test_whatever_the_budget_a_call_is_whole_and_the_first_one_stands_where_no_other_fits(
    tmp_path: Path, chain: Chain
) -> None:
    model = LocalModel(chain(tmp_path, DOUBLE))
    spec = tag(DIFFERENT).spec
    grammar: Any = model.grammar(Envelope((spec,), "required"))
    least, found = grammar.start(model.tokenizer, max_new_tokens=999).min_tokens, list[Sequence[str]]()
    for most in range(least, least + 14):
        agent = agent_of(model, DIFFERENT, settings=Settings(temperature=0, max_tokens=most))
        result = agent.run_sync("Tag it.", tool_choice="required")
        (record,) = result.calls
        assert record.call.problem is None and len(record.call.arguments["tags"]) == 2
        found.append(record.call.arguments["tags"])
        ids = result.conversation.ids or ()
        assert parse_reply(model.tokenizer.decode(ids).split(BEGUN)[1].removesuffix(END)).calls[0] == record.call
    assert any(one == other for one, other in found) and found[-1] == ["a", "ab"]


def test_a_tool_that_the_mask_enforces_is_streamed_while_it_is_written(tmp_path: Path, chain: Chain) -> None:
    model = LocalModel(chain(tmp_path, DOUBLE))
    streamed = events_of(agent_of(model, {**TEXTS, "maxItems": 3}), Conversation())
    held = events_of(agent_of(model, {**TEXTS, "maxItems": 3, "uniqueItems": True}), Conversation())
    pieces = [len([event for event in events if isinstance(event, ArgumentsDelta)]) for events in (streamed, held)]
    assert pieces[0] > pieces[1] == 1


@pytest.mark.parametrize("place_", ["random", "m1-nano"])
def test_what_is_told_is_what_was_written(folder: Path, place_: str) -> None:
    model = LocalModel(folder if place_ == "random" else place_, max_tokens=160)
    tools, again = [tag(WITH_Z), tag({**TEXTS, "maxItems": 3, "uniqueItems": True}, "other"), paint], 0
    for seed in range(8):
        talk = Conversation()
        agent = Agent(model, tools=tools, settings=Settings(seed=seed), limits=Limits(steps=1, thinking=9))
        choice = "required" if place_ == "random" else tools[0]
        result = agent.run_sync("Tag it: hot, cold.", conversation=talk, tool_choice=choice)
        assert result.error is None and result.calls
        text = model.tokenizer.decode(talk.ids or ()).rpartition("ai name=assistant\n")[2].removesuffix(END)
        reply = result.messages[1]
        assert parse_reply(text, Envelope(choice="required")) == reply
        assert all(call.call.problem is None for call in result.calls)
        again += result.usage.output_tokens > len(talk.ids or ()) - result.usage.input_tokens
        asyncio.run(talk.aclose())
    assert again


def test_what_is_told_of_tokens_is_of_those_that_stand(folder: Path) -> None:
    model = LocalModel(folder, max_tokens=160)
    tools, again = [tag(WITH_Z), tag({**TEXTS, "maxItems": 3, "uniqueItems": True}, "other")], 0
    for seed in range(6):
        settings = Settings(seed=seed, logprobs=2)
        agent = Agent(model, tools=tools, settings=settings, limits=Limits(steps=1, thinking=9))
        events = events_of(agent, talk := Conversation(), tool_choice="required")
        scored = [token for event in events if isinstance(event, TokensScored) for token in event.tokens]
        text = model.tokenizer.decode(talk.ids or ()).rpartition("ai name=assistant\n")[2].removesuffix(END)
        assert b"".join(token.bytes for token in scored).decode(errors="replace") == text
        assert all(token.logprob <= 0 and len(token.top) <= 2 for token in scored)
        usage = next(event.usage for event in events if isinstance(event, ReplyFinished))
        again += usage.output_tokens > len(scored)
        asyncio.run(talk.aclose())
    assert again


def test_a_reader_that_leaves_a_held_call_leaves_a_thread_that_goes_on(tmp_path: Path, chain: Chain) -> None:
    async def go() -> None:
        model, spec = LocalModel(chain(tmp_path, DOUBLE)), tag(DIFFERENT).spec
        for tokens in range(20):
            thread = model.open(Setup("", (spec,)))
            envelope, settings = Envelope((spec,), Named("tag")), Settings(temperature=0, max_tokens=99)
            stream = thread.respond([UserMessage("Tag it.")], envelope, settings)
            task = asyncio.ensure_future(anext(stream, None))
            for _ in range(tokens):
                await asyncio.sleep(0.001)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await stream.aclose()
            held = thread.ids
            events = [event async for event in thread.respond([UserMessage("Again.")], envelope, settings)]
            assert thread.ids[: len(held)] == held
            finished = events[-1]
            assert isinstance(finished, ReplyFinished) and finished.message.calls[0].arguments == {"tags": ["a", "ab"]}
            await thread.aclose()

    asyncio.run(go())


def test_reports_say_what_is_left_to_the_check() -> None:
    model, specs = LocalModel("m1-nano"), (tag(DIFFERENT).spec, paint.spec)
    left, plain, answer = model.reports(Envelope(specs, answer={"type": "integer"}))
    assert [(item.path, item.keyword) for item in left.unenforced] == [("/properties/tags", "uniqueItems")]
    assert (plain.name, plain.enforced, answer.name, answer.enforced) == ("paint", True, "", True)
    assert model.reports(Envelope(specs, "none")) == ()
    checks = model.checks(Envelope(specs, answer={"type": "integer"}))
    assert "tag" in checks and "paint" not in checks


# Where a value stands


def test_the_place_of_a_value() -> None:
    text = 'x{"a": [1, {"b\\n": "é, ]"}, []], "c": {"a": -1.5e3}, "": null}'
    at: Callable[..., str] = lambda *path: text[slice(*place(text, 1, path))]  # noqa: E731
    assert at("a", 1, "b\n") == '"é, ]"' and at("c", "a") == "-1.5e3" and at("") == "null" and at("a", 2) == "[]"
    assert at() == text[1:] and at("a", 7) == '[1, {"b\\n": "é, ]"}, []]' and at("c", 0) == '{"a": -1.5e3}'
    with pytest.raises(ValueError, match="Expecting"):
        place("{oops", 0, ("a",))


def test_of_equal_items_the_second_is_the_wrong_one() -> None:
    schema = ArgumentsSchema({"properties": {"x": {"uniqueItems": True}, "y": {"type": "integer"}}})
    assert schema.check({"x": [1, {"a": 1, "b": 2}, {"b": 2, "a": 1}, 1]}).places == (("x", 2),)
    assert schema.check({"x": [1], "y": []}).places == (("y",),)
    assert schema.check({"x": [1], "y": "7"}).places == ()


def test_a_spec_nobody_can_check_is_left_to_the_loop() -> None:
    from m1agent.models.checks import CallChecks

    checks = CallChecks.of([ToolSpec("odd", "", {"type": "string"}), ToolSpec("f", "", {"type": "object"})])
    assert "odd" not in checks and "f" in checks and checks

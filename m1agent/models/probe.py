"""Finds out by asking what a compatible server can do: a handful of small requests, each of which may fail alone.

profile = await probe(OpenAIModel("Qwen/Qwen3-8B", "http://localhost:8000/v1"))
print("\\n".join(profile.lines()))
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Literal

from m1agent.models.openai import OpenAIModel
from m1agent.models.openai_calls import call_pieces
from m1agent.models.openai_dialect import Dialect, Kind, Listing
from m1agent.models.openai_json import as_list, as_object
from m1agent.models.openai_reply import THOUGHTS
from m1agent.models.openai_trouble import Trouble
from m1agent.models.openai_wire import response_format
from m1agent.prompt.envelope import CALLS_OPEN, THINK_CLOSE, THINK_OPEN

TOKENS = 512
WORD = "m1-probe-7f3a"
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "note_word",
        "description": "Write a word down.",
        "parameters": {
            "type": "object",
            "properties": {"word": {"type": "string", "enum": [WORD]}, "times": {"type": "integer"}},
            "required": ["word", "times"],
            "additionalProperties": False,
        },
    },
}
ANSWER: dict[str, Any] = {
    "type": "object",
    "properties": {"word": {"type": "string", "enum": [WORD]}},
    "required": ["word"],
    "additionalProperties": False,
}
Calls = Literal["calls", "text", "none", "refused"]


@dataclass(frozen=True, slots=True)
class ServerProfile:
    """What a server does, as it was seen to.

    reachable: it answered a chat request. problem: why not. listed: the model is among those it names; context: tokens
    it may hold. thinking: the field its thinking came in, "" where it did not think. usage: it counts tokens.
    auto, required: how a tool call arrives when the model may, and when it must call: as a call, in the text (the
    server has no parser for this model), not at all, or the request was refused. held: what it must call is held to
    the schema. streamed: arguments come in pieces. schema: an answer's schema holds the model.
    """

    kind: Kind
    reachable: bool
    problem: str = ""
    models: tuple[str, ...] = ()
    listed: bool = False
    context: int | None = None
    thinking: str = ""
    usage: bool = False
    auto: Calls = "none"
    required: Calls = "none"
    held: bool = False
    streamed: bool = False
    schema: bool = False
    refused: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """The findings in words, each with its remedy where there is one."""
        if not self.reachable:
            return [f"does not answer: {self.problem}"]
        context = f", {self.context} tokens of context" if self.context else ""
        found = [f"answers ({self.kind}{context})"]
        if self.models and not self.listed:
            found.append(f"does not list this model; listed: {', '.join(self.models[:10])}")
        found.append(f"thinking: {self.thinking or 'none seen'}")
        found.append("tokens are counted" if self.usage else "tokens are not counted; they are estimated")
        found.append(f"tools: {_CALLS[self.auto]}")
        held = "held to their schema" if self.held else "not held to their schema; they are validated"
        found.append(f"required calls: {_CALLS[self.required]}" + (f", {held}" if self.required == "calls" else ""))
        found.append("answers: " + ("held to their schema" if self.schema else "not held to a schema; validated"))
        if self.refused:
            found.append(f"fields it refuses: {', '.join(self.refused)}")
        return found


_CALLS: Mapping[Calls, str] = {
    "calls": "calls arrive as calls",
    "text": "calls arrive in the text: the server has no parser for this model's calls; they are read here",
    "none": "no call was made",
    "refused": "refused: start vLLM with --enable-auto-tool-choice --tool-call-parser ..., llama.cpp with --jinja",
}


async def probe(model: OpenAIModel) -> ServerProfile:
    """What the server of `model` can do with it. Sends four short requests; raises nothing a server could cause."""
    dialect = await model.dialect()
    try:
        listing = await model.listing()
    except Trouble:
        listing = Listing(dialect.kind, (), {})
    told = await _ask(model, dialect, {}, "Say ok.")
    if isinstance(told, Trouble):
        return ServerProfile(dialect.kind, False, str(await model.explained(told)), listing.models)
    wanted = f"Call note_word with the word {WORD} and 3 times."
    auto = await _ask(model, dialect, {"tools": [TOOL]}, wanted)
    required = await _ask(model, dialect, {"tools": [TOOL], "tool_choice": "required"}, "Say a word that rhymes.")
    answer = await _ask(model, dialect, {"response_format": response_format(ANSWER, dialect)}, "Name any fruit.")
    return ServerProfile(
        dialect.kind,
        True,
        models=listing.models,
        listed=model.model in listing.models,
        context=listing.contexts.get(model.model),
        thinking=told.thinking,
        usage=told.usage,
        auto=_calls(auto),
        required=_calls(required),
        held=isinstance(required, _Said) and _holds(required.arguments, TOOL["function"]["parameters"]),
        streamed=any(isinstance(one, _Said) and one.pieces > 1 for one in (auto, required)),
        schema=isinstance(answer, _Said) and _holds(answer.spoken, ANSWER),
        refused=tuple(model.refused),
    )


@dataclass(slots=True)
class _Said:
    """A reply as it came."""

    text: str = ""
    thinking: str = ""
    usage: bool = False
    arguments: str = ""
    pieces: int = 0
    called: bool = False

    @property
    def spoken(self) -> str:
        """The text without a thinking block."""
        return self.text.rpartition(THINK_CLOSE)[2].strip()

    def read(self, chunk: Mapping[str, Any]) -> None:
        """Take in a chunk."""
        self.usage = self.usage or bool(as_object(chunk.get("usage")))
        for choice in map(as_object, as_list(chunk.get("choices"))):
            part = as_object(choice.get("delta") or choice.get("message"))
            self.thinking = self.thinking or next((name for name in THOUGHTS if part.get(name)), "")
            content = part.get("content")
            self.text += content if isinstance(content, str) else ""
            if THINK_OPEN in self.text or THINK_CLOSE in self.text:
                self.thinking = self.thinking or "content"
            for piece in call_pieces(part):
                self.called = True
                self.pieces += bool(piece.arguments)
                self.arguments += piece.arguments


async def _ask(model: OpenAIModel, dialect: Dialect, fields: Mapping[str, Any], prompt: str) -> _Said | Trouble:
    while True:
        body = model.fit(
            {
                "model": model.model,
                "messages": [{"role": "user", "content": prompt}],
                "stream": True,
                "stream_options": {"include_usage": True},
                dialect.token_limit: TOKENS,
                **fields,
                **(dialect.extra or {}),
            }
        )
        said = _Said()
        try:
            async with aclosing(model.server.stream(body, model.check)) as chunks:
                async for chunk in chunks:
                    said.read(chunk)
            return said
        except Trouble as trouble:
            if not model.give_up(body, trouble):
                return trouble


def _calls(reply: _Said | Trouble) -> Calls:
    if isinstance(reply, Trouble):
        return "refused"
    if reply.called:
        return "calls"
    return "text" if CALLS_OPEN in reply.text or "<tool_call>" in reply.text else "none"


def _holds(text: str, schema: Mapping[str, Any]) -> bool:
    from m1agent.errors import SchemaError
    from m1agent.validation import ArgumentsSchema

    try:
        value = json.loads(text)
        return isinstance(value, dict) and not ArgumentsSchema(dict(schema)).check(as_object(value)).problems
    except (ValueError, SchemaError):
        return False

"""Messages, tools and settings as a compatible server takes them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any, cast

from m1agent.messages import (
    AssistantMessage,
    JsonSchema,
    Message,
    Setup,
    SystemMessage,
    ToolCall,
    ToolMessage,
    ToolSpec,
    UserMessage,
    whole_text,
)
from m1agent.models.base import Settings
from m1agent.models.openai_dialect import Dialect
from m1agent.models.openai_json import as_object
from m1agent.prompt.envelope import THINK_CLOSE, THINK_OPEN, Envelope, Named
from m1agent.schema import canonical_json, canonical_schema

LONGEST_NAME = 64
UNSAFE = re.compile(r"[^a-zA-Z0-9_-]")
CLOSED = frozenset(
    "type description enum const properties required additionalProperties items anyOf $ref $defs format pattern "
    "minimum maximum exclusiveMinimum exclusiveMaximum multipleOf minItems maxItems title".split()
)
"""Keywords of OpenAI's subset for `strict`."""


class Names:
    """Tool names as servers take them: letters, digits, `_` and `-`, 64 at most. Others get a name made of theirs."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._sent: dict[str, str] = {}
        self._own: dict[str, str] = {}
        for name in names:
            self.sent(name)

    def sent(self, name: str) -> str:
        """The name that is sent."""
        if name not in self._sent:
            safe = UNSAFE.sub("_", name)
            if safe != name or len(safe) > LONGEST_NAME or not safe:
                safe = f"{safe[: LONGEST_NAME - 9]}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"
            self._sent[name], self._own[safe] = safe, name
        return self._sent[name]

    def own(self, sent: str) -> str:
        """The tool's own name; a name that was never sent is its own."""
        return self._own.get(sent, sent)


@dataclass(slots=True)
class Transcript:
    """A conversation as it is sent: each message is made once, so that what was sent stays as it was.

    thought_in: the field in which a server takes its thinking back; "" for none.
    """

    names: Names
    messages: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])

    @classmethod
    def begin(cls, setup: Setup, history: Sequence[Message], thought_in: str) -> Transcript:
        """The beginning: system messages at the head of the history join the instructions."""
        made = cls(Names(spec.name for spec in setup.tools))
        head = list(takewhile(lambda message: isinstance(message, SystemMessage), history))
        texts = [setup.instructions, *(message.text for message in head if isinstance(message, SystemMessage))]
        if text := "\n\n".join(filter(None, texts)):
            made.messages.append({"role": "system", "content": whole_text(text)})
        made.add(history[len(head) :], thought_in)
        return made

    def add(self, messages: Iterable[Message], thought_in: str) -> None:
        """Add what was said."""
        for message in messages:
            self.messages += self._sent(message, thought_in)

    def add_reply(self, message: AssistantMessage, thought_in: str, details: Sequence[Any]) -> None:
        """Add what the model replied, its thinking as it came."""
        (made,) = self._sent(message, thought_in)
        if thought_in == "reasoning_details" and details:
            made["reasoning_details"] = _joined(details)
        self.messages.append(made)

    def _sent(self, message: Message, thought_in: str) -> Iterator[dict[str, Any]]:
        match message:
            case SystemMessage(text):
                yield {"role": "system", "content": whole_text(text)}
            case UserMessage(text):
                yield {"role": "user", "content": whole_text(text)}
            case AssistantMessage():
                yield self._reply(message, thought_in)
            case ToolMessage(results):
                for result in results:
                    yield {"role": "tool", "tool_call_id": result.call_id, "content": whole_text(result.content)}

    def _reply(self, message: AssistantMessage, thought_in: str) -> dict[str, Any]:
        text, thought = whole_text(message.text), whole_text(message.thinking)
        if thought and thought_in == "content":
            text = f"{THINK_OPEN}\n{thought}\n{THINK_CLOSE}\n{text}"
        made: dict[str, Any] = {"role": "assistant", "content": text}
        if thought and thought_in == "reasoning_details":
            made["reasoning_details"] = [{"type": "reasoning.text", "text": thought}]
        elif thought and thought_in not in ("", "content"):
            made[thought_in] = thought
        if message.calls:
            made["content"] = text or None
            made["tool_calls"] = [self._call(call) for call in message.calls]
        return made

    def _call(self, call: ToolCall) -> dict[str, Any]:
        # A call that could not be read goes back as a valid one: servers refuse a history with broken arguments.
        function = {"name": self.names.sent(call.name or "unknown"), "arguments": canonical_json(call.arguments)}
        return {"id": call.id, "type": "function", "function": function}


def request_fields(
    setup: Setup, envelope: Envelope, settings: Settings, dialect: Dialect, names: Names
) -> dict[str, Any]:
    """All of a request but its model and messages. What a setting leaves open is not sent."""
    made: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
    if setup.tools:
        made["tools"] = [_tool(spec, dialect, names) for spec in setup.tools]
        made |= _choice(envelope, names)
    calls = bool(setup.tools) and envelope.choice != "none"
    if envelope.answer is not None and (dialect.answer_beside_tools or not calls):
        made["response_format"] = response_format(envelope.answer, dialect)
    given = {
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "seed": settings.seed,
        dialect.token_limit: settings.max_tokens,
        "stop": list(settings.stop) or None,
    }
    made |= {name: value for name, value in given.items() if value is not None}
    if settings.thinking is not None:
        made |= dialect.thinking(settings.thinking)
    return made | dict(dialect.extra or {})


def response_format(answer: JsonSchema, dialect: Dialect) -> dict[str, Any]:
    """The field that holds an answer to its schema."""
    closed = closed_schema(answer) if dialect.strict == "closed" else None
    schema: dict[str, Any] = {"name": "answer", "schema": closed or answer}
    if dialect.strict == "any" or closed is not None:
        schema["strict"] = True
    return {"type": "json_schema", "json_schema": schema}


def closed_schema(schema: JsonSchema) -> JsonSchema | None:
    """A schema within OpenAI's subset that allows nothing the given one does not; None where there is none."""
    made = _closed(schema)
    return made if made is not None and made.get("type") == "object" else None


def _closed(schema: Any) -> JsonSchema | None:
    if not isinstance(schema, dict) or not set(cast("JsonSchema", schema)) <= CLOSED:
        return None
    part = cast("JsonSchema", schema)
    made: JsonSchema = {}
    for keyword, value in part.items():
        if keyword in ("properties", "$defs"):
            value = {name: _closed(one) for name, one in value.items()}
            if None in value.values():
                return None
        elif keyword == "anyOf":
            value = [_closed(one) for one in value]
            if None in value:
                return None
        elif keyword == "items" and (value := _closed(value)) is None:
            return None
        made[keyword] = value
    if part.get("type") == "object" or "properties" in part:
        properties = part.get("properties", {})
        if part.get("additionalProperties", False) is not False or set(part.get("required", ())) != set(properties):
            return None
        made |= {"properties": made.get("properties", {}), "additionalProperties": False, "required": list(properties)}
    return made


def characters(body: Mapping[str, Any]) -> int:
    """The size of what a model reads of a request."""
    return len(json.dumps([body.get("messages"), body.get("tools")], ensure_ascii=False))


def _tool(spec: ToolSpec, dialect: Dialect, names: Names) -> dict[str, Any]:
    shown = canonical_schema(spec.parameters)
    closed = closed_schema(shown) if dialect.strict == "closed" else None
    function: dict[str, Any] = {"name": names.sent(spec.name), "description": spec.description}
    function["parameters"] = closed or {"type": "object", "properties": {}} | shown
    if dialect.strict == "any" or closed is not None:
        function["strict"] = True
    return {"type": "function", "function": function}


def _choice(envelope: Envelope, names: Names) -> dict[str, Any]:
    choice = envelope.choice
    if isinstance(choice, Named):
        made: dict[str, Any] = {"tool_choice": {"type": "function", "function": {"name": names.sent(choice.name)}}}
    else:
        made = {"tool_choice": choice} if choice != "auto" else {}
    return made if envelope.parallel else {**made, "parallel_tool_calls": False}


def _joined(details: Sequence[Any]) -> list[Any]:
    """The details of a streamed reply as one that was not streamed has them: pieces of one text are one."""
    made: list[Any] = []
    for one in details:
        before, piece = as_object(made[-1] if made else None), as_object(one)
        texts = before.get("text"), piece.get("text")
        if isinstance(texts[0], str) and isinstance(texts[1], str) and before.get("index") == piece.get("index"):
            made[-1] = {**before, **piece, "text": texts[0] + texts[1]}
        else:
            made.append(one)
    return made

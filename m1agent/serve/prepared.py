"""What a reply may be, ready to be written and checked; equal requests share it, so a grammar is compiled once."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from m1agent.errors import SchemaError
from m1agent.messages import AssistantMessage, JsonSchema, ToolCall, ToolSpec
from m1agent.prompt.envelope import Envelope, Named, ToolChoice
from m1agent.schema import canonical_json
from m1agent.serve.refused import Refused
from m1agent.validation import AnswerSchema, ArgumentsSchema

KEPT = 64


@dataclass(frozen=True, slots=True)
class Prepared:
    """An envelope, and the checks of what is written in it, on the schemas as they were sent."""

    envelope: Envelope
    arguments: Mapping[str, ArgumentsSchema]
    answer: AnswerSchema | None

    def fault(self, reply: AssistantMessage) -> str | None:
        """What is wrong with a reply as a whole; None where nothing is, or where a call's own fault says it."""
        envelope, calls = self.envelope, reply.calls
        if calls and envelope.choice == "none":
            return "No tool may be called now. Answer in text."
        if not calls and isinstance(envelope.choice, Named):
            return f"Call the tool {envelope.choice.name}."
        if not calls and envelope.choice == "required":
            return f"Call one of the tools: {', '.join(self.arguments)}."
        if len(calls) > 1 and not (envelope.parallel and not isinstance(envelope.choice, Named)):
            return "Call one tool only."
        return self.answer.problem(reply.text) if self.answer is not None and not calls else None

    def call_fault(self, call: ToolCall) -> tuple[str, ToolCall]:
        """What is wrong with a call, nothing where it fits; and the call, safe readings ("7" for 7) made."""
        envelope = self.envelope
        if call.problem is not None:
            return f"The call could not be read: {call.problem}", call
        if call.name not in self.arguments:
            return f"There is no tool '{call.name}'; there are: {', '.join(self.arguments)}.", call
        if isinstance(envelope.choice, Named) and call.name != envelope.choice.name:
            return f"Call the tool {envelope.choice.name}.", call
        checked = self.arguments[call.name].check(call.arguments)
        if checked.problems:
            return "\n".join([f"Invalid arguments for {call.name}:", *checked.problems]), call
        return "", ToolCall(call.id, call.name, checked.arguments)


class Preparing:
    """Makes them, and keeps those that were asked for last."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, Prepared] = OrderedDict()
        self._lock = threading.Lock()

    def of(
        self, specs: Sequence[ToolSpec], choice: ToolChoice, answer: JsonSchema | None, *, parallel: bool
    ) -> Prepared:
        """What a reply may be. Raises Refused (400) where a schema is none."""
        key = canonical_json(
            [
                [[spec.name, spec.description, spec.parameters] for spec in specs],
                choice.name if isinstance(choice, Named) else [choice],
                answer,
                parallel,
            ]
        )
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        made = Prepared(
            Envelope(tuple(specs), choice, parallel, answer),
            {spec.name: _arguments(spec) for spec in specs},
            _answer(answer),
        )
        with self._lock:
            made = self._kept.setdefault(key, made)
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return made


def _arguments(spec: ToolSpec) -> ArgumentsSchema:
    try:
        return ArgumentsSchema(spec.parameters)
    except SchemaError as error:
        raise Refused(400, f"the parameters of tool '{spec.name}': {error}", param="tools") from None


def _answer(schema: Any) -> AnswerSchema | None:
    if schema is None:
        return None
    try:
        return AnswerSchema(schema)
    except SchemaError as error:
        raise Refused(400, f"response_format.json_schema.schema: {error}", param="response_format") from None

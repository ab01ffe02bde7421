"""A request's messages, tools and settings as the SDK's own: what a thread is opened with and asked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from m1agent.messages import (
    AssistantMessage,
    Message,
    Setup,
    SystemMessage,
    ToolCall,
    ToolMessage,
    ToolResult,
    ToolSpec,
    UserMessage,
)
from m1agent.models.base import Settings
from m1agent.output import REQUEST
from m1agent.prompt.envelope import Named, ToolChoice
from m1agent.schema import canonical_json
from m1agent.serve.prepared import Prepared, Preparing
from m1agent.serve.refused import Refused
from m1agent.serve.wire import (
    AllowedChoice,
    Asking,
    AssistantTurn,
    CalledFunction,
    ChatRequest,
    Function,
    FunctionChoice,
    FunctionName,
    FunctionTurn,
    JsonObjectFormat,
    JsonSchemaFormat,
    RefusalPart,
    SystemTurn,
    TextPart,
    ToolTurn,
    Turn,
    UserTurn,
)

NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}}
ANY_OBJECT: dict[str, Any] = {"type": "object"}


@dataclass(frozen=True, slots=True)
class Asked:
    """One chat request: what the thread begins with, the messages so far, and what the reply may be."""

    setup: Setup
    messages: tuple[Message, ...]
    prepared: Prepared
    settings: Settings
    legacy: bool = False


def read_chat(request: ChatRequest, preparing: Preparing, tokens: int | None = None) -> Asked:
    """What a chat request asks. It may take a while where its schemas are new: it belongs into a thread.

    `tokens`: of a reply at most.

    Raises:
        Refused: 400; the message names the field.
    """
    legacy = request.functions is not None
    if legacy and request.tools is not None:
        raise Refused(400, "functions: it is the older form of tools; send one of them", param="functions")
    functions = request.functions or [tool.function for tool in request.tools or ()]
    specs = _specs(functions, "functions[{}]" if legacy else "tools[{}].function")
    choice, allowed = _choice(request, {spec.name for spec in specs}, legacy=legacy)
    system, messages = _Turns(request.messages).read()
    answer, asked = _answer(request)
    parallel = not legacy and request.parallel_tool_calls is not False
    offered = tuple(spec for spec in specs if allowed is None or spec.name in allowed)
    prepared = preparing.of(offered, choice, answer, parallel=parallel)
    instructions = "\n\n".join(part for part in (system, asked) if part)
    most = request.max_completion_tokens or request.max_tokens
    thinking = 0 if request.reasoning_effort == "none" else None
    settings = sampling(request, bounded(most, tokens), thinking=thinking)
    if request.logprobs:
        settings = replace(settings, logprobs=request.top_logprobs or 0)
    return Asked(Setup(instructions, specs), messages, prepared, settings, legacy)


def bounded(asked: int | None, tokens: int | None) -> int | None:
    """Tokens of a reply, as asked for, within the server's bound."""
    return asked if tokens is None else min(asked or tokens, tokens)


def sampling(request: Asking, most: int | None, *, thinking: int | None = None) -> Settings:
    """How the reply is sampled."""
    stop = (request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ())
    if not all(stop):
        raise Refused(400, "stop: a text is empty; leave it out", param="stop")
    seed = None if request.seed is None else request.seed % 2**63
    return Settings(most, request.temperature, request.top_p, seed, thinking, stop)


def _specs(functions: Sequence[Function], where: str) -> tuple[ToolSpec, ...]:
    specs: dict[str, ToolSpec] = {}
    for number, one in enumerate(functions):
        if one.name in specs:
            param = where.format(number) + ".name"
            raise Refused(400, f"{param}: there are two tools called '{one.name}'; give one another name", param=param)
        specs[one.name] = ToolSpec(one.name, one.description or "", one.parameters or NO_PARAMETERS)
    return tuple(specs.values())


def _choice(request: ChatRequest, names: set[str], *, legacy: bool) -> tuple[ToolChoice, set[str] | None]:
    """What the reply must be, and which tools it may call where not all."""
    given = request.function_call if legacy else request.tool_choice
    field = "function_call" if legacy else "tool_choice"
    if (request.tool_choice if legacy else request.function_call) is not None:
        other = "tool_choice" if legacy else "function_call"
        raise Refused(400, f"{other}: it does not go with {'functions' if legacy else 'tools'}", param=other)
    if given is None or given == "auto":
        return ("auto" if names else "none"), None
    if given == "none":
        return "none", None
    if not names:
        raise Refused(400, f"{field}: there are no tools to choose from; send tools, or leave it out", param=field)
    if isinstance(given, AllowedChoice):
        allowed = {one.function.name for one in given.allowed_tools.tools}
        _check_known(allowed, names, field)
        return given.allowed_tools.mode, allowed
    if isinstance(given, FunctionChoice | FunctionName):
        name = given.function.name if isinstance(given, FunctionChoice) else given.name
        _check_known({name}, names, field)
        return Named(name), None
    return "required", None


def _check_known(wanted: set[str], names: set[str], field: str) -> None:
    if unknown := sorted(wanted - names):
        known = ", ".join(sorted(names)[:20])
        raise Refused(400, f"{field}: there is no tool '{unknown[0]}'; there are: {known}", param=field)


def _answer(request: ChatRequest) -> tuple[dict[str, Any] | None, str]:
    """The schema of the answer where it is not text, and what the model is told of it."""
    match request.response_format:
        case JsonObjectFormat():
            return ANY_OBJECT, ""
        case JsonSchemaFormat(json_schema=given):
            schema = given.schema_ if given.schema_ is not None else {}
            return schema, REQUEST.format(schema=canonical_json(schema))
        case _:
            return None, ""


@dataclass(slots=True)
class _Turns:
    """Reads the messages in order; each call must have its result before anything else is said."""

    turns: Sequence[Turn]
    system: list[str] = field(default_factory=list[str])
    messages: list[Message] = field(default_factory=list[Message])
    calls: tuple[ToolCall, ...] = ()
    results: dict[str, ToolResult] = field(default_factory=dict[str, ToolResult])
    made: int = 0

    def read(self) -> tuple[str, tuple[Message, ...]]:
        """The instructions at the head, and the messages after them."""
        for number, turn in enumerate(self.turns):
            self._turn(turn, f"messages[{number}]")
        self._settle(f"messages[{len(self.turns) - 1}]")
        if not self.messages:
            raise Refused(400, "messages: there is nothing to answer; add a user message", param="messages")
        return "".join(self.system), tuple(self.messages)

    def _turn(self, turn: Turn, at: str) -> None:
        match turn:
            case ToolTurn(tool_call_id=id, content=content):
                self._result(id, _text(content), f"{at}.tool_call_id")
            case FunctionTurn(name=name, content=content):
                id = next((call.id for call in self.calls if call.name == name), name)
                self._result(id, content or "", f"{at}.name")
            case SystemTurn(content=content) if not self.messages:
                self.system.append(_text(content))
            case SystemTurn(content=content):
                self._settle(at)
                self.messages.append(SystemMessage(_text(content)))
            case UserTurn(content=content):
                self._settle(at)
                self.messages.append(UserMessage(_text(content)))
            case AssistantTurn():
                self._settle(at)
                self._reply(turn, at)

    def _reply(self, turn: AssistantTurn, at: str) -> None:
        calls = [
            self._call(call.id, call.function, f"{at}.tool_calls[{number}]")
            for number, call in enumerate(turn.tool_calls or ())
        ]
        if turn.function_call is not None:
            self.made += 1
            calls.append(self._call(f"function_{self.made}", turn.function_call, f"{at}.function_call"))
        if len({call.id for call in calls}) < len(calls):
            raise Refused(400, f"{at}.tool_calls: two calls have the same id", param=f"{at}.tool_calls")
        self.calls = tuple(calls)
        text = _text(turn.content) if turn.content is not None else turn.refusal or ""
        self.messages.append(AssistantMessage(text, turn.reasoning_content or "", self.calls))

    def _call(self, id: str, function: CalledFunction, at: str) -> ToolCall:
        param = f"{at}{'' if at.endswith('function_call') else '.function'}.arguments"
        try:
            arguments = json.loads(function.arguments or "{}")
        except (ValueError, RecursionError):
            arguments = None
        if not isinstance(arguments, dict):
            raise Refused(400, f"{param}: it must be a JSON object, as text", param=param)
        return ToolCall(id, function.name, cast("dict[str, Any]", arguments))

    def _result(self, id: str, content: str, param: str) -> None:
        call = next((call for call in self.calls if call.id == id), None)
        if call is None:
            raise Refused(
                400, f"{param}: no call of the assistant's message before it is called '{id[:100]}'", param=param
            )
        if id in self.results:
            raise Refused(400, f"{param}: the call '{id[:100]}' has a result already", param=param)
        self.results[id] = ToolResult(id, call.name, content)

    def _settle(self, at: str) -> None:
        """The calls before this message are answered, all or none is an error."""
        if missing := [call.id for call in self.calls if call.id not in self.results]:
            raise Refused(
                400,
                f"{at}: the call '{missing[0][:100]}' before it has no result; add a message of role tool (or "
                "function) for each call",
                param="messages",
            )
        if self.calls:
            self.messages.append(ToolMessage(tuple(self.results[call.id] for call in self.calls)))
        self.calls, self.results = (), {}


def _text(content: str | Sequence[TextPart | RefusalPart]) -> str:
    if isinstance(content, str):
        return content
    return "".join(part.text if isinstance(part, TextPart) else part.refusal for part in content)

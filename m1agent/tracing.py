"""Traces and metrics of runs, in OpenTelemetry's conventions for generative AI.

    agent = Agent("m1-nano", tools=[...], observers=[Tracing()])

Each run is a span `invoke_agent <agent>`, each reply in it `chat <model>`, each call `execute_tool <tool>`. Spans that
a tool makes itself are children of its call, and so are the runs of agents that a tool asks. Where the traces go is up
to the program: this uses the tracer and meter providers that it set up and sets up none, so without them, or without
OpenTelemetry, nothing is recorded and nothing is sent.

What was said is recorded only with `capture_content=True`. What a tool raises is recorded with its traceback; the model
is told one line of it.

The names are those of the semantic conventions 1.37 (https://opentelemetry.io/docs/specs/semconv/gen-ai/). Beyond them
a run says `m1agent.stop` and `m1agent.steps`. `error.type` is the class of an exception, or `cancelled`, `timeout`,
`tool_error` (the tool itself said so), `not_run` (the call was refused) or `abandoned` (it outlived its run).
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from m1agent.cancel import Interrupted
from m1agent.errors import ModelError
from m1agent.events import ReplyFinished
from m1agent.messages import (
    AssistantMessage,
    Message,
    SystemMessage,
    ToolCall,
    ToolMessage,
    ToolResult,
    ToolSpec,
    Usage,
    UserMessage,
    whole_text,
)
from m1agent.observe import IN_PROCESS, UNOBSERVED, ReplyInfo, RunInfo, RunObserver

if TYPE_CHECKING:
    from contextvars import Token

    from opentelemetry.context import Context
    from opentelemetry.metrics import Histogram, MeterProvider
    from opentelemetry.trace import Tracer, TracerProvider

    from m1agent.result import RunResult

SCHEMA = "https://opentelemetry.io/schemas/1.37.0"
TOKENS = [4.0**power for power in range(14)]
SECONDS = [0.01 * 2.0**power for power in range(14)]


class Tracing:
    """An observer that records runs with OpenTelemetry. One may watch any number of agents.

    Args:
        capture_content: also record instructions, messages, arguments and results.
        tracer_provider, meter_provider: instead of the program's global ones.
    """

    def __init__(
        self,
        capture_content: bool = False,
        *,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
    ) -> None:
        self._capture = capture_content
        self._telemetry: _Telemetry | None = None
        try:
            from opentelemetry.metrics import get_meter
            from opentelemetry.trace import get_tracer
        except ModuleNotFoundError:
            return
        meter = get_meter("m1agent", version("m1agent"), meter_provider, SCHEMA)
        self._telemetry = _Telemetry(
            get_tracer("m1agent", version("m1agent"), tracer_provider, SCHEMA),
            meter.create_histogram(
                "gen_ai.client.token.usage",
                "{token}",
                "Number of input and output tokens used.",
                explicit_bucket_boundaries_advisory=TOKENS,
            ),
            meter.create_histogram(
                "gen_ai.client.operation.duration",
                "s",
                "GenAI operation duration.",
                explicit_bucket_boundaries_advisory=SECONDS,
            ),
        )

    def run_started(self, run: RunInfo) -> RunObserver:
        return _TracedRun(self._telemetry, run, self._capture) if self._telemetry is not None else UNOBSERVED


@dataclass(frozen=True, slots=True)
class _Telemetry:
    tracer: Tracer
    tokens: Histogram
    seconds: Histogram


class _Operation:
    """One span, and the metrics of what it spans. `labels` are attributes of both; empty ones are left out."""

    def __init__(
        self,
        telemetry: _Telemetry,
        subject: str,
        labels: Mapping[str, str],
        context: Context | None,
        inside: bool = True,
    ) -> None:
        from opentelemetry.trace import SpanKind, set_span_in_context

        self._telemetry = telemetry
        self._labels = {name: whole_text(value) for name, value in labels.items() if value}
        self._started = time.perf_counter()
        self.span = telemetry.tracer.start_span(
            whole_text(f"{labels['gen_ai.operation.name']} {subject}".rstrip()),
            context,
            SpanKind.INTERNAL if inside else SpanKind.CLIENT,
            self._labels,
        )
        self.context = set_span_in_context(self.span, context)
        self._token: Token[Context] | None = None

    def enter(self) -> None:
        """Make the span the current one of this task, until it ends."""
        from opentelemetry.context import attach

        self._token = attach(self.context)

    @contextmanager
    def current(self) -> Generator[None]:
        """Make the span the current one for the block."""
        from opentelemetry.context import attach, detach

        token = attach(self.context)
        try:
            yield
        finally:
            detach(token)

    def failed(self, kind: str, error: BaseException | None = None) -> None:
        """Mark the operation as failed; `error` is recorded with its traceback."""
        from opentelemetry.trace import Status, StatusCode

        self._labels["error.type"] = kind
        self.span.set_attribute("error.type", kind)
        self.span.set_status(Status(StatusCode.ERROR, whole_text(str(error)) if error is not None else kind))
        if error is not None:
            self.span.record_exception(error)

    def count(self, usage: Usage) -> None:
        """Add what the operation cost to the metrics."""
        for kind, tokens in (("input", usage.input_tokens), ("output", usage.output_tokens)):
            self._telemetry.tokens.record(tokens, {**self._labels, "gen_ai.token.type": kind}, self.context)

    def end(self) -> None:
        """End the span, in the task that entered it."""
        from opentelemetry.context import detach

        self._telemetry.seconds.record(time.perf_counter() - self._started, self._labels, self.context)
        self.span.end()
        if self._token is not None:
            detach(self._token)


class _TracedRun:
    """Records one run. A call is known by its object: models may give two calls one id."""

    def __init__(self, telemetry: _Telemetry, run: RunInfo, capture: bool) -> None:
        self._telemetry = telemetry
        self._run = run
        self._capture = capture
        self._calls: dict[int, _Operation] = {}
        self._reply: _Operation | None = None
        self._over = False
        self._agent = _Operation(
            telemetry,
            run.agent,
            {**self._labels("invoke_agent", run.model), "gen_ai.agent.name": run.agent},
            None,
        )
        self._agent.span.set_attributes(_given({"gen_ai.conversation.id": run.conversation_id}))
        self._say_setup(self._agent)

    def reply_started(self, reply: ReplyInfo) -> None:
        self._reply = chat = _Operation(
            self._telemetry,
            reply.model,
            self._labels("chat", reply.model),
            self._agent.context,
            inside=self._run.provider == IN_PROCESS,
        )
        settings = reply.settings
        chat.span.set_attributes(
            _given(
                {
                    "gen_ai.conversation.id": self._run.conversation_id,
                    "gen_ai.request.max_tokens": settings.max_tokens,
                    "gen_ai.request.temperature": settings.temperature,
                    "gen_ai.request.top_p": settings.top_p,
                    "gen_ai.request.seed": settings.seed,
                    "gen_ai.request.stop_sequences": settings.stop,
                }
            )
        )
        self._say_setup(chat)
        self._say(chat, "gen_ai.input.messages", lambda: list(map(_told, reply.conversation.messages)))

    def replying(self) -> AbstractContextManager[None]:
        return self._reply.current() if self._reply is not None else nullcontext()

    def reply_finished(self, reply: ReplyFinished | None, error: BaseException | None) -> None:
        chat, self._reply = self._reply, None
        if chat is None:
            return
        if reply is not None:
            reason = _finish_reason(reply)
            chat.span.set_attributes({"gen_ai.response.finish_reasons": [reason], **_usage(reply.usage)})
            chat.count(reply.usage)
            self._say(chat, "gen_ai.output.messages", lambda: [{**_told(reply.message), "finish_reason": reason}])
        elif error is not None:
            _fail(chat, error)
        chat.end()

    def tool_started(self, call: ToolCall, tool: ToolSpec) -> None:
        execution = self._execution(call)
        execution.span.set_attributes(_given({"gen_ai.tool.description": whole_text(tool.description)}))
        execution.enter()
        self._calls[id(call)] = execution

    def tool_finished(self, call: ToolCall, result: ToolResult, error: BaseException | None) -> None:
        if self._over:
            return
        execution = self._calls.pop(id(call), None)
        if execution is None:
            self._not_run(call, result)
            return
        if error is not None:
            _fail(execution, error)
        elif result.is_error:
            execution.failed("tool_error")
        self._say(execution, "gen_ai.tool.call.result", lambda: result.content)
        execution.end()

    def _not_run(self, call: ToolCall, result: ToolResult) -> None:
        # Only a span: the metrics would be told apart by whatever names a model makes up.
        execution = self._execution(call)
        execution.failed("not_run")
        self._say(execution, "gen_ai.tool.call.result", lambda: result.content)
        execution.span.end()

    def run_finished(self, result: RunResult) -> None:
        self._over = True
        self.reply_finished(None, None)
        for execution in self._calls.values():
            execution.failed("abandoned")
            execution.span.end()  # Its task still runs, and has the span for its current one.
        self._agent.span.set_attributes(
            {**_usage(result.usage), "m1agent.stop": result.stop, "m1agent.steps": result.steps}
        )
        if result.error is not None:
            _fail(self._agent, result.error)
        self._agent.end()

    def _labels(self, operation: str, model: str) -> dict[str, str]:
        return {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": self._run.provider,
            "gen_ai.request.model": model,
        }

    def _execution(self, call: ToolCall) -> _Operation:
        labels = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": call.name}
        execution = _Operation(self._telemetry, call.name, labels, self._agent.context)
        execution.span.set_attributes({"gen_ai.tool.call.id": whole_text(call.id), "gen_ai.tool.type": "function"})
        self._say(execution, "gen_ai.tool.call.arguments", lambda: call.arguments)
        return execution

    def _say_setup(self, operation: _Operation) -> None:
        if self._run.instructions:
            text = self._run.instructions
            self._say(operation, "gen_ai.system_instructions", lambda: [{"type": "text", "content": text}])
        if self._run.tools:
            self._say(operation, "gen_ai.tool.definitions", lambda: list(map(_definition, self._run.tools)))

    def _say(self, operation: _Operation, name: str, content: Callable[[], Any]) -> None:
        """Record what was said, as JSON; only where that is wanted."""
        if self._capture and operation.span.is_recording():
            made = content()
            text = made if isinstance(made, str) else json.dumps(made, ensure_ascii=False, default=str)
            operation.span.set_attribute(name, whole_text(text))


def _fail(operation: _Operation, error: BaseException) -> None:
    if isinstance(error, Interrupted):
        operation.failed("timeout" if error.args[0] == "seconds" else "cancelled")
    elif isinstance(error, asyncio.CancelledError | GeneratorExit):
        operation.failed("cancelled")
    else:
        cause = error.__cause__ if isinstance(error, ModelError) and error.__cause__ is not None else error
        kind = type(cause)
        operation.failed(
            kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}", error
        )


def _given(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in attributes.items() if value not in (None, "", ())}


def _usage(usage: Usage) -> dict[str, int]:
    return {
        "gen_ai.usage.input_tokens": usage.input_tokens,
        "gen_ai.usage.output_tokens": usage.output_tokens,
        "gen_ai.usage.cache_read.input_tokens": usage.reused_tokens,
    }


def _finish_reason(reply: ReplyFinished) -> str:
    return "length" if reply.stop == "length" else "tool_call" if reply.message.calls else "stop"


def _definition(tool: ToolSpec) -> dict[str, Any]:
    return {"type": "function", "name": tool.name, "description": tool.description, "parameters": tool.parameters}


def _told(message: Message) -> dict[str, Any]:
    """A message in the conventions' form: a role and parts."""
    match message:
        case SystemMessage(text):
            return {"role": "system", "parts": [{"type": "text", "content": text}]}
        case UserMessage(text):
            return {"role": "user", "parts": [{"type": "text", "content": text}]}
        case AssistantMessage():
            return {"role": "assistant", "parts": list(_reply_parts(message))}
        case ToolMessage(results):
            parts = [{"type": "tool_call_response", "id": one.call_id, "response": one.content} for one in results]
            return {"role": "tool", "parts": parts}


def _reply_parts(message: AssistantMessage) -> Iterable[dict[str, Any]]:
    if message.thinking:
        yield {"type": "reasoning", "content": message.thinking}
    if message.text:
        yield {"type": "text", "content": message.text}
    for call in message.calls:
        yield {"type": "tool_call", "id": call.id, "name": call.name, "arguments": call.arguments}

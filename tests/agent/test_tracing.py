"""Runs as OpenTelemetry spans and metrics, through the SDK's own in-memory exporter."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import aclosing
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from m1agent.agent import Agent
from m1agent.cancel import Cancel
from m1agent.errors import ModelError
from m1agent.events import ToolStarted
from m1agent.limits import Limits
from m1agent.messages import AssistantMessage, Message, ToolCall
from m1agent.models.base import Settings
from m1agent.models.scripted import Reply, ScriptedModel
from m1agent.observe import RunInfo, RunObserver, Unobserved
from m1agent.store import ConversationStore
from m1agent.tools import tool
from m1agent.tracing import Tracing


class Recorder:
    """Where spans and metrics end up."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.tracers = TracerProvider()
        self.tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.reader = InMemoryMetricReader()
        self.meters = MeterProvider([self.reader])
        self.tracer = self.tracers.get_tracer("test")

    def tracing(self, capture_content: bool = False) -> Tracing:
        return Tracing(capture_content, tracer_provider=self.tracers, meter_provider=self.meters)

    @property
    def spans(self) -> Sequence[ReadableSpan]:
        return self.exporter.get_finished_spans()

    def span(self, name: str) -> ReadableSpan:
        (found,) = [span for span in self.spans if span.name == name]
        return found

    def parent(self, span: ReadableSpan) -> str | None:
        names = {other.context.span_id: other.name for other in self.spans if other.context}
        return names[span.parent.span_id] if span.parent else None

    def points(self, name: str) -> list[HistogramDataPoint]:
        data = self.reader.get_metrics_data()
        metrics = [m for r in data.resource_metrics for s in r.scope_metrics for m in s.metrics] if data else []
        return [point for metric in metrics if metric.name == name for point in metric.data.data_points]  # type: ignore[misc]


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    made = Recorder()
    yield made
    made.tracers.shutdown()
    made.meters.shutdown()


def calls(*pairs: tuple[str, dict[str, Any]]) -> AssistantMessage:
    return AssistantMessage(calls=tuple(ToolCall(f"call_{i}", name, args) for i, (name, args) in enumerate(pairs, 1)))


def test_a_run_its_replies_and_its_calls(recorder: Recorder) -> None:
    @tool
    def add(a: int, b: int) -> int:
        """Add two numbers."""
        return a + b

    model = ScriptedModel([calls(("add", {"a": 1, "b": 2})), "It is 3."], name="scripted-1")
    agent = Agent(
        model,
        tools=[add],
        name="adder",
        observers=[recorder.tracing()],
        settings=Settings(max_tokens=50, temperature=0.5, stop=("x",)),
    )
    result = agent.run_sync("1 + 2?")
    names = [span.name for span in recorder.spans]
    assert names == ["chat scripted-1", "execute_tool add", "chat scripted-1", "invoke_agent adder"]
    first, execution, second, run = recorder.spans
    assert [recorder.parent(span) for span in recorder.spans] == ["invoke_agent adder"] * 3 + [None]
    assert len({span.context.trace_id for span in recorder.spans if span.context}) == 1
    assert dict(run.attributes or {}) == {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.provider.name": "m1agent",
        "gen_ai.request.model": "scripted-1",
        "gen_ai.agent.name": "adder",
        "gen_ai.usage.input_tokens": result.usage.input_tokens,
        "gen_ai.usage.output_tokens": result.usage.output_tokens,
        "gen_ai.usage.cache_read.input_tokens": result.usage.reused_tokens,
        "m1agent.stop": "done",
        "m1agent.steps": 2,
    }
    asked = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "m1agent",
        "gen_ai.request.model": "scripted-1",
        "gen_ai.request.max_tokens": 50,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.stop_sequences": ("x",),
    }
    for chat, reason in ((first, "tool_call"), (second, "stop")):
        said = dict(chat.attributes or {})
        assert {name: said.pop(name) for name in asked} == asked
        assert said.pop("gen_ai.response.finish_reasons") == (reason,)
        assert set(said) == {f"gen_ai.usage.{kind}_tokens" for kind in ("input", "output", "cache_read.input")}
        assert chat.kind is SpanKind.INTERNAL
    assert dict(execution.attributes or {}) == {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": "add",
        "gen_ai.tool.call.id": "call_1",
        "gen_ai.tool.type": "function",
        "gen_ai.tool.description": "Add two numbers.",
    }
    assert all(span.status.status_code is StatusCode.UNSET for span in recorder.spans)
    assert run.instrumentation_scope and run.instrumentation_scope.name == "m1agent"


def test_metrics_count_tokens_and_time(recorder: Recorder) -> None:
    @tool
    def fail() -> str:
        """Fail."""
        raise KeyError("x")

    model = ScriptedModel([calls(("fail", {})), "Done."], name="s")
    result = Agent(model, tools=[fail], name="a", observers=[recorder.tracing()]).run_sync("Go.")
    tokens = {
        dict(point.attributes or {})["gen_ai.token.type"]: point
        for point in recorder.points("gen_ai.client.token.usage")
    }
    assert (tokens["input"].sum, tokens["output"].sum) == (result.usage.input_tokens, result.usage.output_tokens)
    assert tokens["input"].count == 2 and tokens["input"].explicit_bounds[:3] == (1, 4, 16)
    points = recorder.points("gen_ai.client.operation.duration")
    labels = {str((point.attributes or {})["gen_ai.operation.name"]): dict(point.attributes or {}) for point in points}
    assert set(labels) == {"chat", "execute_tool", "invoke_agent"}
    assert labels["execute_tool"]["error.type"] == "KeyError"
    assert "error.type" not in labels["chat"] and labels["chat"]["gen_ai.request.model"] == "s"
    assert {point.count for point in points} == {1, 2} and all(point.sum > 0 for point in points)


SECRET = "what nobody may record"


def run_secret(recorder: Recorder, capture: bool) -> None:
    @tool
    def look(at: str) -> str:
        """Look."""
        return f"result {SECRET}"

    reply = AssistantMessage("", f"thinking {SECRET}", (ToolCall("call_1", "look", {"at": f"argument {SECRET}"}),))
    agent = Agent(
        ScriptedModel([reply, f"answer {SECRET}"]),
        tools=[look],
        instructions=f"instructions {SECRET}",
        observers=[recorder.tracing(capture)],
    )
    agent.run_sync(f"question {SECRET} \ud800")


def test_content_stays_out(recorder: Recorder) -> None:
    run_secret(recorder, capture=False)
    assert len(recorder.spans) == 4
    assert SECRET not in "".join(span.to_json() for span in recorder.spans)


def test_content_is_recorded_where_it_is_wanted(recorder: Recorder) -> None:
    run_secret(recorder, capture=True)
    first, execution, second, run = (dict(span.attributes or {}) for span in recorder.spans)

    def read(text: Any) -> Any:
        assert isinstance(text, str)
        return json.loads(text)

    assert read(run["gen_ai.system_instructions"]) == [{"type": "text", "content": f"instructions {SECRET}"}]
    assert [one["name"] for one in read(first["gen_ai.tool.definitions"])] == ["look"]
    call = {"type": "tool_call", "id": "call_1", "name": "look", "arguments": {"at": f"argument {SECRET}"}}
    question = {"role": "user", "parts": [{"type": "text", "content": f"question {SECRET} \ufffd"}]}
    made = {"role": "assistant", "parts": [{"type": "reasoning", "content": f"thinking {SECRET}"}, call]}
    response = {"type": "tool_call_response", "id": "call_1", "response": f"result {SECRET}"}
    assert read(first["gen_ai.input.messages"]) == [question]
    assert read(first["gen_ai.output.messages"]) == [{**made, "finish_reason": "tool_call"}]
    assert read(second["gen_ai.input.messages"]) == [question, made, {"role": "tool", "parts": [response]}]
    (answer,) = read(second["gen_ai.output.messages"])
    assert answer["finish_reason"] == "stop" and answer["parts"] == [{"type": "text", "content": f"answer {SECRET}"}]
    assert read(execution["gen_ai.tool.call.arguments"]) == call["arguments"]
    assert execution["gen_ai.tool.call.result"] == f"result {SECRET}"


def test_what_a_tool_raises_goes_to_the_trace_with_its_traceback(recorder: Recorder) -> None:
    def deep_inside() -> None:
        raise LookupError("nothing there")

    @tool
    def search() -> str:
        """Search."""
        deep_inside()
        return ""

    model = ScriptedModel([calls(("search", {}), ("serach", {}), ("search", {"x": 1})), "Sorry."])
    result = Agent(model, tools=[search], observers=[recorder.tracing()]).run_sync("Go.")
    assert result.calls[0].result.content == "LookupError: nothing there"
    failed = next(span for span in recorder.spans if (span.attributes or {}).get("gen_ai.tool.call.id") == "call_1")
    assert (failed.status.status_code, failed.status.description) == (StatusCode.ERROR, "nothing there")
    assert (failed.attributes or {})["error.type"] == "LookupError"
    (event,) = failed.events
    assert "deep_inside" in str((event.attributes or {})["exception.stacktrace"])
    refused = {
        str((span.attributes or {})["gen_ai.tool.call.id"]): (span.attributes or {}).get("error.type")
        for span in recorder.spans
        if span.name.startswith("execute_tool")
    }
    assert refused == {"call_1": "LookupError", "call_2": "not_run", "call_3": "not_run"}
    assert len(recorder.points("gen_ai.client.operation.duration")) == 3
    run = recorder.span("invoke_agent agent")
    assert run.status.status_code is StatusCode.UNSET  # The run itself went well.


def test_what_a_tool_does_belongs_to_its_call(recorder: Recorder) -> None:
    both = asyncio.Event()
    inside: list[str] = []

    @tool
    async def first() -> str:
        """First of two at a time."""
        with recorder.tracer.start_as_current_span("inside first"):
            inside.append("first")
            await both.wait()
        return "1"

    @tool
    async def second() -> str:
        """Second of two at a time."""
        with recorder.tracer.start_as_current_span("inside second"):
            inside.append("second")
            both.set()
            await asyncio.sleep(0)
        return "2"

    @tool
    def threaded() -> str:
        """In a thread."""
        with recorder.tracer.start_as_current_span("inside threaded"):
            return "3"

    async def go() -> None:
        model = ScriptedModel([calls(("first", {}), ("second", {}), ("threaded", {})), "Done."])
        agent = Agent(model, tools=[first, second, threaded], observers=[recorder.tracing()])
        with recorder.tracer.start_as_current_span("request"):
            await agent.run("Go.")
            assert trace.get_current_span() is not trace.INVALID_SPAN
            with recorder.tracer.start_as_current_span("after"):
                pass

    asyncio.run(go())
    assert inside == ["first", "second"]
    for name in ("first", "second", "threaded"):
        assert recorder.parent(recorder.span(f"inside {name}")) == f"execute_tool {name}"
        assert recorder.parent(recorder.span(f"execute_tool {name}")) == "invoke_agent agent"
    assert recorder.parent(recorder.span("invoke_agent agent")) == "request"
    assert recorder.parent(recorder.span("after")) == "request"


def test_what_the_model_does_belongs_to_its_reply_and_leaks_nowhere(recorder: Recorder) -> None:
    def reply(_: tuple[Message, ...]) -> str:
        with recorder.tracer.start_as_current_span("request to a server"):
            return "Hello."

    async def go() -> None:
        agent = Agent(ScriptedModel([reply], chunk=1), observers=[recorder.tracing()])
        async with aclosing(agent.stream("Go.")) as stream:
            async for _ in stream:
                assert trace.get_current_span() is trace.INVALID_SPAN

    asyncio.run(go())
    assert recorder.parent(recorder.span("request to a server")) == "chat scripted"


def test_an_agent_asked_by_a_tool_is_part_of_the_call(recorder: Recorder) -> None:
    tracing = recorder.tracing()
    expert = Agent(ScriptedModel(["42."]), name="expert", observers=[tracing])

    @tool
    async def ask(question: str) -> str:
        """Ask the expert."""
        return str((await expert.run(question)).output)

    model = ScriptedModel([calls(("ask", {"question": "?"})), "It is 42."])
    Agent(model, tools=[ask], name="desk", observers=[tracing]).run_sync("Go.")
    assert recorder.parent(recorder.span("invoke_agent expert")) == "execute_tool ask"
    assert recorder.parent(recorder.span("invoke_agent desk")) is None


def all_ended(recorder: Recorder) -> None:
    assert all(span.end_time for span in recorder.spans)
    ids = {span.context.span_id for span in recorder.spans if span.context}
    assert all(span.parent is None or span.parent.span_id in ids for span in recorder.spans)


@pytest.mark.parametrize("how", ["cancel", "task", "leave", "deadline"])
def test_every_span_ends_however_the_run_does(recorder: Recorder, how: str, caplog: pytest.LogCaptureFixture) -> None:
    cancel = Cancel()

    @tool
    async def hang() -> str:
        """Never come back."""
        await asyncio.Event().wait()
        return ""

    model = ScriptedModel([calls(("hang", {}), ("hang", {}))])
    limits = Limits(seconds=0.05) if how == "deadline" else Limits()
    agent = Agent(model, tools=[hang], observers=[recorder.tracing()], limits=limits)

    async def go() -> None:
        async with aclosing(agent.stream("Go.", cancel=cancel)) as stream:
            async for event in stream:
                if isinstance(event, ToolStarted) and how == "cancel":
                    asyncio.get_running_loop().call_soon(cancel.cancel)
                if isinstance(event, ToolStarted) and how == "leave":
                    return
                if isinstance(event, ToolStarted) and how == "task":
                    asyncio.get_running_loop().call_soon(task.cancel)

    async def main() -> None:
        nonlocal task
        task = asyncio.ensure_future(go())
        await asyncio.wait([task])

    task: asyncio.Future[None]
    with caplog.at_level(logging.WARNING):
        asyncio.run(main())
    all_ended(recorder)
    assert not caplog.records
    tools = [span for span in recorder.spans if span.name == "execute_tool hang"]
    if how in ("cancel", "task"):  # The others may end the run before the calls begin.
        assert len(tools) == 2
    for span in tools:
        assert (span.attributes or {})["error.type"] == "cancelled" and span.status.status_code is StatusCode.ERROR
    assert recorder.span("invoke_agent agent")
    assert len([span for span in recorder.spans if span.name.startswith("chat")]) <= 1


@pytest.mark.parametrize(
    ("script", "kind"),
    [
        ([ModelError("no weights")], "m1agent.errors.ModelError"),
        ([ValueError("bad")], "ValueError"),
        ([], "m1agent.errors.ModelError"),
    ],
)
def test_a_failing_model_is_an_error_of_the_reply_and_the_run(
    recorder: Recorder, script: Sequence[Reply], kind: str
) -> None:
    Agent(ScriptedModel(script), observers=[recorder.tracing()]).run_sync("Go.")
    for name in ("chat scripted", "invoke_agent agent"):
        span = recorder.span(name)
        assert (span.attributes or {})["error.type"] == kind and span.status.status_code is StatusCode.ERROR
        assert span.events[0].name == "exception"


def test_a_stored_conversation_gives_its_id(recorder: Recorder, tmp_path: Any) -> None:
    with ConversationStore(tmp_path / "talks.db") as store:
        agent = Agent(ScriptedModel(["Hi."]), observers=[recorder.tracing()])
        agent.run_sync("Hi.", conversation=store.create("talk-7"))
    for name in ("chat scripted", "invoke_agent agent"):
        assert (recorder.span(name).attributes or {})["gen_ai.conversation.id"] == "talk-7"


def test_without_a_provider_nothing_is_recorded() -> None:
    result = Agent(ScriptedModel(["Hi."]), observers=[Tracing()]).run_sync("Hi.")
    assert result.output == "Hi."


def test_without_opentelemetry_nothing_is_recorded() -> None:
    code = """
import sys
sys.modules["opentelemetry"] = sys.modules["opentelemetry.metrics"] = None
from m1agent.agent import Agent
from m1agent.models.scripted import ScriptedModel
from m1agent.tracing import Tracing
assert not any(name.startswith("opentelemetry.") and module for name, module in sys.modules.items())
print(Agent(ScriptedModel(["Hi."]), observers=[Tracing(True)]).run_sync("Hi.").output)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("Hi.\n", "")


def test_an_observer_that_fails_is_logged_and_the_run_goes_on(
    recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Unobserved):
        def __getattribute__(self, name: str) -> Any:
            raise RuntimeError(f"broken at {name}")

    class Breaks:
        def run_started(self, run: RunInfo) -> RunObserver:
            return Broken()

    class Dead:
        def run_started(self, run: RunInfo) -> RunObserver:
            raise RuntimeError("dead")

    @tool
    def one() -> str:
        """One."""
        return "1"

    model = ScriptedModel([calls(("one", {})), "Done."])
    agent = Agent(model, tools=[one], observers=[Dead(), Breaks(), recorder.tracing()])
    with caplog.at_level(logging.ERROR, "m1agent.observe"):
        assert agent.run_sync("Go.").output == "Done."
    assert len(recorder.spans) == 4
    told = caplog.text
    assert "Dead failed" in told and all(
        f"broken at {name}" in told for name in ("reply_started", "replying", "run_finished")
    )

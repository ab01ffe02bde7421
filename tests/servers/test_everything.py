"""The everything server over stdio and HTTP: what servers may ask of an agent, and what they have besides tools."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import socket
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from m1agent import Agent, Limits
from m1agent.errors import McpError, ToolError
from m1agent.events import RunFinished, ToolProgress
from m1agent.mcp.client_side import Accepted, Cancelled, ClientSide, Declined, Elicitation, LogMessage
from m1agent.mcp.config import HttpServer, ServerConfig, StdioServer
from m1agent.mcp.hub import McpHub
from m1agent.messages import AssistantMessage, FilePart, ImagePart, ToolCall, UserMessage
from m1agent.models.scripted import ScriptedModel
from m1agent.tools import Tool

ASKING = {"trigger-sampling-request", "trigger-elicitation-request", "trigger-url-elicitation", "get-roots-list"}
Use = Callable[[McpHub, dict[str, Tool]], Awaitable[None]]
HOUR = {"duration": 3600, "steps": 1}


@pytest.fixture(params=["stdio", "http"])
def server(request: pytest.FixtureRequest, node_server: Callable[..., StdioServer]) -> Iterator[ServerConfig]:
    if request.param == "stdio":
        yield node_server("everything", "stdio")
        return
    with served(node_server("everything", "streamableHttp")) as url:
        yield HttpServer("everything", url)


@contextmanager
def served(program: StdioServer) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [program.command, *program.args]
    with subprocess.Popen(
        command, env={"PORT": str(port)}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stderr and "listening" in process.stderr.readline()
            yield f"http://127.0.0.1:{port}/mcp"
        finally:
            process.kill()


def with_side(
    config: ServerConfig, side: ClientSide, use: Callable[[McpHub, dict[str, Tool]], Awaitable[None]]
) -> None:
    async def go() -> None:
        hub = McpHub([config], side)
        await hub.connect()
        try:
            assert hub.status[0].state == "ready", hub.status[0].reason
            await use(hub, {tool.name.removeprefix("everything__"): tool for tool in hub.tools})
        finally:
            await hub.aclose()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(go())


def test_a_run_in_which_the_server_asks_back(server: ServerConfig, tmp_path: Path) -> None:
    """Sampling is answered by the agent's own model, in the midst of its run."""

    async def elicit(question: Elicitation) -> Accepted:
        asked.append(question)
        return Accepted({} if question.url else {"name": "Ada", "check": True, "integer": 7})

    async def go() -> tuple[Any, list[ToolProgress]]:
        progress: list[ToolProgress] = []
        async with Agent(model, mcp=[server], elicit=elicit, roots=[tmp_path]) as agent:
            async for event in agent.stream("Go."):
                if isinstance(event, ToolProgress):
                    progress.append(event)
                elif isinstance(event, RunFinished):
                    return event.result, progress
        raise AssertionError

    asked: list[Elicitation] = []
    wanted = [
        ("trigger-sampling-request", {"prompt": "Name a bird.", "maxTokens": 20}),
        ("trigger-elicitation-request", {}),
        ("trigger-url-elicitation", {"url": "http://127.0.0.1:9/log-in"}),
        ("trigger-long-running-operation", {"duration": 0.2, "steps": 4}),
        ("get-tiny-image", {}),
    ]
    replies = [AssistantMessage(calls=(ToolCall("x", f"everything__{name}", given),)) for name, given in wanted]
    model = ScriptedModel([replies[0], "An owl.", *replies[1:], "Done."])
    result, progress = asyncio.run(go())
    assert (result.stop, result.output) == ("done", "Done.")
    model.assert_complete()
    sampled, elicited, visited, long, image = (record.result for record in result.calls)
    assert [record.result.content for record in result.calls if record.result.is_error] == []

    assert '"text": "An owl."' in sampled.content and '"model": "scripted"' in sampled.content
    request = model.requests[1]
    assert request.messages == (UserMessage("Resource trigger-sampling-request context: Name a bird."),)
    assert (request.settings.max_tokens, request.envelope.choice) == (20, "none")

    assert "- Name: Ada" in elicited.content and "- Favorite Integer: 7" in elicited.content
    assert "completed the URL elicitation flow" in visited.content
    assert [question.url for question in asked] == [None, "http://127.0.0.1:9/log-in"]
    assert asked[0].server == "everything" and asked[0].schema["required"] == ["name"]

    assert [event.fraction for event in progress] == [0.25, 0.5, 0.75, 1.0]
    assert {event.call.name for event in progress} == {"everything__trigger-long-running-operation"}
    assert "completed" in long.content
    (picture,) = image.parts
    assert isinstance(picture, ImagePart) and picture.data.startswith(b"\x89PNG") and picture.media_type == "image/png"


def test_what_is_not_offered_is_not_asked_for(server: ServerConfig, tmp_path: Path) -> None:
    async def none(hub: McpHub, tools: dict[str, Tool]) -> None:
        assert not ASKING & set(tools) and len(tools) == 12

    async def all_of_them(hub: McpHub, tools: dict[str, Tool]) -> None:
        assert set(tools) >= ASKING and len(tools) == 16
        roots = await tools["get-roots-list"].call({})
        assert tmp_path.as_uri() in roots and "(1 total)" in roots
        await told.wait()

    def hear(line: LogMessage) -> None:
        if "Roots updated: 1 root(s)" in line.text:
            told.set()

    async def never(question: Elicitation) -> Declined:
        raise AssertionError

    told = asyncio.Event()
    with_side(server, ClientSide(), none)
    side = ClientSide(model=ScriptedModel([]), elicit=never, roots=(tmp_path,), on_log=hear)
    with_side(server, side, all_of_them)


def test_a_person_may_decline_or_answer_wrongly_and_a_model_fail(server: ServerConfig) -> None:
    answers: list[Any] = [Declined(), Cancelled(), Accepted({"name": "Ada", "integer": 700}), KeyError("secret")]

    async def elicit(question: Elicitation) -> Any:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def use(hub: McpHub, tools: dict[str, Tool]) -> None:
        ask = tools["trigger-elicitation-request"]
        assert "declined to provide" in await ask.call({})
        assert "cancelled the elicitation" in await ask.call({})
        for told in ("integer", "could not answer"):
            with pytest.raises(ToolError, match=told) as refused:
                await ask.call({})
            assert "secret" not in str(refused.value)
        with pytest.raises(ToolError, match="could not answer"):
            await tools["trigger-sampling-request"].call({"prompt": "p"})
        assert "Echo: still here" in await tools["echo"].call({"message": "still here"})

    with_side(server, ClientSide(model=ScriptedModel([]), elicit=elicit), use)


def test_resources_and_prompts(server: ServerConfig) -> None:
    async def use(hub: McpHub, tools: dict[str, Tool]) -> None:
        listed = {item.uri: item for item in await hub.resources()}
        document = next(uri for uri in listed if uri.endswith("/features.md"))
        assert listed[document].media_type == "text/markdown" and not listed[document].template
        assert listed["demo://resource/dynamic/text/{resourceId}"].template
        assert "# " in (await hub.read(document)).content
        assert "Resource 3" in (await hub.read("demo://resource/dynamic/text/3")).content
        blob = await hub.read("demo://resource/dynamic/blob/4")
        assert isinstance(blob.parts[0], FilePart) and b"Resource 4" in blob.parts[0].data
        with pytest.raises(McpError, match="no server can read"):
            await hub.read("demo://resource/none")

        prompts = {prompt.name: prompt for prompt in await hub.prompts()}
        assert [(one.name, one.required) for one in prompts["args-prompt"].arguments] == [
            ("city", True),
            ("state", False),
        ]
        (asked,) = await hub.prompt("everything", "args-prompt", {"city": "Oslo"})
        assert asked == UserMessage("What's weather in Oslo?")
        shown = await hub.prompt("everything", "resource-prompt", {"resourceType": "Text", "resourceId": 2})
        assert [type(message) for message in shown] == [UserMessage, UserMessage] and "Resource 2" in shown[1].text
        with pytest.raises(McpError, match="city"):
            await hub.prompt("everything", "args-prompt")

    with_side(server, ClientSide(), use)


def test_every_other_tool(server: ServerConfig) -> None:
    async def use(hub: McpHub, tools: dict[str, Tool]) -> None:
        assert await tools["echo"].call({"message": "hi ☂"}) == "Echo: hi ☂"
        assert await tools["get-sum"].call({"a": 1, "b": 2.5}) == "The sum of 1 and 2.5 is 3.5."
        weather = json.loads(await tools["get-structured-content"].call({"location": "Chicago"}))
        assert set(weather) == {"temperature", "conditions", "humidity"}
        links = await tools["get-resource-links"].call({"count": 2})
        (uri, _) = re.findall(r"demo://\S+\d", links)
        assert (await hub.read(uri)).parts
        reference = await tools["get-resource-reference"].call({"resourceType": "Text", "resourceId": 5})
        assert "demo://resource/dynamic/text/5" in reference
        noted = await run(tools["get-annotated-message"], {"messageType": "error", "includeImage": True})
        assert "Error: Operation failed" in noted.content and isinstance(noted.parts[0], ImagePart)
        packed = await run(
            tools["gzip-file-as-resource"],
            {"name": "a.gz", "data": "data:text/plain,hello", "outputType": "resource"},
        )
        assert gzip.decompress(packed.parts[0].data) == b"hello"
        assert json.loads(await tools["get-env"].call({}))
        assert "Started" in await tools["toggle-simulated-logging"].call({})
        assert "Stopped" in await tools["toggle-simulated-logging"].call({})
        assert "Started" in await tools["toggle-subscriber-updates"].call({})
        assert "Stopped" in await tools["toggle-subscriber-updates"].call({})

    with_side(server, ClientSide(), use)


def test_a_call_of_an_hour_ends_with_the_run_and_the_server_goes_on(server: ServerConfig) -> None:
    async def go() -> None:
        long = AssistantMessage(calls=(ToolCall("x", "everything__trigger-long-running-operation", HOUR),))
        sum_ = AssistantMessage(calls=(ToolCall("x", "everything__get-sum", {"a": 1, "b": 2}),))
        async with Agent(ScriptedModel([long, sum_, "Three."]), mcp=[server]) as agent:
            first = await agent.run("1", limits=Limits(seconds=1.0))
            assert first.stop == "seconds" and "stopped before it finished" in first.calls[0].result.content
            second = await agent.run("2", conversation=first.conversation)
            assert second.output == "Three." and "is 3." in second.calls[0].result.content

    asyncio.run(go())


async def run(tool: Tool, arguments: dict[str, Any]) -> Any:
    return await tool.run(tool.validate(arguments))

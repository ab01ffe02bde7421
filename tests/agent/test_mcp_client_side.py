"""What servers may ask of this side, and what else they offer, over stdio in both protocol eras and in process."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from m1agent.agent import Agent
from m1agent.context import Context
from m1agent.errors import McpError, ToolError
from m1agent.events import ToolFinished, ToolProgress
from m1agent.mcp import eras
from m1agent.mcp.client_side import Accepted, Answer, Cancelled, ClientSide, Declined, Elicitation, LogMessage
from m1agent.mcp.config import InProcessServer, ServerConfig, StdioServer
from m1agent.mcp.hub import McpHub
from m1agent.mcp.resources import Prompt, PromptArgument, Resource
from m1agent.messages import AssistantMessage, FilePart, ImagePart, ToolCall, ToolOutput, Usage, UserMessage
from m1agent.models.scripted import ScriptedModel
from m1agent.tools import Hints, Tool

T = TypeVar("T")
FULL = Path(__file__).parent / "servers" / "full.py"


def stdio(**options: Any) -> StdioServer:
    return StdioServer("full", sys.executable, (str(FULL),), **options)


def in_process(**options: Any) -> InProcessServer:
    spec = importlib.util.spec_from_file_location("full_server", FULL)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["full_server"] = module
    spec.loader.exec_module(module)
    return InProcessServer("full", module.mcp, **options)


@pytest.fixture(params=["modern", "legacy", "in process"])
def config(request: pytest.FixtureRequest) -> Callable[..., ServerConfig]:
    """Makes a configuration of the full server, in one of the ways it can be reached."""

    def make(**options: Any) -> ServerConfig:
        if request.param == "in process":
            return in_process(**options)
        made = stdio(**options)
        eras.remember(made, legacy=request.param == "legacy")
        return made

    return make


def with_hub(
    use: Callable[[McpHub, dict[str, Tool]], Awaitable[T]], config: ServerConfig, side: ClientSide | None = None
) -> T:
    async def go() -> T:
        hub = McpHub([config], side)
        await hub.connect()
        assert hub.status[0].state == "ready", hub.status
        try:
            return await use(hub, {tool.name.removeprefix("full__"): tool for tool in hub.tools})
        finally:
            await hub.aclose()
            assert asyncio.all_tasks() == {asyncio.current_task()}

    return asyncio.run(go())


def test_only_what_is_there_is_declared(config: Callable[..., ServerConfig]) -> None:
    async def use(_: McpHub, tools: dict[str, Tool]) -> str:
        return await tools["offered"].call({})

    async def elicit(_: Elicitation) -> Answer:
        return Declined()

    assert with_hub(use, config()) == '{"result": ""}'
    side = ClientSide(ScriptedModel([]), elicit, (FULL,))
    assert with_hub(use, config(), side) == '{"result": "elicitation roots sampling"}'
    assert with_hub(use, config(sampling=False), side) == '{"result": "elicitation roots"}'


def test_elicitation(config: Callable[..., ServerConfig]) -> None:
    asked: list[Elicitation] = []
    fits, misfit = Accepted({"guests": "3", "name": "Ada"}), Accepted({"guests": 90})
    answers: list[Any] = [fits, Declined(), Cancelled(), misfit, "yes", ValueError("x")]

    async def elicit(question: Elicitation) -> Answer:
        asked.append(question)
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def use(_: McpHub, tools: dict[str, Tool]) -> None:
        assert await tools["book"].call({"day": "Monday"}) == '{"result": "Monday: 3 for Ada"}'
        for _ in range(2):
            with pytest.raises(ToolError):
                await tools["book"].call({"day": "Monday"})
        with pytest.raises(ToolError, match=r"guests: expected .*8"):
            await tools["book"].call({"day": "Monday"})
        for _ in range(2):
            with pytest.raises(ToolError, match="the client could not answer"):
                await tools["book"].call({"day": "Monday"})

    with_hub(use, config(), ClientSide(elicit=elicit))
    assert not answers
    assert asked[0].message == "A table on Monday for how many?" and asked[0].server == "full" and asked[0].url is None
    assert set(asked[0].schema["properties"]) == {"guests", "name"}


def test_a_page_to_visit() -> None:
    async def elicit(question: Elicitation) -> Answer:
        return Accepted() if question.url == "https://example.com/login" else Cancelled()

    async def use(_: McpHub, tools: dict[str, Tool]) -> str:
        return await tools["visit"].call({})

    config = stdio()
    eras.remember(config, legacy=True)
    assert with_hub(use, config, ClientSide(elicit=elicit)) == '{"result": "accept"}'


def test_a_person_may_take_longer_than_a_call() -> None:
    async def go() -> None:
        answered = asyncio.Event()

        async def elicit(_: Elicitation) -> Answer:
            await answered.wait()
            return Accepted({"guests": 1})

        hub = McpHub([stdio(call_seconds=0.5)], ClientSide(elicit=elicit))
        await hub.connect()
        tools = {tool.name: tool for tool in hub.tools}
        call = asyncio.create_task(tools["full__book"].call({"day": "Monday"}))
        loop = asyncio.get_running_loop()
        loop.call_later(1.5, answered.set)
        assert "1 for nobody" in await call
        with pytest.raises(ToolError, match=r"did not answer within 0\.5 seconds"):
            await tools["full__wait"].call({})
        await hub.aclose()

    asyncio.run(go())


def test_sampling(config: Callable[..., ServerConfig]) -> None:
    model = ScriptedModel(["<think>Hm.</think>Short.", RuntimeError("the weights are gone")])
    spent: list[Usage] = []

    async def use(_: McpHub, tools: dict[str, Tool]) -> None:
        tool = tools["shorten"]
        context: Context[Any] = Context(None, ToolCall("1", tool.name, {}), on_usage=spent.append)
        text = await tool.run(tool.validate({"text": "A long text."}), context)
        assert text.content == '{"result": "scripted: Short. (endTurn)"}'
        with pytest.raises(ToolError, match=r"the client could not answer \(RuntimeError\)"):
            await tool.call({"text": "Another."})

    with_hub(use, config(), ClientSide(model))
    request = model.requests[0]
    assert [type(message).__name__ for message in request.messages] == [
        "UserMessage",
        "AssistantMessage",
        "UserMessage",
    ]
    assert request.messages[-1] == UserMessage("A long text.")
    assert request.settings.max_tokens == 1024 and request.settings.temperature == 0.5 and not request.envelope.tools
    assert model.open_threads == 0 and len(spent) == 1 and spent[0].output_tokens > 0


def test_roots(config: Callable[..., ServerConfig]) -> None:
    async def use(_: McpHub, tools: dict[str, Tool]) -> str:
        return await tools["folders"].call({})

    assert FULL.parent.as_uri() in with_hub(use, config(), ClientSide(roots=(FULL.parent,)))


def test_logs_are_passed_on_redacted_and_bounded(
    config: Callable[..., ServerConfig], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "m1agent.mcp")
    heard: list[LogMessage] = []

    async def use(_: McpHub, tools: dict[str, Tool]) -> None:
        await tools["say"].call({"level": "warning", "text": "the s3cret-key\nFAKE: all is well"})
        await tools["say"].call({"level": "debug", "text": "too fine"})
        await tools["say"].call({"level": "info", "text": "again", "times": 1000})

    made = config() if isinstance(config(), InProcessServer) else config(env={"KEY": "s3cret-key"})
    with_hub(use, made, ClientSide(on_log=heard.append))
    hidden = "***" if isinstance(made, StdioServer) else "s3cret-key"
    assert heard[0] == LogMessage("full", logging.WARNING, f"the {hidden}\\nFAKE: all is well", "")
    assert f"MCP server 'full': the {hidden}\\nFAKE: all is well" in caplog.messages
    assert not any("too fine" in line for line in caplog.messages)
    assert 50 < len(heard) < 300


def test_progress_is_told_as_events(config: Callable[..., ServerConfig]) -> None:
    async def go() -> list[tuple[str, float | None]]:
        call = AssistantMessage(calls=(ToolCall("x", "full__work", {}),))
        agent = Agent(ScriptedModel([call, "done"]), mcp=[config()])
        events = [event async for event in agent.stream("go") if isinstance(event, ToolProgress)]
        return [(event.message, event.fraction) for event in events]

    assert asyncio.run(go()) == [("begun", 0.25), ("beyond", 1.0), ("", None)]


def test_cancelling_a_call_reaches_the_server(config: Callable[..., ServerConfig]) -> None:
    async def use(_: McpHub, tools: dict[str, Tool]) -> None:
        call = asyncio.create_task(tools["wait"].call({}))
        assert "yes" in await tools["waiting"].call({})
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert "yes" in await tools["was_cancelled"].call({})

    with_hub(use, config())


def test_media_become_parts(config: Callable[..., ServerConfig]) -> None:
    async def use(_: McpHub, tools: dict[str, Tool]) -> list[ToolOutput]:
        return [await tools[name].run(tools[name].validate({})) for name in ("media", "chart")]

    media, chart = with_hub(use, config())
    assert media.parts == (
        ImagePart(b"\x89PNG", "image/png"),
        FilePart(b"RIFF", "audio/wav"),
        FilePart(b"\x00\x01\x02\x03", "application/x-table", "table.bin"),
    )
    assert media.content.splitlines() == [
        "look",
        "[image image/png, 4 bytes]",
        "[file audio/wav, 4 bytes]",
        "[table.bin application/x-table, 4 bytes]",
        "[resource far: https://example.com/far]",
        "[image image/gif, unreadable]",
    ]
    assert chart.parts == (ImagePart(b"\x89PNG", "image/png"),)
    assert chart.content == "{}\n[image image/png, 4 bytes]"


def test_hints_and_approval(config: Callable[..., ServerConfig]) -> None:
    async def use(_: McpHub, tools: dict[str, Tool]) -> bool:
        assert tools["delete_all"].hints == Hints(read_only=False, destructive=True, open_world=True)
        assert tools["doomed"].hints == Hints(read_only=True, idempotent=True)
        assert tools["work"].hints == Hints()
        return tools["delete_all"].needs_approval({})

    assert with_hub(use, config())
    assert not with_hub(use, config(approve=("delete_*",)))


def test_filters(config: Callable[..., ServerConfig]) -> None:
    async def use(hub: McpHub, tools: dict[str, Tool]) -> None:
        assert set(tools) == {"wait"} and hub.status[0].tools == ("full__wait",)
        with pytest.raises(ToolError, match="no longer has the tool 'work'"):
            await hub.servers[0].call("work", {})

    with_hub(use, config(tools=("wa*", "book"), exclude_tools=("was_*", "waiting", "b??k")))


def test_resources(config: Callable[..., ServerConfig]) -> None:
    async def use(hub: McpHub, tools: dict[str, Tool]) -> None:
        today = Resource("full", "notes://today", "today", "What is up\ntoday.", "text/plain")
        found = await hub.resources()
        assert today in found and {item.uri for item in found if item.template} == {"notes://day/{day}"}
        assert await hub.read("notes://today") == ToolOutput("Water the plants.")
        assert (await hub.read("notes://logo", "full")).parts == (ImagePart(b"\x89PNG", "image/png"),)
        assert (await hub.read("notes://day/monday")).content == "Nothing on monday."
        assert await hub.attach("notes://today") == UserMessage("Resource notes://today:\n\nWater the plants.")
        with pytest.raises(McpError, match="no server can read the resource notes://nowhere"):
            await hub.read("notes://nowhere")
        with pytest.raises(McpError, match=r"there is no MCP server 'ful'. Did you mean \"full\"\?"):
            await hub.read("notes://today", "ful")
        listing = await tools["list_resources"].call({})
        assert "notes://today (today): What is up today.; text/plain" in listing.splitlines()
        assert await tools["read_resource"].call({"uri": "notes://today"}) == "Water the plants."
        with pytest.raises(ToolError):
            await tools["read_resource"].call({"uri": "notes://nowhere"})

    with_hub(use, config(resources=True))


def test_prompts(config: Callable[..., ServerConfig]) -> None:
    async def use(hub: McpHub, _: dict[str, Tool]) -> None:
        arguments = (PromptArgument("name", required=True), PromptArgument("tone"))
        assert await hub.prompts() == (Prompt("full", "greet", "Say hello.", arguments),)
        said = (UserMessage("Greet Ada, kind."), AssistantMessage("To whom?"), UserMessage("Ada"))
        assert await hub.prompt("full", "greet", {"name": "Ada"}) == said
        for name, given in (("greet", {}), ("curse", {})):
            with pytest.raises(McpError, match="The server 'full'"):
                await hub.prompt("full", name, given)

    with_hub(use, config())


def test_an_agent_has_its_servers_resources(config: Callable[..., ServerConfig]) -> None:
    async def go() -> None:
        model = ScriptedModel(["Yes."])
        agent = Agent(model, mcp=[config()], roots=[FULL.parent])
        assert agent.mcp is None
        async with agent:
            assert agent.mcp is not None
            note = await agent.mcp.attach("notes://today")
            await agent.run([*await agent.mcp.prompt("full", "greet", {"name": "Ada"}), note])
        assert agent.mcp is None and model.requests[0].messages[-1] == note

    asyncio.run(go())


def test_changed_tools_are_listed_again_and_keep_their_order(config: Callable[..., ServerConfig]) -> None:
    async def use(hub: McpHub, tools: dict[str, Tool]) -> None:
        before = [tool.name for tool in hub.tools]
        assert not hub.changed and not await hub.refresh()
        await tools["change"].call({})
        while not hub.changed:  # noqa: ASYNC110 (a notification comes by itself)
            await asyncio.sleep(0)
        assert tools["doomed"].available is not None and tools["doomed"].available()
        assert await hub.refresh() and not hub.changed and not await hub.refresh()
        status = hub.status[0]
        assert status.added == ("full__born",) and status.gone == ("full__doomed",)
        assert [tool.name for tool in hub.tools] == [n for n in before if n != "full__doomed"] + ["full__born"]
        assert tools["work"] in hub.tools and not tools["doomed"].available()
        with pytest.raises(ToolError, match="The server 'full' no longer has the tool 'doomed'"):
            await tools["doomed"].call({})
        born = next(tool for tool in hub.tools if tool.name == "full__born")
        assert "new" in await born.call({})

    with_hub(use, config())


@pytest.mark.parametrize("legacy", [False, True])
def test_tools_of_a_server_that_was_connected_again(legacy: bool) -> None:
    async def use(hub: McpHub, tools: dict[str, Tool]) -> None:
        before = {tool.name for tool in hub.tools}
        await tools["change"].call({})
        while not hub.changed:  # noqa: ASYNC110 (a notification comes by itself)
            await asyncio.sleep(0)
        assert await hub.refresh()
        with pytest.raises(ToolError, match="was lost during this call and is connected again"):
            await tools["die"].call({})
        assert hub.changed and await hub.refresh() and not hub.changed
        assert {tool.name for tool in hub.tools} == before
        assert (hub.status[0].added, hub.status[0].gone) == ((), ())
        assert "still here" in await tools["doomed"].call({})

    config = stdio()
    eras.remember(config, legacy=legacy)
    with_hub(use, config)


def test_an_entered_agent_sees_changed_tools_in_its_next_run() -> None:
    async def go() -> None:
        change = AssistantMessage(calls=(ToolCall("x", "full__change", {}),))
        born = AssistantMessage(calls=(ToolCall("y", "full__born", {}),))
        async with Agent(ScriptedModel([change, "a", born, "b"]), mcp=[stdio()]) as agent:
            await agent.run("1")
            assert agent.mcp is not None
            while not agent.mcp.changed and not agent.servers[0].added:  # noqa: ASYNC110 (it comes by itself)
                await asyncio.sleep(0)
            second = await agent.run("2")
            assert second.calls[0].result.content == "new" and agent.servers[0].added == ("full__born",)

    asyncio.run(go())


@pytest.mark.parametrize("legacy", [False, True])
def test_a_run_hears_of_changed_tools_before_its_next_step(legacy: bool) -> None:
    async def go() -> None:
        calls = [
            AssistantMessage(calls=(ToolCall(name, f"full__{name}", {}),)) for name in ("change", "doomed", "born")
        ]
        model = ScriptedModel([*calls, "a", calls[2], "b"])
        async with Agent(model, mcp=[config]) as agent:
            hub, results = agent.mcp, dict[str, str]()
            assert hub is not None
            async for event in agent.stream("1"):
                if isinstance(event, ToolFinished):
                    results[event.call.name] = event.result.content
                    while event.call.name == "full__change" and not hub.changed:  # noqa: ASYNC110 (it comes by itself)
                        await asyncio.sleep(0)
            offered = [{tool.name for tool in request.envelope.tools} for request in model.requests]
            assert offered[0] - offered[1] == {"full__doomed"} and offered[0] > offered[1] == offered[2] == offered[3]
            assert "changed" in results["full__change"]
            assert results["full__doomed"] == "full__doomed is not available now."
            assert results["full__born"].startswith('There is no tool "full__born".')
            assert (agent.servers[0].added, agent.servers[0].gone) == (("full__born",), ("full__doomed",))
            second = await agent.run("2")
            assert second.calls[0].result.content == "new"

    config = stdio()
    eras.remember(config, legacy=legacy)
    asyncio.run(go())


def test_a_required_server_that_fails_is_an_error() -> None:
    async def go() -> None:
        hub = McpHub([stdio(), StdioServer("gone", "/no/such/program", required=True)])
        with pytest.raises(McpError, match="the MCP server 'gone' is required: the program '/no/such/program'"):
            await hub.connect()
        assert [status.state for status in hub.status] == ["closed", "closed"]
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(go())

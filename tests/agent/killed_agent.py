"""Agents that are killed: run by test_store.py in processes of their own.

killed_agent.py live FILE        runs the conversation "talk" of the store and tells each event on a line
killed_agent.py everywhere FILE  forks such runs and kills each at its k-th statement, for every k there is, and
                                 after each opens the conversation in another process and goes on with it
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio

from m1agent.agent import Agent
from m1agent.errors import StoreError
from m1agent.events import ReplyFinished, StepFinished, ToolFinished
from m1agent.messages import AssistantMessage, Message, ToolCall, ToolMessage, UserMessage
from m1agent.models.scripted import ScriptedModel
from m1agent.store import ConversationStore
from m1agent.tools import tool

STEPS, CALLS = 2, 3


def reply(messages: tuple[Message, ...]) -> AssistantMessage:
    """Calls for the first steps after a question, each with a text of its own, then an answer."""
    made = sum(len(message.calls) for message in messages if isinstance(message, AssistantMessage))
    asked = max(index for index, message in enumerate(messages) if isinstance(message, UserMessage))
    if sum(isinstance(message, ToolMessage) for message in messages[asked:]) >= STEPS:
        return AssistantMessage("Done.")
    names = [("write", "write_slowly")[(made + index) % 2] for index in range(CALLS)]
    calls = [ToolCall(f"{index}", name, {"text": f"{made + index}"}) for index, name in enumerate(names, 1)]
    return AssistantMessage("Writing.", "I write.", tuple(calls))


def agent(folder: Path) -> Agent:
    @tool
    def write(text: str) -> str:
        """Write a file."""
        (folder / text).write_text(text)
        return f"wrote {text}"

    @tool
    async def write_slowly(text: str) -> str:
        """Write a file a little later than others."""
        await anyio.lowlevel.checkpoint()
        (folder / text).write_text(text)
        return f"wrote {text}"

    return Agent(ScriptedModel([reply] * 100), tools=[write, write_slowly])


async def live(store: ConversationStore, folder: Path, told: int) -> None:
    """A run that writes each event to the file descriptor `told` as soon as it happens."""
    talk = store.open("talk")
    async for event in agent(folder).stream("Write.", conversation=talk):
        match event:
            case ToolFinished(result=result):
                line = f"result {result.content}"
            case ReplyFinished(message=message):
                line = f"reply {len(message.calls)}"
            case StepFinished(step=step):
                line = f"step {step}"
            case _:
                line = "event"
        os.write(told, f"{line}\n".encode())


def check(messages: tuple[Message, ...], told: str) -> None:
    """The history is valid and holds every result that was told."""
    results: set[str] = set()
    for index, message in enumerate(messages):
        if isinstance(message, AssistantMessage) and message.calls:
            answer = messages[index + 1]
            assert isinstance(answer, ToolMessage), messages
            assert [r.call_id for r in answer.results] == [c.id for c in message.calls], messages
            results |= {result.content for result in answer.results}
        if isinstance(message, ToolMessage):
            before = messages[index - 1]
            assert isinstance(before, AssistantMessage) and before.calls, messages
    for line in told.splitlines():
        kind, _, content = line.partition(" ")
        assert kind != "result" or content in results, f"{line!r} was lost: {messages}"


def everywhere(file: Path) -> int:
    """How many places there were to be killed at."""
    told = file.with_suffix(".told")
    for statement in itertools.count(1):
        file.unlink(missing_ok=True)
        for name in ("-wal", "-shm"):
            Path(f"{file}{name}").unlink(missing_ok=True)
        with ConversationStore(file) as store:
            store.create("talk")
        told.write_bytes(b"")
        killed = _forked(lambda at=statement: _run_killed(file, told, at))
        assert killed in (0, -signal.SIGKILL), killed
        assert _forked(lambda: _go_on(file, told)) == 0
        if killed == 0:
            return statement - 1
    raise AssertionError("counting never ends")


def _run_killed(file: Path, told: Path, at: int) -> None:
    seen = 0

    def count(_: str) -> None:
        nonlocal seen
        seen += 1
        if seen == at:
            os.kill(os.getpid(), signal.SIGKILL)

    with ConversationStore(file) as store, told.open("ab") as output:
        store._database._sql.set_trace_callback(count)
        asyncio.run(live(store, file.parent, output.fileno()))


def _go_on(file: Path, told: Path) -> None:
    with ConversationStore(file) as store:
        talk = store.open("talk")
        check(talk.messages, told.read_text())
        before = len(talk)
        result = agent(file.parent).run_sync("Again.", conversation=talk)
        assert (result.stop, result.output) == ("done", "Done."), result
        assert len(talk) == before + 1 + 2 * STEPS + 1
        check(talk.messages, told.read_text())
        assert store.open("talk").messages == talk.messages


def _forked(work: Any) -> int:
    """The exit status of a process that does the work; minus the signal where one ended it."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    file = Path(sys.argv[2])
    if sys.argv[1] == "everywhere":
        print(everywhere(file))
    else:
        with suppress(StoreError), ConversationStore(file) as opened:
            asyncio.run(live(opened, file.parent, sys.stdout.fileno()))

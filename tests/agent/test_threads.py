"""Sync functions in threads: nobody waits for one that hangs, and everything it says comes through."""

from __future__ import annotations

import asyncio
import contextvars
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from m1agent import threads
from m1agent.threads import in_thread
from m1agent.tools import tool

name: contextvars.ContextVar[str] = contextvars.ContextVar("name", default="nobody")


def test_it_runs_elsewhere_and_the_thread_is_used_again() -> None:
    async def go() -> list[int]:
        return [await in_thread(threading.get_ident) for _ in range(20)]

    used = asyncio.run(go())
    assert len(set(used)) == 1 and used[0] != threading.get_ident()


def test_calls_run_at_the_same_time() -> None:
    barrier = threading.Barrier(40, timeout=60)

    async def go() -> None:
        await asyncio.gather(*(in_thread(barrier.wait) for _ in range(40)))

    asyncio.run(go())


def test_context_variables_are_carried_over_and_do_not_leak_back() -> None:
    def work() -> str:
        before = name.get()
        name.set("changed")
        return before

    async def go() -> None:
        name.set("caller")
        assert await in_thread(work) == "caller"
        assert name.get() == "caller"
        assert await in_thread(work) == "caller"

    asyncio.run(go())


def raiser(error: BaseException) -> Callable[[], Any]:
    def work() -> Any:
        raise error

    return work


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
def test_what_it_raises_passes_through(error: BaseException) -> None:
    async def go() -> None:
        with pytest.raises(type(error)) as caught:
            await in_thread(raiser(error))
        assert caught.value is error
        assert await in_thread(lambda: "still works") == "still works"

    asyncio.run(go())


def test_stop_iteration_is_a_runtime_error_with_its_cause() -> None:
    async def go() -> None:
        with pytest.raises(RuntimeError) as caught:
            await in_thread(raiser(StopIteration("end")))
        assert isinstance(caught.value.__cause__, StopIteration)

    asyncio.run(go())


def test_a_cancelled_call_is_not_waited_for_and_uses_up_nothing() -> None:
    release, hanging = threading.Event(), threading.Semaphore(0)

    def hang() -> None:
        hanging.release()
        release.wait()

    async def go() -> None:
        tasks = [asyncio.create_task(in_thread(hang)) for _ in range(60)]
        await in_thread(lambda: [hanging.acquire() for _ in tasks])
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(result, asyncio.CancelledError) for result in results)
        assert await asyncio.gather(*(in_thread(lambda: 7) for _ in range(20))) == [7] * 20

    try:
        asyncio.run(go())
    finally:
        release.set()


def test_an_abandoned_function_may_end_after_its_loop() -> None:
    release, hanging, ended = threading.Event(), threading.Event(), threading.Event()

    def hang() -> None:
        hanging.set()
        release.wait()
        ended.set()
        raise ValueError("nobody listens")

    async def go() -> None:
        task = asyncio.create_task(in_thread(hang))
        await in_thread(hanging.wait)
        task.cancel()

    asyncio.run(go())
    release.set()
    assert ended.wait(60)
    assert asyncio.run(in_thread(lambda: "well")) == "well"


def test_an_idle_thread_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "IDLE_SECONDS", 0.01)
    found: list[threading.Thread] = []
    # Threads that idle already sleep with the longer time: occupy them, so that a new one is started.
    release = threading.Event()

    async def go() -> None:
        kept = [asyncio.create_task(in_thread(release.wait)) for _ in range(len(threads._idle))]
        await asyncio.sleep(0)
        found.append(await in_thread(threading.current_thread))
        release.set()
        await asyncio.gather(*kept)

    asyncio.run(go())
    found[0].join(60)
    assert not found[0].is_alive()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_starts_threads_of_its_own() -> None:
    program = """
import asyncio, os
from m1agent.threads import in_thread
assert asyncio.run(in_thread(lambda: 1)) == 1
child = os.fork()
if not child:
    os._exit(asyncio.run(in_thread(lambda: 5)))
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 5
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_the_interpreter_exits_while_a_tool_hangs() -> None:
    program = """
import asyncio, threading
from m1agent import Agent, Limits, tool
from m1agent.messages import AssistantMessage, ToolCall
from m1agent.models.scripted import ScriptedModel

@tool
def hang() -> str:
    '''Never ends.'''
    threading.Event().wait()
    return ""

model = ScriptedModel([AssistantMessage(calls=(ToolCall("1", "hang", {}),))])
print(Agent(model, tools=[hang], limits=Limits(seconds=0.2)).run_sync("Go.").stop)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "seconds\n", "")


def test_a_sync_tool_that_returns_an_awaitable_is_awaited() -> None:
    async def later() -> int:
        return 4

    @tool
    def give() -> Any:
        """Gives an awaitable."""
        return later()

    assert "4" in str(asyncio.run(give.call({})))

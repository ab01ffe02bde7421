"""Asks a model the questions, one reply each, and judges the calls of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import asdict
from typing import Any

from m1agent.bench.bfcl.data import Item
from m1agent.bench.bfcl.dialect import tools_of
from m1agent.bench.bfcl.scoring import Call, Failure, judge
from m1agent.bench.record import Record
from m1agent.errors import BenchError, ContextFull, ModelError
from m1agent.events import ReplyFinished
from m1agent.messages import AssistantMessage, Setup, SystemMessage, Usage
from m1agent.models.base import Model, Settings
from m1agent.prompt.envelope import Envelope

MODEL_ERROR = "model_error"
AGAIN = frozenset({MODEL_ERROR})
"""Kinds of failure that say nothing of the model's ability: such items are asked again by the next run."""
IN_A_ROW = 5
SHOWN = 2000


async def ask_all(
    model: Model,
    items: Sequence[Item],
    record: Record,
    settings: Settings,
    *,
    concurrency: int = 4,
    seconds: float = 300.0,
    told: Callable[[dict[str, Any]], None] | None = None,
) -> None:
    """Ask whatever the record does not hold yet, and write each result into it as it comes.

    Args:
        concurrency: replies that are written at a time.
        seconds: how long one reply may take; what takes longer is a failure.
        told: is given each new result.

    Raises:
        BenchError: the model failed five times in a row; what was found until then is in the record.
    """
    waiting = iter([item for item in items if item.id not in record.results])
    failed = 0

    async def work() -> None:
        nonlocal failed
        for item in waiting:
            result = await ask(model, item, settings, seconds)
            record.add(result)
            failed = failed + 1 if result["kind"] == MODEL_ERROR else 0
            if told is not None:
                told(result)
            if failed >= IN_A_ROW:
                raise BenchError(f"the model failed {failed} times in a row: {result['why']}")

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(work())
    except* BenchError as errors:
        raise errors.exceptions[0] from None


async def ask(model: Model, item: Item, settings: Settings, seconds: float) -> dict[str, Any]:
    """One question: the reply, whether its calls are the accepted ones, and what it cost; as JSON values."""
    tools = tools_of(item.functions)
    names = {spec.name: name for name, spec in tools.items()}
    reply, failure = ReplyFinished(AssistantMessage(), Usage()), None
    started = time.perf_counter()
    try:
        async with asyncio.timeout(seconds):
            reply = await _reply(model, item, Setup(_instructions(item), tuple(tools.values())), settings)
    except TimeoutError:
        failure = Failure("out_of_time", f"no reply after {seconds:g} seconds")
    except ContextFull as error:
        failure = Failure("context_full", str(error))
    except ModelError as error:
        failure = Failure(MODEL_ERROR, str(error))
    spent = time.perf_counter() - started
    failure = failure or _judged(item, reply, names)
    return {
        "id": item.id,
        "category": item.category,
        "passed": failure is None,
        "kind": failure.kind if failure else "",
        "why": failure.why if failure else "",
        "calls": [
            {"name": names.get(call.name, call.name), "arguments": call.arguments} for call in reply.message.calls
        ],
        "text": reply.message.text[:SHOWN],
        "seconds": round(spent, 4),
        "usage": asdict(reply.usage),
    }


def _judged(item: Item, reply: ReplyFinished, names: dict[str, str]) -> Failure | None:
    unread = next((call for call in reply.message.calls if call.problem), None)
    if unread is not None and not item.category.endswith("irrelevance"):
        return Failure("unreadable", f"the arguments of {unread.name}: {unread.problem}")
    # A reply that cannot be read as calls makes none, by the leaderboard's rules.
    said = () if unread is not None else reply.message.calls
    calls = [Call(names.get(call.name, call.name), call.arguments) for call in said]
    failure = judge(item.category, item.functions, item.answers, calls)
    if failure is not None and reply.stop == "length":
        return Failure("cut", f"the reply met its bound of tokens; {failure.why}")
    return failure


async def _reply(model: Model, item: Item, setup: Setup, settings: Settings) -> ReplyFinished:
    *history, question = item.messages[1:] if setup.instructions else item.messages
    thread = model.open(setup, history)
    try:
        stream = thread.respond([question], Envelope(setup.tools), settings)
        async with aclosing(stream):  # type: ignore[type-var]
            async for event in stream:
                if isinstance(event, ReplyFinished):
                    return event
    finally:
        await thread.aclose()
    raise ModelError("the model ended its reply without finishing it")


def _instructions(item: Item) -> str:
    first = item.messages[0]
    return first.text if isinstance(first, SystemMessage) else ""

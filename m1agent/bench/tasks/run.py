"""Lets a model do the tasks, each at a desk of its own, and judges what is left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from m1agent.agent import Agent
from m1agent.approval import Approval, Rule
from m1agent.bench.record import Record
from m1agent.bench.tasks.catalog import Task
from m1agent.bench.tasks.check import problems
from m1agent.bench.tasks.servers import Desk, Found, open_desk
from m1agent.bench.tasks.world import State
from m1agent.errors import ContextFull
from m1agent.evaluation import Case, Trial, evaluate
from m1agent.limits import Limits
from m1agent.models.base import Model, Settings
from m1agent.result import RunResult

MODEL_ERROR = "model_error"
BROKEN = "broken"
AGAIN = frozenset({MODEL_ERROR, BROKEN})
"""Kinds of failure that say nothing of the model's ability: such tasks are done again by the next run."""
ALLOWED = Approval([Rule("*", "allow")])
FOLDER = "Your working folder is {folder}{repository}. Name files by their full path. "
INSTRUCTIONS = (
    "Do what is asked with the tools, and nothing else. When it is done, say so, or answer the question, "
    "in one sentence."
)
Desks = asyncio.Queue[Desk]


@dataclass(frozen=True, slots=True)
class Attempt:
    """A task at a desk, its world as it was before, and when it began."""

    task: Task
    desk: Desk
    before: State
    began: datetime


async def do_all(
    model: Model,
    tasks: Sequence[Task],
    record: Record,
    settings: Settings,
    servers: Mapping[str, Found],
    *,
    repeats: int = 1,
    concurrency: int = 1,
    seconds: float = 300.0,
    steps: int = 20,
    told: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, str]:
    """Do whatever the record does not hold yet, and write each result into it as it comes.

    Args:
        servers: how to start them, by `find_servers`.
        repeats: how often each task is done.
        concurrency: tasks at a time, each at a desk with servers of its own.
        seconds, steps: bounds of one run.
        told: is given each new result.

    Returns the tasks that were left out, each with what is missing for it.
    """
    async with AsyncExitStack() as stack:
        desks: Desks = asyncio.Queue()
        needed = {name for task in tasks for name in task.servers}
        missing: dict[str, str] = {}
        for _ in range(concurrency):
            desk = await stack.enter_async_context(open_desk(servers, needed))
            desks.put_nowait(desk)
            missing |= desk.missing
        lacking = {task.name: _lacks(task, missing) for task in tasks if set(task.servers) & missing.keys()}
        by_case = {_case_name(task, number): task for number in range(1, repeats + 1) for task in tasks}
        cases = [
            case_of(task, desks, name)
            for name, task in by_case.items()
            if task.name not in lacking and name not in record.results
        ]

        def ended(trial: Trial, _: int, __: int) -> None:
            result = result_of(by_case[trial.case], trial)
            record.add(result)
            if told is not None:
                told(result)

        if cases:
            await evaluate(
                lambda attempt: agent_at(attempt, model, settings, Limits(steps=steps)),
                cases,
                concurrency=concurrency,
                seconds=seconds,
                progress=ended,
            )
        return lacking


def case_of(task: Task, desks: Desks, name: str = "") -> Case:
    """The task as a case of an evaluation."""
    return Case(name or task.name, task.prompt, [left_as_asked], lambda: _at_a_desk(task, desks))


def agent_at(attempt: Attempt, model: Model, settings: Settings, limits: Limits) -> Agent[Any, str]:
    """The agent that does a task: the tools of its servers, all allowed, and the way to the folder."""
    repository = ", a git repository" if "git" in attempt.before else ""
    folder = FOLDER.format(folder=attempt.desk.world.folder, repository=repository)
    return Agent(
        model,
        attempt.desk.tools(attempt.task.servers),
        (folder if {"git", "filesystem"} & set(attempt.task.servers) else "") + INSTRUCTIONS,
        deps_type=Attempt,
        settings=settings,
        limits=limits,
        approval=ALLOWED,
    )


def left_as_asked(result: RunResult[Any], attempt: Attempt) -> str:
    """What is wrong with the world, or with the answer."""
    after = attempt.desk.world.state()
    found = problems(attempt.task.expect, attempt.before, after, result.output or "", began=attempt.began)
    return "; ".join(found)


JUDGED = f"{left_as_asked.__name__}: "


def result_of(task: Task, trial: Trial) -> dict[str, Any]:
    """A trial as JSON values, as the record keeps it."""
    result = trial.result
    return {
        "id": trial.case,
        "category": task.group,
        "passed": trial.passed,
        "kind": _kind(trial),
        "why": "; ".join(problem.removeprefix(JUDGED) for problem in trial.problems),
        "calls": [
            {"name": one.call.name, "arguments": one.call.arguments, "is_error": one.result.is_error}
            for one in (result.calls if result is not None else ())
        ],
        "text": (result.output or "") if result is not None else "",
        "seconds": round(trial.seconds, 4),
        "usage": asdict(trial.usage),
    }


def _kind(trial: Trial) -> str:
    if trial.passed:
        return ""
    if trial.result is None or trial.error:
        return BROKEN
    if isinstance(trial.result.error, ContextFull):
        return "context_full"
    if trial.result.stop == "error":
        return MODEL_ERROR
    if trial.result.stop != "done":
        return f"ended_by_{trial.result.stop}"
    return "answer" if trial.problems[0].startswith(f"{JUDGED}answer") else "state"


@asynccontextmanager
async def _at_a_desk(task: Task, desks: Desks) -> AsyncGenerator[Attempt]:
    desk = await desks.get()
    try:
        await asyncio.to_thread(desk.world.make, task.setup)
        yield Attempt(task, desk, await asyncio.to_thread(desk.world.state), datetime.now(UTC))
    finally:
        await asyncio.to_thread(desk.world.clear)
        desks.put_nowait(desk)


def _case_name(task: Task, number: int) -> str:
    return task.name if number == 1 else f"{task.name} #{number}"


def _lacks(task: Task, missing: Mapping[str, str]) -> str:
    return "; ".join(f"server {name}: {missing[name]}" for name in task.servers if name in missing)

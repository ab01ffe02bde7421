"""The tasks of `m1agent bench tasks`: each check passes after the right calls, and only then."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from m1agent.bench.record import Record
from m1agent.bench.tasks.catalog import GROUPS, Solution, Task, all_tasks, choose
from m1agent.bench.tasks.run import AGAIN, Desks, agent_at, case_of, do_all
from m1agent.bench.tasks.servers import SERVERS, find_servers, open_desk
from m1agent.cli import main
from m1agent.errors import BenchError, ModelError
from m1agent.evaluation import Trial, evaluate
from m1agent.limits import Limits
from m1agent.messages import AssistantMessage, Message, ToolCall, ToolMessage
from m1agent.models.base import Settings
from m1agent.models.scripted import Reply, ScriptedModel

TASKS = all_tasks()
HERE = Path(__file__).parent
NOTHING = Solution()


@pytest.fixture(scope="module")
def node_modules(node: str) -> Path:
    if not (HERE / "node_modules" / "@modelcontextprotocol").is_dir():
        pytest.skip("the npm servers are not installed: run `make servers`")
    return HERE / "node_modules"


@asynccontextmanager
async def one_desk(node_modules: Path) -> AsyncGenerator[Desks]:
    desks: Desks = asyncio.Queue()
    async with open_desk(find_servers(node_modules), SERVERS) as desk:
        assert desk.missing == {}
        desks.put_nowait(desk)
        yield desks


def script(solution: Solution, folder: Path) -> list[Reply]:
    """The solution as a model would say it."""

    def here(value: Any) -> Any:
        return json.loads(json.dumps(value).replace("{folder}", json.dumps(str(folder))[1:-1]))

    def last(messages: tuple[Message, ...]) -> str:
        results = [message for message in messages if isinstance(message, ToolMessage)]
        return solution.answer.replace("{last}", results[-1].results[0].content if results else "")

    calls = [AssistantMessage(calls=(ToolCall("x", name, here(given)),)) for name, given in solution.calls]
    return [*calls, last]


async def solved(desks: Desks, tasks: Sequence[Task], solutions: Sequence[Solution]) -> list[Trial]:
    """Each task done by its solution, by the way a model would do it."""
    by_name = {task.name: solution for task, solution in zip(tasks, solutions, strict=True)}

    def agent(attempt: Any) -> Any:
        folder = attempt.desk.world.folder
        model = ScriptedModel(script(by_name[attempt.task.name], folder))
        return agent_at(attempt, model, Settings(), Limits(steps=20))

    report = await evaluate(agent, [case_of(task, desks) for task in tasks], concurrency=1)
    return list(report.trials)


def test_every_task_tells_right_from_wrong(node_modules: Path) -> None:
    async def go() -> tuple[list[Trial], ...]:
        async with one_desk(node_modules) as desks:
            return tuple(
                [await solved(desks, TASKS, [solution(task) for task in TASKS])
                 for solution in (lambda task: task.right, lambda task: NOTHING, lambda task: task.wrong)]
            )  # fmt: skip

    right, idle, wrong = asyncio.run(go())
    assert {trial.case: trial.problems for trial in right if not trial.passed} == {}
    failed_calls = {
        trial.case: record.result.content for trial in right for record in trial.result.calls if record.result.is_error
    }
    assert failed_calls == {}
    assert [trial.case for trial in (*idle, *wrong) if trial.passed] == []
    # They fail by what they left or said, and by nothing else.
    for trial in (*idle, *wrong):
        assert not trial.error and trial.result is not None and trial.result.stop == "done", trial
        (problem,) = trial.problems
        assert re.match(r"left_as_asked: (files|git|graph|answer)\b", problem), problem


def test_there_are_enough_tasks_of_each_kind() -> None:
    assert len(TASKS) >= 30 and len({task.name for task in TASKS}) == len(TASKS)
    groups = Counter(task.group for task in TASKS)
    assert set(groups) == set(GROUPS) and min(groups.values()) >= 5
    assert {server for task in TASKS for server in task.servers} == set(SERVERS)


def test_tasks_are_chosen_by_name_and_group() -> None:
    assert {task.group for task in choose(TASKS, ["git", "time_tokyo*"])} == {"git", "time"}
    with pytest.raises(BenchError, match=r"no task 'gti'; .*--list"):
        choose(TASKS, ["gti"])


def test_missing_servers_skip_their_tasks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = "time_tokyo_to_utc,memory_who,several_meeting_time"
    command = ["bench", "tasks", "--tasks", names, "--node-modules", str(tmp_path), "--max-steps", "2"]
    assert main([*command, "--max-tokens", "32", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["all"]["items"] == 1 and set(figures["categories"]) == {"time"}
    assert set(figures["skipped"]) == {"memory_who", "several_meeting_time"}
    assert "npm install @modelcontextprotocol/server-memory" in figures["skipped"]["memory_who"]
    assert main([*command[:2], "--tasks", "memory", "--node-modules", str(tmp_path)]) == 1
    assert "10 skipped, not counted" in capsys.readouterr().out
    assert main([*command, "--list"]) == 0
    listed = capsys.readouterr()
    assert "memory_who (memory): Which person" in listed.out and "server memory is missing" in listed.err


def test_results_are_kept_and_gone_on_with(tmp_path: Path) -> None:
    tasks = choose(TASKS, ["time"])
    path = tmp_path / "results.jsonl"

    def run(replies: list[Reply], resume: bool) -> Record:
        with Record({"benchmark": "test"}, path, resume=resume, again=AGAIN) as kept:
            told: list[str] = []
            model = ScriptedModel(replies)
            servers = find_servers()
            asyncio.run(
                do_all(model, tasks, kept, Settings(), servers, repeats=2, told=lambda one: told.append(one["id"]))
            )
            model.assert_complete()
            assert len(told) == len(replies)
            return kept

    first = run(["00:30", ModelError("gone"), *["16:15"] * 8], resume=False)
    kinds = Counter(result["kind"] for result in first.results.values())
    assert kinds == {"": 2, "model_error": 1, "answer": 7}
    assert "time_tokyo_to_utc #2" in first.results
    second = run(["16:15"], resume=True)
    assert Counter(result["kind"] for result in second.results.values()) == {"": 3, "answer": 7}

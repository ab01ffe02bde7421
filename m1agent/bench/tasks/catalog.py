"""The tasks: read from TOML, chosen by name."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from importlib.resources import files
from typing import Any

from m1agent.errors import BenchError

GROUPS = ("git", "filesystem", "memory", "time", "several")


@dataclass(frozen=True, slots=True)
class Solution:
    """Calls (a tool as `<server>__<tool>`, and its arguments) and the answer after them.

    In texts, `{folder}` stands for the working folder, and in the answer `{last}` for what the last call returned.
    """

    calls: tuple[tuple[str, dict[str, Any]], ...] = ()
    answer: str = "Done."


@dataclass(frozen=True, slots=True)
class Task:
    """One task.

    group: the file it is in. servers: those it needs. setup: steps that make the world (`world.py` knows them).
    expect: what differs afterwards (`check.py` reads it). right, wrong: solutions for tests.
    """

    name: str
    group: str
    servers: tuple[str, ...]
    prompt: str
    setup: tuple[dict[str, Any], ...]
    expect: dict[str, Any]
    right: Solution = field(repr=False)
    wrong: Solution = field(repr=False)


def all_tasks() -> list[Task]:
    """Every task, in the order of the files."""
    found: list[Task] = []
    for group in GROUPS:
        text = (files("m1agent.bench.tasks") / f"{group}.toml").read_text(encoding="utf-8")
        found += [_task(name, group, table) for name, table in tomllib.loads(text).items()]
    return found


def choose(tasks: Iterable[Task], patterns: Sequence[str] = ()) -> list[Task]:
    """The tasks that fit one of the patterns by their name or group (`git`, `memory_*`), or all without patterns.

    Raises:
        BenchError: a pattern fits none.
    """
    known = list(tasks)
    fits = {
        pattern: [task for task in known if fnmatchcase(task.name, pattern) or task.group == pattern]
        for pattern in patterns or ["*"]
    }
    for pattern, some in fits.items():
        if not some:
            raise BenchError(
                f"no task '{pattern}'; m1agent bench tasks --list shows them, and there are the groups "
                f"{', '.join(GROUPS)}"
            )
    chosen = {task.name for some in fits.values() for task in some}
    return [task for task in known if task.name in chosen]


def _task(name: str, group: str, table: dict[str, Any]) -> Task:
    return Task(
        name,
        group,
        tuple(table.get("servers", [group])),
        table["prompt"].strip(),
        tuple(table.get("setup", ())),
        table["expect"],
        _solution(table["right"]),
        _solution(table["wrong"]),
    )


def _solution(table: dict[str, Any]) -> Solution:
    calls = tuple((str(name), dict[str, Any](*given)) for name, *given in table.get("calls", ()))
    return Solution(calls, table.get("answer", "Done."))

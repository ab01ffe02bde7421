"""How often an agent does what it should: cases, run as often as wanted, judged by the state they leave behind.

    cases = [Case("adds", "What is 2 + 2?", [lambda result, _: "4" in result.output])]
    report = await evaluate(agent, cases, repeats=5)
    print(report)
    report.pass_rate, report.to_json()

A case may bring a world of its own (a folder, a database): made afresh for each trial by its `fixture`, given to the
agent's tools as `context.deps`, and looked at by the checks after the run. Whatever one trial does, the others go on.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
import traceback
from collections.abc import Awaitable, Callable, Generator, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, AsyncExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import add
from typing import Any, TypeAlias, cast

from m1agent.agent import Agent
from m1agent.blocking import run_blocking
from m1agent.conversation import Conversation
from m1agent.messages import Message, Usage
from m1agent.problems import shown
from m1agent.result import RunResult, StopReason
from m1agent.schema import function_name
from m1agent.threads import in_thread
from m1agent.transcript import to_json

LOG = logging.getLogger("m1agent.evaluation")
GRACE = 5.0

Verdict: TypeAlias = bool | str | None
Check: TypeAlias = Callable[[RunResult[Any], Any], Verdict | Awaitable[Verdict]]
AgentOf: TypeAlias = Callable[[Any], Agent[Any, Any] | Awaitable[Agent[Any, Any]]]


@dataclass(frozen=True, slots=True)
class Case:
    """Something an agent is asked, and how to tell that it did it.

    Args:
        name: tells it from the other cases.
        prompt: the user's words, or messages.
        checks: functions of the result and of what the fixture made, sync (run in a thread) or async. A check fails by
            raising AssertionError, by returning False, or by returning a text that says what is wrong; it passes by
            returning True, or nothing (None or an empty text), as functions made of asserts do. Anything else is no
            verdict and fails the trial, and so does nothing from a lambda, which cannot assert.
        fixture: makes what the trial works on: a function that returns it, or returns a context manager (sync or async)
            that gives it and cleans up after the checks.
        stop: how the run must end, or None for any way.
        seconds: instead of the evaluation's deadline.

    Raises:
        TypeError: `checks` is no list of functions.
    """

    name: str
    prompt: str | Sequence[Message]
    checks: Sequence[Check] = ()
    fixture: Callable[[], Any] | None = None
    stop: StopReason | None = "done"
    seconds: float | None = None

    def __post_init__(self) -> None:
        _check_checks(self.name, self.checks)


@dataclass(frozen=True, slots=True)
class Trial:
    """One run of a case. `problems` says, line by line, why it did not pass; `error` is the traceback of what broke,
    where the fixture, a check or the agent raised something unforeseen. `result` is None where no run came to an end.
    """

    case: str
    number: int
    problems: tuple[str, ...]
    error: str
    seconds: float
    result: RunResult[Any] | None = field(repr=False)

    @property
    def passed(self) -> bool:
        """Whether nothing was wrong."""
        return not self.problems

    @property
    def usage(self) -> Usage:
        """What the run used."""
        return self.result.usage if self.result is not None else Usage()

    def to_json(self) -> dict[str, Any]:
        """The trial with its whole conversation, as JSON values."""
        from pydantic_core import to_jsonable_python

        said: dict[str, Any] = {
            "case": self.case,
            "number": self.number,
            "passed": self.passed,
            "problems": list(self.problems),
            "error": self.error,
            "seconds": self.seconds,
            "usage": to_jsonable_python(self.usage),
        }
        if self.result is not None:
            said |= {
                "stop": self.result.stop,
                "steps": self.result.steps,
                "output": to_jsonable_python(self.result.output, fallback=str, inf_nan_mode="strings"),
                "messages": to_json(self.result.messages),
            }
        return said


@dataclass(frozen=True, slots=True)
class CaseReport:
    """The trials of one case."""

    case: str
    trials: tuple[Trial, ...]

    @property
    def passed(self) -> int:
        """How many trials passed."""
        return sum(trial.passed for trial in self.trials)

    @property
    def pass_rate(self) -> float:
        """The share of trials that passed."""
        return self.passed / len(self.trials)


@dataclass(frozen=True, slots=True)
class Report:
    """What an evaluation found, case by case in the order they were given. `seconds` is wall time."""

    cases: tuple[CaseReport, ...]
    seconds: float

    @property
    def trials(self) -> tuple[Trial, ...]:
        """The trials of all cases."""
        return tuple(trial for case in self.cases for trial in case.trials)

    @property
    def pass_rate(self) -> float:
        """The share of trials that passed."""
        return sum(trial.passed for trial in self.trials) / len(self.trials)

    @property
    def reliable(self) -> float:
        """The share of cases that passed every time."""
        return sum(case.passed == len(case.trials) for case in self.cases) / len(self.cases)

    @property
    def usage(self) -> Usage:
        """What all trials used."""
        return reduce(add, (trial.usage for trial in self.trials), Usage())

    def to_json(self) -> dict[str, Any]:
        """The whole report as JSON values, conversations included."""
        return {
            "format": 1,
            "pass_rate": self.pass_rate,
            "reliable": self.reliable,
            "seconds": self.seconds,
            "trials": [trial.to_json() for trial in self.trials],
        }

    def __str__(self) -> str:
        lines = [f"{case.passed}/{len(case.trials)}  {case.case}" for case in self.cases]
        for case in self.cases:
            failed = [problem for trial in case.trials for problem in trial.problems]
            lines += [f"      {case.case}: {problem}" for problem in dict.fromkeys(failed)]
        usage = self.usage
        tokens = f"{usage.input_tokens} tokens read, {usage.output_tokens} written"
        return "\n".join([*lines, f"{self.pass_rate:.0%} passed in {self.seconds:.1f} s, {tokens}"])


async def evaluate(
    agent: Agent[Any, Any] | AgentOf,
    cases: Iterable[Case],
    *,
    repeats: int = 1,
    concurrency: int = 4,
    seconds: float | None = None,
    progress: Callable[[Trial, int, int], None] | None = None,
) -> Report:
    """Run every case and judge what it left behind.

    Args:
        agent: the agent, or a function that makes one for a trial from what the case's fixture made.
        cases: what is asked. Their names must differ.
        repeats: how often each case is run; a trial knows nothing of the others.
        concurrency: how many trials run at a time.
        seconds: how long a trial may take. A run that takes longer is ended and judged by what it did; whatever still
            goes on `GRACE` seconds later is cancelled.
        progress: told of each trial when it ends, with how many have ended and how many there are.

    Raises:
        TypeError: `agent` is neither an agent nor a function, or something is no `Case`.
        ValueError: there are no cases, two have one name, or a number is not positive.
    """
    asked = list(cases)
    _check_kinds(agent, asked)
    _check_asked(asked, repeats=repeats, concurrency=concurrency, seconds=seconds)
    started = time.perf_counter()
    turn = asyncio.Semaphore(concurrency)
    ended = 0

    async def attempt(case: Case, number: int) -> Trial:
        nonlocal ended
        async with turn:
            trial = await _trial(agent, case, number, case.seconds or seconds)
        ended += 1
        if progress is not None:
            _tell(progress, trial, ended, len(asked) * repeats)
        return trial

    async with asyncio.TaskGroup() as group:
        tasks = [[group.create_task(attempt(case, number)) for number in range(1, repeats + 1)] for case in asked]
    reports = [
        CaseReport(case.name, tuple(task.result() for task in row)) for case, row in zip(asked, tasks, strict=True)
    ]
    return Report(tuple(reports), time.perf_counter() - started)


def evaluate_sync(agent: Agent[Any, Any] | AgentOf, cases: Iterable[Case], **options: Any) -> Report:
    """`evaluate` for programs that are not async."""
    return run_blocking(lambda: evaluate(agent, cases, **options))


class _Attempt:
    """One trial while it happens: what is known of it so far."""

    def __init__(self, case: Case, seconds: float | None) -> None:
        self.case = case
        self.seconds = seconds
        self.problems: list[str] = []
        self.error = ""
        self.result: RunResult[Any] | None = None

    async def go(self, agent: Agent[Any, Any] | AgentOf) -> None:
        with self._watched("cleaning up"):
            async with AsyncExitStack() as stack:
                deps: Any = None
                with self._watched("the fixture"):
                    deps = await self._made(stack)
                if not self.problems:
                    with self._watched("the run"):
                        self.result = await self._run(stack, agent, deps)
                if self.result is not None:
                    await self._judge(self.result, deps)

    async def _judge(self, result: RunResult[Any], deps: Any) -> None:
        if self.case.stop not in (None, result.stop):
            why = result.reason or (str(result.error) if result.error else "")
            self.problems.append(f"the run ended with '{result.stop}'" + (f": {why}" if why else ""))
        for number, check in enumerate(self.case.checks, 1):
            await self._check(number, check, result, deps)

    async def _made(self, stack: AsyncExitStack) -> Any:
        if self.case.fixture is None:
            return None
        made = self.case.fixture()
        made = await made if inspect.isawaitable(made) else made
        if isinstance(made, AbstractAsyncContextManager):
            return await stack.enter_async_context(cast("AbstractAsyncContextManager[Any]", made))
        if isinstance(made, AbstractContextManager):
            return stack.enter_context(cast("AbstractContextManager[Any]", made))
        return made

    async def _agent(self, stack: AsyncExitStack, agent: Agent[Any, Any] | AgentOf, deps: Any) -> Agent[Any, Any]:
        if isinstance(agent, Agent):
            return cast("Agent[Any, Any]", agent)
        given = agent(deps)
        made = await given if inspect.isawaitable(given) else given
        stack.push_async_callback(made.aclose)
        return made

    async def _run(self, stack: AsyncExitStack, agent: Agent[Any, Any] | AgentOf, deps: Any) -> RunResult[Any]:
        made = await self._agent(stack, agent, deps)
        talk = Conversation()
        stack.push_async_callback(talk.aclose)
        bounds = [bound for bound in (self.seconds, made.limits.seconds) if bound is not None]
        limits = replace(made.limits, seconds=min(bounds)) if bounds else made.limits
        return await made.run(self.case.prompt, conversation=talk, deps=deps, limits=limits)

    async def _check(self, number: int, check: Check, result: RunResult[Any], deps: Any) -> None:
        name = getattr(check, "__name__", type(check).__name__)
        name = f"check {number}" if name == "<lambda>" else name
        with self._watched(name):
            try:
                verdict = (
                    check(result, deps)
                    if inspect.iscoroutinefunction(check)
                    else await in_thread(lambda: check(result, deps))
                )
                verdict = await verdict if inspect.isawaitable(verdict) else verdict
            except AssertionError as error:
                line = traceback.extract_tb(error.__traceback__)[-1].line
                self.problems.append(f"{name}: {error if str(error) else line}")
                return
            if problem := _problem(verdict, may_say_nothing=getattr(check, "__name__", "") != "<lambda>"):
                self.problems.append(f"{name}: {problem}")

    @contextmanager
    def _watched(self, what: str) -> Generator[None]:
        """Write down what is raised; only what ends the whole evaluation passes."""
        try:
            yield
        except BaseException as error:
            if _ends_everything(error):
                raise
            self.problems.append(f"{what}: {type(error).__name__}: {error}")
            self.error = self.error or traceback.format_exc()


def _problem(verdict: Any, *, may_say_nothing: bool) -> str:
    """What is wrong by the verdict of a check, or with it; empty where it passed."""
    if verdict is True or (verdict in (None, "") and may_say_nothing):
        return ""
    if verdict is False:
        return "not so"
    if isinstance(verdict, str) and verdict:
        return verdict
    return f"returned {shown(verdict)}, which is no verdict; return True, False, or a text that says what is wrong"


def _ends_everything(error: BaseException) -> bool:
    if isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        return task is None or task.cancelling() > 0  # Else it is the case's own doing.
    return isinstance(error, KeyboardInterrupt | GeneratorExit)


async def _trial(agent: Agent[Any, Any] | AgentOf, case: Case, number: int, seconds: float | None) -> Trial:
    started = time.perf_counter()
    attempt = _Attempt(case, seconds)
    try:
        async with asyncio.timeout(None if seconds is None else seconds + GRACE):
            await attempt.go(agent)
    except TimeoutError:
        attempt.problems.append(f"did not end {GRACE:g} seconds after its deadline of {seconds:g}")
    problems = tuple(attempt.problems)
    return Trial(case.name, number, problems, attempt.error, time.perf_counter() - started, attempt.result)


def _tell(progress: Callable[[Trial, int, int], None], trial: Trial, ended: int, total: int) -> None:
    try:
        progress(trial, ended, total)
    except Exception:
        LOG.exception("the progress callback failed; the evaluation goes on")


def _check_checks(case: str, given: Any) -> None:
    if callable(given):
        raise TypeError(f"case '{case}': checks is a list of functions; pass [{function_name(given)}]")
    if not isinstance(given, list | tuple) or not all(map(callable, cast("Sequence[Any]", given))):
        raise TypeError(f"case '{case}': checks is a list of functions, not {shown(cast('Any', given))}")


def _check_kinds(agent: Any, cases: Sequence[Any]) -> None:
    if not callable(agent) and not isinstance(agent, Agent):
        raise TypeError(f"evaluate takes an Agent, or a function that makes one, not {shown(agent)}")
    for case in cases:
        if not isinstance(case, Case):
            raise TypeError(f"evaluate takes cases such as Case('name', 'prompt', [check]), not {shown(case)}")


def _check_asked(cases: Sequence[Case], **numbers: float | None) -> None:
    names = [case.name for case in cases]
    if not names:
        raise ValueError("there are no cases to evaluate")
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two cases are called '{name}'; each needs a name of its own")
    for name, number in numbers.items():
        if number is not None and not number > 0:
            raise ValueError(f"{name} must be above 0, not {number!r}")

"""Cases, trials and reports."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from m1agent import evaluation
from m1agent.agent import Agent
from m1agent.context import Context
from m1agent.errors import ModelError
from m1agent.evaluation import Case, Report, Trial, evaluate, evaluate_sync
from m1agent.messages import AssistantMessage, Message, ToolCall, UserMessage
from m1agent.models.scripted import Reply, ScriptedModel
from m1agent.result import RunResult
from m1agent.tools import tool
from m1agent.transcript import from_json

Result = RunResult[Any]


def saying(*script: Reply, **options: Any) -> Callable[[Any], Agent[Any, Any]]:
    """Agents that each say the script."""
    return lambda _: Agent(ScriptedModel(script), **options)


def problems(report: Report) -> list[str]:
    return [problem for trial in report.trials for problem in trial.problems]


@tool
def save(context: Context[Path], name: str, text: str) -> str:
    """Write a file."""
    (context.deps / name).write_text(text)
    return "saved"


def test_the_state_left_behind_is_judged() -> None:
    folders: list[Path] = []

    @contextmanager
    def folder() -> Generator[Path]:
        with TemporaryDirectory() as name:
            folders.append(Path(name))
            yield folders[-1]

    def wrote(result: Result, where: Path) -> None:
        assert (where / "a.txt").read_text() == "hello"

    call = AssistantMessage(calls=(ToolCall("1", "save", {"name": "a.txt", "text": "hello"}),))
    cases = [Case("write", "Write it.", [wrote], folder), Case("lazy", "Write it.", [wrote], folder)]

    def agent(where: Path) -> Agent[Any, Any]:
        reply: Reply = call if where == folders[0] else "Done."
        return Agent(ScriptedModel([reply, "Done."]), tools=[save])

    report = evaluate_sync(agent, cases, concurrency=1)
    assert [case.pass_rate for case in report.cases] == [1.0, 0.0]
    assert problems(report)[0].startswith("wrote: FileNotFoundError")
    assert len(set(folders)) == 2 and not any(where.exists() for where in folders)
    assert "wrote" in report.trials[1].error and not report.trials[0].error


def test_checks_say_no_in_several_ways() -> None:
    def plain(result: Result, _: Any) -> None:
        if result.output != "no":
            raise AssertionError

    def told(result: Result, _: Any) -> None:
        if result.output != "no":
            raise AssertionError("it said yes")

    def text(result: Result, _: Any) -> str:
        return f"wanted no, got {result.output}"

    async def later(result: Result, _: Any) -> bool:
        await asyncio.sleep(0)
        return False

    class Object:
        def __call__(self, result: Result, _: Any) -> bool:
            return False

    def fine(result: Result, _: Any) -> str:
        return ""

    async def fine_too(result: Result, _: Any) -> None:
        assert result.output == "yes"

    checks = [plain, told, text, later, Object(), lambda result, _: False, fine, fine_too, lambda result, _: True]
    report = evaluate_sync(saying("yes"), [Case("c", "?", checks)])
    assert problems(report) == [
        "plain: raise AssertionError",
        "told: it said yes",
        "text: wanted no, got yes",
        "later: not so",
        "Object: not so",
        "check 6: not so",
    ]
    assert report.trials[0].error == ""


def test_what_breaks_one_case_leaves_the_others() -> None:
    def boom(*_: Any) -> None:
        raise RuntimeError("boom")

    def leaves(*_: Any) -> None:
        raise SystemExit(3)

    async def cancels(*_: Any) -> None:
        raise asyncio.CancelledError

    class Failed(BaseException):
        """As test frameworks raise it."""

    def fails(*_: Any) -> None:
        raise Failed("by framework")

    @asynccontextmanager
    async def dirty() -> AsyncGenerator[str]:
        yield "deps"
        raise OSError("cannot clean up")

    seen: list[str] = []
    cases = [
        Case("fixture", "?", [boom], boom),
        Case("check", "?", [boom, lambda *_: seen.append("after") is None]),  # type: ignore[func-returns-value]
        Case("exit", "?", [leaves]),
        Case("cancel", "?", [cancels]),
        Case("framework", "?", [fails]),
        Case("dirty", "?", [], dirty),
        Case("wrong prompt", 7),  # type: ignore[arg-type]
        Case("fine", "?"),
    ]
    report = evaluate_sync(saying("ok"), cases)
    told = {trial.case: trial.problems for trial in report.trials}
    assert told["fixture"] == ("the fixture: RuntimeError: boom",)
    assert told["check"] == ("boom: RuntimeError: boom",) and seen == ["after"]
    assert told["exit"] == ("leaves: SystemExit: 3",)
    assert told["cancel"] == ("cancels: CancelledError: ",)
    assert told["framework"] == ("fails: Failed: by framework",)
    assert told["dirty"] == ("cleaning up: OSError: cannot clean up",)
    assert told["wrong prompt"][0].startswith("the run: TypeError: a prompt is text")
    assert told["fine"] == ()
    assert report.pass_rate == 1 / 8
    assert "RuntimeError: boom" in report.trials[0].error and report.trials[0].result is None


def test_a_run_must_end_as_it_should() -> None:
    cases = [Case("done", "?"), Case("error", "?", stop="error"), Case("any", "?", stop=None)]
    report = evaluate_sync(saying(ModelError("no weights")), cases)
    assert [case.passed for case in report.cases] == [0, 1, 1]
    assert problems(report) == ["the run ended with 'error': no weights"]


def test_trials_are_repeated_side_by_side_but_not_too_many() -> None:
    running = 0
    most = 0
    enough = asyncio.Event()

    async def reply(_: tuple[Message, ...]) -> str:
        nonlocal running, most
        running += 1
        most = max(most, running)
        if running == 3:
            enough.set()
        await enough.wait()
        running -= 1
        return "ok"

    told: list[tuple[str, int, int]] = []

    def progress(trial: Trial, ended: int, total: int) -> None:
        told.append((trial.case, ended, total))
        raise RuntimeError("a progress bar that breaks")

    agent = Agent(ScriptedModel([reply] * 8))
    report = evaluate_sync(agent, [Case("a", "?"), Case("b", "?")], repeats=4, concurrency=3, progress=progress)
    assert most == 3
    assert [(trial.case, trial.number) for trial in report.trials] == [(c, n) for c in "ab" for n in (1, 2, 3, 4)]
    assert report.pass_rate == report.reliable == 1.0
    assert [(ended, total) for _, ended, total in told] == [(n, 8) for n in range(1, 9)]
    assert agent.model.open_threads == 0  # type: ignore[attr-defined]


def test_a_run_past_its_deadline_is_judged_by_what_it_did() -> None:
    @tool
    async def hang() -> str:
        """Never come back."""
        await asyncio.Event().wait()
        return ""

    call = AssistantMessage("Let me see.", calls=(ToolCall("1", "hang", {}),))
    case = Case("slow", "?", [lambda result, _: result.messages[1].text == "Let me see."], seconds=0.05)
    report = evaluate_sync(saying(call, tools=[hang]), [case], seconds=1000)
    assert problems(report) == ["the run ended with 'seconds'"]


def test_what_hangs_beside_the_run_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "GRACE", 0.05)
    never = threading.Event()

    async def hangs() -> None:
        await asyncio.Event().wait()

    def blocks(*_: Any) -> None:
        never.wait()

    cases = [Case("fixture", "?", fixture=hangs), Case("check", "?", [blocks]), Case("fine", "?", seconds=100)]
    report = evaluate_sync(saying("ok"), cases, seconds=0.05)
    never.set()
    assert problems(report) == ["did not end 0.05 seconds after its deadline of 0.05"] * 2
    assert report.trials[1].result is not None  # The run itself had ended.
    assert report.cases[2].passed == 1


def test_the_evaluation_can_be_cancelled() -> None:
    cleaned: list[str] = []

    @asynccontextmanager
    async def fixture() -> AsyncGenerator[None]:
        try:
            yield
        finally:
            cleaned.append("yes")

    async def go() -> None:
        hanging = asyncio.Event()

        async def reply(_: tuple[Message, ...]) -> str:
            hanging.set()
            await asyncio.Event().wait()
            return ""

        task = asyncio.create_task(evaluate(Agent(ScriptedModel([reply])), [Case("c", "?", fixture=fixture)]))
        await hanging.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(go())
    assert cleaned == ["yes"]


def test_the_report_as_json_and_as_text() -> None:
    def fails_first(result: Result, _: Any) -> bool:
        trials.append(1)
        return len(trials) > 1

    trials: list[int] = []
    cases = [Case("flaky", [UserMessage("a"), UserMessage("b")], [fails_first]), Case("fine", "?")]
    report = evaluate_sync(saying("ok"), cases, repeats=2, concurrency=1)
    assert (report.pass_rate, report.reliable) == (0.75, 0.5)
    read = json.loads(json.dumps(report.to_json()))
    assert (read["format"], read["pass_rate"], read["reliable"]) == (1, 0.75, 0.5)
    first = read["trials"][0]
    assert (first["case"], first["number"], first["passed"], first["problems"]) == (
        "flaky",
        1,
        False,
        ["fails_first: not so"],
    )
    assert from_json(first["messages"]) == [UserMessage("a"), UserMessage("b"), AssistantMessage("ok")]
    assert (first["output"], first["stop"], first["steps"]) == ("ok", "done", 1)
    assert first["usage"]["input_tokens"] == report.trials[0].usage.input_tokens > 0
    assert report.usage.output_tokens == 4 * report.trials[0].usage.output_tokens
    lines = str(report).splitlines()
    assert lines[:3] == ["1/2  flaky", "2/2  fine", "      flaky: fails_first: not so"]
    assert lines[3].startswith("75% passed in ")


def test_wrong_questions_are_refused() -> None:
    agent = saying("ok")
    with pytest.raises(ValueError, match="no cases"):
        evaluate_sync(agent, [])
    with pytest.raises(ValueError, match="two cases are called 'a'"):
        evaluate_sync(agent, [Case("a", "?"), Case("a", "!")])
    for name in ("repeats", "concurrency", "seconds"):
        with pytest.raises(ValueError, match=f"{name} must be above 0, not 0"):
            evaluate_sync(agent, [Case("a", "?")], **{name: 0})


def test_what_is_no_verdict_fails_the_trial() -> None:
    def nothing(result: Result, _: Any) -> None:
        assert result.output == "yes"

    def found(result: Result, _: Any) -> Any:
        return [result.output]

    lambdas: list[Any] = [lambda result, _: re.search("no", result.output), lambda result, _: result.output and ""]
    report = evaluate_sync(saying("yes"), [Case("c", "?", [nothing, found, *lambdas])])
    rest = "which is no verdict; return True, False, or a text that says what is wrong"
    assert problems(report) == [
        f'found: returned ["yes"], {rest}',
        f"check 3: returned null, {rest}",
        f'check 4: returned "", {rest}',
    ]


def test_what_cannot_be_evaluated_is_refused_at_once() -> None:
    def check(result: Result, _: Any) -> bool:
        return True

    wrong: Any = check
    with pytest.raises(TypeError, match=r"case 'c': checks is a list of functions; pass \[check\]"):
        Case("c", "?", wrong)
    for wrong in ("check", [check, 5], 5):
        with pytest.raises(TypeError, match="case 'c': checks is a list of functions, not "):
            Case("c", "?", wrong)
    wrong = "m1"
    with pytest.raises(TypeError, match='evaluate takes an Agent, or a function that makes one, not "m1"'):
        evaluate_sync(wrong, [Case("c", "?")])
    wrong = ["What?"]
    with pytest.raises(TypeError, match="evaluate takes cases such as"):
        evaluate_sync(saying("yes"), wrong)

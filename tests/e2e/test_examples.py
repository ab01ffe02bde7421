"""The programs of `examples/`, on real files, repositories and processes; the models are scripted, or m1-nano."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from m1agent.errors import RunStopped
from m1agent.messages import AssistantMessage, ToolCall
from m1agent.models.scripted import ScriptedModel
from m1tools.sandbox import Isolation, isolation

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
PROGRAMS = sorted(path.name for path in EXAMPLES.glob("*.py"))
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


@pytest.fixture(autouse=True)
def _examples_are_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))


def example(name: str) -> Any:
    return importlib.import_module(name)


def calls(*made: tuple[str, dict[str, Any]], text: str = "") -> AssistantMessage:
    return AssistantMessage(text, calls=tuple(ToolCall("", name, arguments) for name, arguments in made))


def program(name: str, *arguments: object) -> list[str]:
    return [sys.executable, str(EXAMPLES / name), *map(str, arguments)]


def run(name: str, *arguments: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    words = program(name, *arguments)
    return subprocess.run(words, capture_output=True, text=True, cwd=cwd, env=ENVIRONMENT, timeout=120)


@pytest.mark.parametrize("name", PROGRAMS)
def test_each_is_a_short_program_with_help_and_a_model(name: str) -> None:
    done = run(name, "--help")
    assert done.returncode == 0, done.stderr
    assert "--model" in done.stdout
    assert f"examples/{name}" in done.stdout, "how it is started"
    assert len((EXAMPLES / name).read_text().splitlines()) <= 180
    assert f"`{name}`" in (EXAMPLES / "README.md").read_text()


# The maths tutor


def test_a_problem_is_solved_by_m1_nano() -> None:
    torch.set_num_threads(1)
    solution = example("maths_tutor").solve_problem("What is the derivative of 3x^2 + 2x - 1?")
    assert str(solution) == ("1. Derivative: 3x^2 + 2x - 1 → 6x + 2\n\\boxed{6x + 2}\nConcepts: differentiation")


def test_a_number_that_no_step_computed_is_refused() -> None:
    step = ("calculate_math", {"expression": "180 / 2.5", "operation": "divide"})
    wrong = ("calculate_math", {"expression": "1 / 0", "operation": "divide"})
    script = [
        "About 70 km/h.",
        calls(wrong, text="Try 99."),
        calls(step, text="Divide 180 km by 2.5 hours."),
        "Answer: 72.5 km/h.",
        "Answer: 72.0 km/h.\nConcepts: speed, division.",
    ]
    model = ScriptedModel(script)
    solution = example("maths_tutor").solve_problem("A train goes 180 km in 2.5 hours. How fast?", model=model)
    model.assert_complete()
    assert solution.answer == "72.0 km/h"
    assert solution.concepts == ("speed", "division")
    assert [(one.text, one.result) for one in solution.steps] == [("Divide 180 km by 2.5 hours.", "72")]
    told = str(model.requests[-1].messages)
    assert "No step computed 72.5" in told


def test_steps_can_be_hidden_and_never_name_unknown_numbers() -> None:
    step = ("calculate_math", {"expression": "12 * 11", "operation": "multiply"})
    script = [calls(step, text="Twelve elevens are 133."), "Answer: 132"]
    solve = example("maths_tutor").solve_problem
    solution = solve("What is 12 times 11?", False, model=ScriptedModel(script))
    assert solution.steps[0].text == ""
    assert str(solution) == "\\boxed{132}\nConcepts: arithmetic"


def test_without_a_computation_there_is_no_solution() -> None:
    with pytest.raises(RunStopped, match="Nothing was computed"):
        example("maths_tutor").solve_problem("What is 2 + 2?", model=ScriptedModel(["4"] * 4))


def exercise(question: str, expression: str, operation: str, answer: str) -> dict[str, str]:
    return {"question": question, "expression": expression, "operation": operation, "answer": answer}


def test_wrong_practice_problems_are_replaced() -> None:
    first = [
        exercise("Solve x^2 - 9 = 0.", "x^2 - 9 = 0", "solve", "x = 3, -3"),
        exercise("Differentiate x^3.", "x^3", "derivative", "2x^2"),
        exercise("What is 5 + 6?", "5 + 7", "evaluate", "12"),
        exercise("Solve 2x = .", "2x = ", "solve", "0"),
    ]
    second = [exercise("Differentiate x^3.", "x^3", "derivative", "3x^2"), first[0]]
    third = [exercise("What is 5/2?", "5/2", "evaluate", "2.5"), exercise("What is 1 + 1?", "1 + 1", "evaluate", "2")]
    model = ScriptedModel([json.dumps(one) for one in (first, second, third)])
    made = example("maths_practice").generate_practice_problems("algebra", "easy", 3, model=model)
    model.assert_complete()
    assert [one.answer for one in made] == ["x = 3, -3", "3x^2", "2.5"]
    asked = model.requests[1].messages[-1].text
    assert "the answer is 3x^2, not 2x^2" in asked
    assert "the expression has 7, the question does not" in asked
    assert asked.endswith("Write 2 new ones, different from all before.")


def test_too_few_right_problems_are_an_error() -> None:
    wrong = json.dumps([exercise("What is 1 + 1?", "1 + 1", "evaluate", "3")])
    with pytest.raises(ValueError, match="only 0 of 1 problems"):
        example("maths_practice").generate_practice_problems("sums", count=1, model=ScriptedModel([wrong] * 4))


@pytest.mark.parametrize(
    ("answer", "right", "same"),
    [
        ("0.5", "1/2 = 0.5", True),
        ("1/2", "1/2 = 0.5", True),
        ("(x-3)(x-2)", "(x - 2)(x - 3)", True),
        ("x^2/2", "x^2/2 + C", True),
        ("-3 and 3", "x = -3 or x = 3", True),
        ("3", "x = -3 or x = 3", False),
        ("6x", "6x + 2", False),
    ],
)
def test_answers_agree_by_value(answer: str, right: str, same: bool) -> None:
    assert example("maths_practice").agree(answer, right) is same


# The code reviewer

BAD = """import os, subprocess

def run(name, seen=[]):
    unused = 1
    subprocess.call("ls " + name, shell=True)
    return seen
"""


def finding(line: int, message: str, rule: str = "") -> dict[str, Any]:
    return {"line": line, "category": "quality", "severity": "low", "message": message, "rule": rule}


def review(*findings: dict[str, Any]) -> str:
    return json.dumps({"summary": "Some problems.", "findings": findings})


def test_a_review_is_backed_by_the_checks() -> None:
    script = [
        calls(("run_checks", {})),
        review(finding(99, "Too long.")),
        review(finding(6, "Leaks.", "F999")),
        review(finding(3, "No docstring."), finding(4, "Never used.", "F841")),
    ]
    model = ScriptedModel(script)
    made = example("code_reviewer").review_code(BAD, "python", model=model)
    model.assert_complete()
    told = str(model.requests[-1].messages)
    assert "Line 99 is not among those to review." in told
    assert "No check found F999 on line 6." in told
    found = {(one.line, one.rule, one.category) for one in made.findings}
    assert {(3, "", "quality"), (4, "F841", "quality"), (5, "B602", "security"), (3, "B006", "bug")} <= found
    assert [one.line for one in made.findings] == sorted(one.line for one in made.findings)
    assert sum(one.rule == "F841" for one in made.findings) == 1


def test_code_that_does_not_compile_is_a_finding_and_other_languages_have_no_checks() -> None:
    reviewer = example("code_reviewer")
    (one,) = reviewer.check("def f(:\n", "python")
    assert (one.line, one.category, one.severity) == (1, "bug", "high")
    assert reviewer.check("fn main() {", "rust") == []
    model = ScriptedModel([review(finding(1, "Does nothing."))])
    assert len(reviewer.review_code("fn main() {}", "rust", model=model).findings) == 1


def git(repository: Path, *words: str) -> None:
    name = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    subprocess.run(["git", *name, *words], cwd=repository, check=True, capture_output=True)


def test_only_the_changed_lines_of_a_diff_are_reviewed(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    (tmp_path / "old.py").write_text(BAD)
    (tmp_path / "gone.py").write_text("x = 1\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    (tmp_path / "old.py").write_text(BAD.replace("    return seen\n", "    exec(name)\n    return seen\n"))
    (tmp_path / "gone.py").unlink()
    model = ScriptedModel([review(finding(4, "Never used.", "F841")), review(finding(6, "Runs anything."))])
    reviews = example("code_reviewer").review_diff(tmp_path, model=model)
    model.assert_complete()
    assert {(one.line, one.rule) for one in reviews["old.py"].findings} == {(6, ""), (6, "B102")}
    assert list(reviews) == ["old.py"]
    (outside := tmp_path.with_name("outside")).mkdir()
    done = run("code_reviewer.py", "--model", "m1-nano", outside)
    assert done.returncode == 1 and f"{outside}: not a git repository" in done.stderr
    done = run("code_reviewer.py", "--model", "m1-nano", tmp_path, "--revision", "nosuch")
    assert (done.returncode, done.stdout) == (1, "")
    assert "code_reviewer: " in done.stderr and "nosuch" in done.stderr and "Traceback" not in done.stderr


SLOW = "def total(numbers):\n    result = 0\n    for n in numbers:\n        result = result + n\n    return result\n"
CHECKS = """
import unittest

from sums import total


class TotalTest(unittest.TestCase):
    def test_total(self):
        assert total([1, 2, 3]) == 6
        assert total([]) == 0
"""


def edit(path: str, old: str, new: str) -> tuple[str, dict[str, Any]]:
    return "edit_file", {"path": path, "old_text": old, "new_text": new}


def test_a_patch_is_shown_once_its_tests_pass(tmp_path: Path) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "sums.py").write_text(SLOW)
    (folder / "test_sums.py").write_text(CHECKS)
    body = SLOW.partition("\n")[2]
    script = [
        calls(edit("sums.py", body, "    return max(numbers)\n")),
        "It is shorter.",
        calls(edit("test_sums.py", "== 6", "== 3"), edit("sums.py", "max(numbers)", "sum(numbers)")),
        "It is right.",
        calls(edit("test_sums.py", "== 3", "== 6"), ("run_tests", {})),
        "It uses sum().",
    ]
    model = ScriptedModel(script)
    improve = example("code_improver").suggest_improvements
    made = improve(folder, "Make it shorter.", "python -m unittest", model=model, trust=not isolation().namespaces)
    model.assert_complete()
    told = str(model.requests[-1].messages)
    assert "The tests fail:" in told
    assert "Undo your changes to the tests: test_sums.py." in told
    assert "Ran 1 test" in made.tests
    assert (folder / "sums.py").read_text() == SLOW, "the folder itself is never changed"
    subprocess.run(["git", "apply", "-"], cwd=folder, input=made.diff, text=True, check=True)
    assert (folder / "sums.py").read_text() == "def total(numbers):\n    return sum(numbers)\n"
    assert sorted(path.name for path in folder.iterdir()) == ["sums.py", "test_sums.py"]


def test_tests_are_not_run_where_they_cannot_be_isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    improver = example("code_improver")
    monkeypatch.setattr(improver, "isolation", Isolation)
    with pytest.raises(PermissionError, match=r"Not isolated on this machine: files, network, processes.*--trust"):
        improver.suggest_improvements(tmp_path, "Fix it.", "true", model=ScriptedModel([]))


# Batches


def entries(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_killed_batch_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts, answers = tmp_path / "prompts.txt", tmp_path / "answers.jsonl"
    lines = [f"What is {n + 11} times {n % 7 + 3}?" for n in range(30)]
    prompts.write_text("\n".join(lines))
    words = ("batch.py", prompts, answers, "--tools", "maths", "--at-once", 3, "--max-tokens", 64)
    with subprocess.Popen(program(*words), env=ENVIRONMENT, cwd=ROOT, stderr=subprocess.DEVNULL) as process:
        until = time.monotonic() + 100
        while not (answers.exists() and answers.read_bytes().count(b"\n") >= 3):
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    kept = answers.read_bytes()
    before = kept[: kept.rfind(b"\n") + 1]
    assert 3 <= before.count(b"\n") < 30
    answers.write_bytes(before + b'{"index": 29, "prompt": "torn')

    torch.set_num_threads(1)
    monkeypatch.setattr(sys, "argv", [str(word) for word in words])
    assert example("batch").main() == 0
    assert f"{30 - before.count(bytes([10]))} answered" in capsys.readouterr().err
    assert answers.read_bytes().startswith(before), "what was there is kept to the byte"
    found = entries(answers)
    assert sorted(one["index"] for one in found) == list(range(30))
    right = sum(
        [call["arguments"]["expression"] for call in one["calls"]] == [f"{one['index'] + 11} * {one['index'] % 7 + 3}"]
        for one in found
    )
    assert right >= 25, f"{right} of 30 calls"


def test_answers_of_other_prompts_are_not_gone_on_with(tmp_path: Path) -> None:
    batch, answers = example("batch"), tmp_path / "answers.jsonl"
    answers.write_text(json.dumps({"index": 0, "prompt": batch.digest("one"), "text": "1"}) + "\n")
    assert batch.finished(answers, ["one", "two"]) == {0}
    with pytest.raises(ValueError, match="answers to other prompts"):
        batch.finished(answers, ["two"])
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "one"}\n\n{"question": "two"}\n')
    with pytest.raises(ValueError, match='line 3: expected an object with "prompt"'):
        batch.read_prompts(bad)


# MCP


def test_any_file_of_servers_is_an_agent(tmp_path: Path) -> None:
    servers = tmp_path / "servers.json"
    clock = {"command": sys.executable, "args": ["-m", "mcp_server_time", "--local-timezone", "UTC"]}
    servers.write_text(json.dumps({"mcpServers": {"time": clock, "broken": {"command": str(tmp_path / "none")}}}))
    done = run("mcp_agent.py", servers, "What time is it in Tokyo now?")
    assert done.returncode == 0, done.stderr
    assert "broken: failed" in done.stderr
    assert 'time__get_current_time {"timezone": "Asia/Tokyo"}' in done.stdout
    assert "in Asia/Tokyo." in done.stdout


def test_a_file_that_is_none_says_so(tmp_path: Path) -> None:
    done = run("mcp_agent.py", tmp_path / "none.json", "Hello?")
    assert done.returncode == 1
    assert "none.json" in done.stderr
    assert "Traceback" not in done.stderr

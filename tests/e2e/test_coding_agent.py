"""examples/coding_agent.py on real repositories, with real tests and processes; the model is scripted (`coder.py`)."""

from __future__ import annotations

import importlib
import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from m1agent.errors import ModelError
from m1agent.messages import Message, ToolMessage, UserMessage
from m1agent.models.scripted import ScriptedModel
from m1tools.draft import Runs
from m1tools.sandbox import Isolation, isolation

from .coder import BUGS, QUICK, ROOT, SHELF, TEST, Bug, call, contents, git, programmer, shelf

pytestmark = pytest.mark.skipif(not isolation().namespaces, reason="tests are not run where they cannot be isolated")
CENTS = BUGS["cents"]


@pytest.fixture(autouse=True)
def _own_state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.syspath_prepend(str(ROOT / "examples"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return shelf(tmp_path / "shelf", CENTS)


def work(folder: Path, model: ScriptedModel, *words: object) -> int:
    given = [str(folder), *map(str, words), "--model", "scripted"]
    agent: Any = importlib.import_module("coding_agent")
    return agent.run(given, model)


def fix(folder: Path, model: ScriptedModel, *words: object) -> int:
    return work(folder, model, "2.05 is shown as 2.5.", "--test", QUICK, "--yes", *words)


def kept(folder: Path) -> tuple[str, ...]:
    return Runs(folder, "coding").kept


def told(model: ScriptedModel, tool: str) -> list[str]:
    """What the model was told by a tool, in all."""
    messages = model.requests[-1].messages
    results = itertools.chain.from_iterable(one.results for one in messages if isinstance(one, ToolMessage))
    return [result.content for result in results if result.name == tool]


@pytest.mark.parametrize("bug", BUGS.values(), ids=BUGS)
def test_a_bug_is_found_and_mended(bug: Bug, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shelf(tmp_path / "shelf", bug)
    model = programmer(bug)
    assert work(folder, model, bug.task, "--test", TEST, "--yes") == 0, capsys.readouterr().err
    assert git(folder, "diff", "--name-only").split() == [bug.path]
    assert git(folder, "status", "--porcelain").split() == ["M", bug.path]
    assert (folder / bug.path).read_text() == (SHELF / bug.path).read_text()
    asked = model.requests[0].messages[0]
    assert isinstance(asked, UserMessage) and f"FAILED {bug.test}" in asked.text
    assert told(model, "search_files")[0].startswith(f"{bug.path}:")
    runs = [result.partition("\n")[0] for result in told(model, "run_tests")]
    assert runs == ["The tests failed."] * (2 if bug.misstep else 1) + ["The tests passed."]
    assert "The tests pass, and the change is in" in capsys.readouterr().out
    assert kept(folder) == ()


def test_killed_anywhere_the_folder_is_clean_or_the_run_goes_on(tmp_path: Path) -> None:
    path = os.pathsep.join([str(ROOT / "examples"), *filter(None, sys.path)])
    program = [sys.executable, str(ROOT / "tests/e2e/coder.py"), str(tmp_path), "3"]
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=170)
    assert done.returncode == 0, done.stderr
    killed, landing = map(int, done.stdout.split())
    assert killed >= 6 and landing >= 2


# Alternatives

WRONG, LONG, SHORT = (
    'return f"{cents // 100}.{cents}"',
    'whole, rest = divmod(cents, 100)\n    return f"{whole}.{rest:02d}"',
    'return f"{cents // 100}.{cents % 100:02d}"',
)


def chooser(*ways: str) -> ScriptedModel:
    """Looks, names ways, and then in each fork writes the one that the fork is told to take."""

    def reply(messages: tuple[Message, ...]) -> Any:
        said = [one.text for one in messages if isinstance(one, UserMessage)]
        results = [one for message in messages if isinstance(message, ToolMessage) for one in message.results]
        if len(said) == 1:
            if not results:
                return call("edit_file", path=CENTS.path, old_text="cents", new_text="x", everywhere=True)
            return call("search_files", pattern="cents //") if len(results) == 1 else "1. One way. 2. Another."
        if len(said) > 2 or len(results) > 2:
            return "Done."
        number = int(said[1].split("Take way ")[1][0])
        return call("edit_file", path=CENTS.path, old_text=CENTS.wrong.strip(), new_text=ways[number - 1])

    return ScriptedModel([reply] * 40)


@pytest.mark.parametrize(
    ("ways", "taken"), [((WRONG, LONG), LONG), ((LONG, SHORT), SHORT), ((SHORT, WRONG), SHORT)], ids=str
)
def test_of_the_alternatives_the_smallest_that_passes_is_taken(
    folder: Path, ways: tuple[str, str], taken: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = chooser(*ways)
    assert fix(folder, model, "--alternatives", 2) == 0
    assert taken in (folder / CENTS.path).read_text()
    out = capsys.readouterr().out
    assert "look edit_file" in out and "error: This call was not allowed." in out, "only looking comes first"
    shared = {str(one.messages[:6]) for one in model.requests if len(one.messages) >= 7}
    assert len(shared) == 1, "both are forks of one conversation"
    assert kept(folder) == ()


def test_where_no_alternative_passes_nothing_is_taken(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(folder)
    assert fix(folder, chooser(WRONG, WRONG), "--alternatives", 2) == 1
    assert contents(folder) == before
    assert "is as it was: the model gave up. The tests failed." in capsys.readouterr().err


# What can go otherwise


def test_limits_end_it_and_more_of_them_go_on(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(folder)
    assert fix(folder, programmer(CENTS), "--steps", 3) == 1
    assert "is as it was: the replies of --steps are used up" in capsys.readouterr().err
    assert fix(folder, programmer(CENTS), "--tokens", 10) == 1
    assert "the tokens of --tokens are used up" in capsys.readouterr().err
    assert contents(folder) == before
    first, _ = kept(folder)
    assert work(folder, programmer(CENTS), "--resume", first, "--yes") == 0
    assert git(folder, "diff", "--name-only").split() == [CENTS.path]


def test_seconds_end_a_hanging_suite(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = ScriptedModel([call("run_tests"), "I cannot.", "No."])
    assert work(folder, model, "Fix it.", "--test", "sleep 60", "--test-seconds", 0.3, "--yes") == 1
    assert told(model, "run_tests")[0].startswith("The tests were stopped: they were not over after 0.3 s.")
    caught = capsys.readouterr()
    assert "tests FAILED: The tests were stopped" in caught.out
    assert "the model gave up. You have changed nothing yet." in caught.err
    model = ScriptedModel([call("run_tests")])
    assert work(folder, model, "Fix it.", "--test", "grep -q 02d shelf/fines.py || sleep 60", "--test-seconds", 1,
                "--seconds", 0.3, "--yes") == 1  # fmt: skip
    assert "the time of --seconds is over" in capsys.readouterr().err


def test_tests_that_never_pass_are_told_and_it_gives_up(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit = call("edit_file", path=CENTS.path, old_text=CENTS.wrong.strip(), new_text=WRONG)
    model = ScriptedModel([edit, "Done.", "I do not know."])
    assert fix(folder, model) == 1
    model.assert_complete()
    assert "The tests failed." in str(model.requests[-1].messages[-1])
    caught = capsys.readouterr()
    assert "the model gave up. The tests failed." in caught.err and "AssertionError" in caught.err
    assert "+    return" in caught.out, "what there is is shown"
    assert f"rm -r {Runs(folder, 'coding').place}" in caught.err


def test_tests_that_were_there_are_not_changed_unless_allowed(folder: Path) -> None:
    def script() -> ScriptedModel:
        edit = call("edit_file", path="tests/test_fines.py", old_text='"2.05"', new_text='"2.5"')
        new = call("write_file", path="tests/test_more.py", content="def test_more():\n    assert True\n")
        return ScriptedModel([edit, new, "Done.", call("undo_change"), call("undo_change"), "Done.", "No."])

    model = script()
    assert work(folder, model, "Fix it.", "--test", "true", "--yes") == 1
    assert "Undo your changes to tests that were there before: tests/test_fines.py." in str(model.requests[3].messages)
    assert work(folder, script(), "Fix it.", "--test", "true", "--yes", "--edit-tests") == 0
    assert git(folder, "status", "--porcelain").splitlines() == [" M tests/test_fines.py", "?? tests/test_more.py"]


def test_no_new_file_has_tests_skipped(folder: Path) -> None:
    skip = "import pytest\n\n\ndef pytest_collection_modifyitems(items):\n    items.clear()\n"
    made = [call("write_file", path=path, content=skip) for path in ("tests/conftest.py", "conftest.py")]
    model = ScriptedModel([*made, "Done.", "No."])
    assert work(folder, model, "Fix it.", "--test", "true", "--yes") == 1
    told = str(model.requests[3].messages)
    assert "Undo your changes to what says how tests are run: conftest.py, tests/conftest.py." in told
    assert git(folder, "status", "--porcelain") == ""


def test_a_model_that_fails_loses_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit = call("edit_file", path=CENTS.path, old_text=CENTS.wrong.strip(), new_text=SHORT)
    assert fix(folder, ScriptedModel([edit, ModelError("the server is down")])) == 1
    assert "the model failed. the server is down" in capsys.readouterr().err
    assert work(folder, ScriptedModel(["Mended."]), "--resume", "--yes") == 0
    assert SHORT in (folder / CENTS.path).read_text()


def test_what_is_not_committed_is_worked_on_and_kept(folder: Path) -> None:
    (folder / "shelf/days.py").write_text((folder / "shelf/days.py").read_text() + "\nEXTRA = 1\n")
    (folder / "notes.txt").write_text("mine\n")
    git(folder, "add", "notes.txt")
    index = (folder / ".git/index").read_bytes()
    assert fix(folder, programmer(CENTS)) == 0
    assert (folder / ".git/index").read_bytes() == index
    assert git(folder, "status", "--porcelain").splitlines() == [
        "A  notes.txt",
        " M shelf/days.py",
        " M shelf/fines.py",
    ]
    assert (folder / "notes.txt").read_text() == "mine\n"


def test_a_folder_without_git_will_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shelf(tmp_path / "shelf", CENTS)
    (folder / ".git").rename(tmp_path / "git")
    assert fix(folder, programmer(CENTS), "--branch", "x") == 1
    assert "not the top folder of a git repository" in capsys.readouterr().err
    before = contents(folder)
    assert fix(folder, programmer(CENTS)) == 0
    assert {name for name, what in contents(folder).items() if before[name] != what} == {CENTS.path}


def test_a_branch_holds_it_and_the_folder_stays(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(folder)
    assert fix(folder, programmer(CENTS), "--branch", "main") == 1
    assert "there is a branch 'main' already" in capsys.readouterr().err
    git(folder, "config", "user.name", "Ada")
    git(folder, "config", "user.email", "ada@example.com")
    assert fix(folder, programmer(CENTS), "--branch", "cents") == 0
    assert contents(folder) == before and git(folder, "status", "--porcelain") == ""
    assert git(folder, "diff", "--name-only", "main", "cents").split() == [CENTS.path]
    assert git(folder, "log", "-1", "--format=%s", "cents").strip() == "2.05 is shown as 2.5."


def test_what_changes_meanwhile_is_tested_before_it_lands(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def meanwhile(_: tuple[Message, ...]) -> str:
        (folder / "shelf/loans.py").write_text("raise SystemExit('broken meanwhile')\n")
        return "Mended."

    edit = call("edit_file", path=CENTS.path, old_text=CENTS.wrong.strip(), new_text=SHORT)
    assert fix(folder, ScriptedModel([edit, meanwhile])) == 1
    caught = capsys.readouterr()
    assert "has changed meanwhile, which is taken up" in caught.out
    assert "the tests fail with what has changed meanwhile" in caught.err and "broken meanwhile" in caught.err
    assert git(folder, "diff", "--name-only").split() == ["shelf/loans.py"]
    git(folder, "checkout", "-q", "shelf/loans.py")
    assert work(folder, ScriptedModel([]), "--resume", "--yes") == 0
    assert git(folder, "diff", "--name-only").split() == [CENTS.path]


class Typed:
    """Whoever types these answers."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *answers: str) -> None:
        self.left, self.asked = list(answers), list[str]()
        monkeypatch.setattr("builtins.input", self.answer)
        monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)

    def answer(self, question: str) -> str:
        self.asked.append(question)
        if not self.left:
            raise EOFError
        return self.left.pop(0)


def test_a_person_is_asked_and_may_refuse(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(folder)
    wrong = call("edit_file", path=CENTS.path, old_text=CENTS.wrong.strip(), new_text=WRONG)
    right = call("edit_file", path=CENTS.path, old_text=CENTS.wrong.strip(), new_text=SHORT)
    typed = Typed(monkeypatch, "keep the modulo", "a", "n")
    model = ScriptedModel([wrong, right, "Mended."])
    assert work(folder, model, "Fix it.", "--test", QUICK) == 1
    assert told(model, "edit_file")[0] == "This call was not allowed. keep the modulo"
    assert "new_text: " + WRONG in typed.asked[0] and "Put it into" in typed.asked[2]
    assert "is as it was: you did not say yes" in capsys.readouterr().err
    assert contents(folder) == before
    typed = Typed(monkeypatch, "y")
    assert work(folder, ScriptedModel([]), "--resume") == 0
    assert len(typed.asked) == 1 and SHORT in (folder / CENTS.path).read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["Fix it."], "there is nobody to ask here"),
        (["--yes"], "say what is to be done"),
        (["Fix it.", "--resume", "--yes"], "--resume keeps the task"),
        (["--resume", "--yes"], "no run about"),
        (["Fix it.", "--yes", "--test", "'"], "the tests' command"),
        (["Fix it.", "--yes", "--test", "no-such-program"], "no-such-program"),
        (["Fix it.", "--yes", "--steps", "0"], "Limits.steps must be above 0"),
        (["Fix it.", "--yes", "--alternatives", "0"], "alternatives"),
    ],
)
def test_wrong_usage_says_so(
    folder: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    before = contents(folder)
    try:
        assert work(folder, ScriptedModel([]), *words) == 1
    except SystemExit as stop:
        assert stop.code == 2
    assert said in capsys.readouterr().err
    assert contents(folder) == before


def test_tests_are_not_run_where_they_cannot_be_isolated(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.import_module("coding_agent"), "isolation", Isolation)
    assert fix(folder, ScriptedModel([])) == 1
    assert "Not isolated on this machine: files, network, processes. --trust" in capsys.readouterr().err

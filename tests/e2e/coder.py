"""A programmer without a brain, for the coding agent: it knows what a bug looks like and how it is mended, and finds
out everything else with its tools. It remembers nothing but the conversation, so it can be killed at any point.

coder.py FOLDER COUNT   runs coding_agent.py on copies of a repository, kills each run at another touch of the system,
                        COUNT of them spread over a run and all while its change lands, and then goes on with it
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from m1agent.messages import AssistantMessage, Message, ToolCall, ToolMessage, UserMessage
from m1agent.models.scripted import ScriptedModel

ROOT = Path(__file__).parents[2]
SHELF = ROOT / "tests" / "data" / "shelf"
TEST = "PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 python -m pytest -q -p no:cacheprovider"
WHO = ("-c", "user.name=Ada", "-c", "user.email=ada@example.com")


@dataclass(frozen=True)
class Bug:
    name: str
    task: str
    path: str
    right: str
    wrong: str
    search: str
    test: str
    misstep: str = ""

    def seed(self, folder: Path) -> None:
        text = (folder / self.path).read_text()
        assert text.count(self.right) == 1
        (folder / self.path).write_text(text.replace(self.right, self.wrong))


BUGS = {one["name"]: Bug(**one) for one in json.loads((ROOT / "tests/data/shelf-bugs.json").read_text())}


def shelf(folder: Path, *bugs: Bug) -> Path:
    """A repository of the shelf with bugs, all committed."""
    shutil.copytree(SHELF, folder, ignore=shutil.ignore_patterns("__pycache__", ".pytest_cache"))
    for bug in bugs:
        bug.seed(folder)
    for words in (["init", "-q", "-b", "main"], ["add", "."], ["commit", "-qm", "Shelf"]):
        git(folder, *words)
    return folder


def git(folder: Path, *words: str) -> str:
    clean = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    done = subprocess.run(["git", *WHO, *words], cwd=folder, capture_output=True, text=True, env=clean, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file outside of .git, with its mode."""
    files = [path for path in folder.rglob("*") if path.is_file() and ".git" not in path.parts]
    return {str(path.relative_to(folder)): (path.stat().st_mode, path.read_bytes()) for path in files}


def call(name: str, **arguments: Any) -> AssistantMessage:
    return AssistantMessage(calls=(ToolCall("", name, arguments),))


def programmer(bug: Bug) -> ScriptedModel:
    """Searches, reads, runs the tests, edits what it has read, and runs the tests until they pass."""
    return ScriptedModel([lambda messages: _next(bug, list(_events(messages)))] * 200)


def _next(bug: Bug, events: list[tuple[str, str]]) -> AssistantMessage:
    last, told = events[-1]
    found, shown = (_told(events, name) for name in ("search_files", "read_file"))
    if not found:
        return call("search_files", pattern=bug.search, glob="*.py")
    path, number, _ = found.split("\n")[0].split(":", 2)
    look = call("read_file", path=path, start=max(1, int(number) - 3), lines=8)
    if last == "run_tests":
        if "The tests passed" in told:
            return AssistantMessage(f"{path} was wrong, and is mended.")
        if [name for name, _ in events].index("run_tests") < len(events) - 1:
            return look
    elif last == "edit_file" or (last == "read_file" and not _told(events, "run_tests")):
        return call("run_tests")
    elif last != "read_file":
        return look
    line = dict(line.split("\t", 1) for line in shown.split("\n") if "\t" in line)[number]
    if line == bug.right:
        return call("run_tests")
    better = bug.misstep if bug.misstep and line == bug.wrong else bug.right
    return call("edit_file", path=path, old_text=line, new_text=better)


def _told(events: list[tuple[str, str]], name: str) -> str:
    return next((told for kind, told in reversed(events) if kind == name), "")


def _events(messages: tuple[Message, ...]) -> Iterator[tuple[str, str]]:
    """What the model was told, by whom; what went wrong is by nobody."""
    for message in messages:
        if isinstance(message, UserMessage):
            yield "", message.text
        if isinstance(message, ToolMessage):
            yield from (("" if result.is_error else result.name, result.content) for result in message.results)


# Kills

TOUCHES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.symlink", "os.chmod", "subprocess.Popen"}
QUICK = """python -c 'from shelf.fines import shown; assert shown(205) == "2.05"'"""


def everywhere(place: Path, count: int) -> tuple[int, int]:
    """How many runs were killed, and how many of them while their change landed."""
    bug = BUGS["cents"]
    origin = shelf(place / "origin", bug)
    before = contents(origin)
    after = {**before, bug.path: (before[bug.path][0], (SHELF / bug.path).read_bytes())}
    everything = _touches(origin, place / "all", before, after)
    begun, over = [number for number, what in enumerate(everything, 1) if "drafts.json.new" in what][-4::2]
    spread = range(1, begun, max(1, begun // count))
    killed = [
        _killed(origin, place / f"{touch}", touch, before, after) for touch in (*spread, *range(begun, over + 3, 3))
    ]
    return sum(one is not None for one in killed), sum(one == "landing" for one in killed)


def _touches(origin: Path, place: Path, before: Any, after: Any) -> list[str]:
    """What a run touches that nobody kills."""
    assert _begin(origin, place, 0) == 0
    assert contents(place / "folder") == after
    return (place / "touches").read_text().splitlines()


def _killed(origin: Path, place: Path, touch: int, before: Any, after: Any) -> str | None:
    """Kill a run and go on with it; what state it was in, or None where it ended before."""
    status, folder = _begin(origin, place, touch), place / "folder"
    runs = Runs(folder, "coding", state=place / "state" / "m1agent")
    state = ""
    for name in runs.kept:
        with runs.resume(name) as drafts:
            state = "landing" if drafts.landing or drafts.landed else "working"
    if state != "landing":
        assert contents(folder) == before and git(folder, "status", "--porcelain") == "", touch
    again = ["--resume"] if state else [bug_text(), "--test", QUICK]
    if status != 0:
        assert _forked(place, 0, [str(folder), *again]) == 0, (touch, (place / "said").read_text())
    assert contents(folder) == after, touch
    assert runs.kept == (), touch
    return state if status else None


def bug_text() -> str:
    return BUGS["cents"].task


def _begin(origin: Path, place: Path, touch: int) -> int:
    shutil.copytree(origin, place / "folder")
    return _forked(place, touch, [str(place / "folder"), bug_text(), "--test", QUICK])


def _forked(place: Path, touch: int, words: list[str]) -> int:
    """The exit status of the agent in a process that is killed at a touch of that number; 0 for never."""
    child = os.fork()
    if not child:
        os.environ["XDG_STATE_HOME"] = str(place / "state")
        with (place / "said").open("a") as said, (place / "touches").open("w") as touches:
            sys.stdout = sys.stderr = said
            sys.addaudithook(_Killer(touch, touches))
            status = coding_agent.run([*words, "--yes", "--model", "scripted"], programmer(BUGS["cents"]))
        os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class _Killer:
    def __init__(self, touch: int, touches: TextIO) -> None:
        self._left, self._touches = touch, touches

    def __call__(self, event: str, given: tuple[Any, ...]) -> None:
        if event in TOUCHES or (event == "open" and given[2] & os.O_CREAT):
            self._touches.write(f"{event} {given}\n".replace("\n", " ").strip() + "\n")
            self._left -= 1
            if not self._left:
                os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    import coding_agent

    from m1tools.draft import Runs
    from m1tools.sandbox import isolation

    isolation()
    print(*everywhere(Path(sys.argv[1]), int(sys.argv[2])))

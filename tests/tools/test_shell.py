"""`run_command`: command lines in a folder that they may change, and nothing else."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import sys
import time
from pathlib import Path

import anyio
import pytest

from m1agent import Agent, ToolError, Toolset, load_toolset
from m1agent.messages import AssistantMessage, ToolCall
from m1agent.models.scripted import ScriptedModel
from m1tools.sandbox import Bounds, isolation
from m1tools.shell import command_words, shell

linux = pytest.mark.skipif(not isolation().namespaces, reason="no namespaces here")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / ".git/hooks").mkdir(parents=True)
    (root / "a.txt").write_text("one\ntwo\n")
    return root


@pytest.fixture
def tools(folder: Path) -> Toolset:
    return shell(folder, bounds=Bounds(seconds=5, processes=32, output=1 << 20))


def call(tools: Toolset, command: str) -> str:
    try:
        return anyio.run(tools["run_command"].call, {"command": command})
    except ToolError as error:
        return str(error)


def test_found_through_its_entry_point_and_always_asks() -> None:
    tools = load_toolset("shell")
    assert all(tool.needs_approval({"command": "ls"}) for tool in tools)


def test_nothing_runs_without_a_yes(folder: Path) -> None:
    calls = AssistantMessage(calls=(ToolCall("1", "run_command", {"command": "touch made"}),))
    result = Agent(ScriptedModel([calls]), tools=[shell(folder)]).run_sync("Go.")
    assert result.stop == "approval" and not (folder / "made").exists()


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("ls -la 'a b'", ["ls", "-la", "a b"]),
        ("git log", ["git", "log"]),
        ("ls | wc", ["/bin/sh", "-c", "ls | wc"]),
        ("cd sub", ["/bin/sh", "-c", "cd sub"]),
        ("echo $HOME", ["/bin/sh", "-c", "echo $HOME"]),
        ("A=1 env", ["/bin/sh", "-c", "A=1 env"]),
    ],
)
def test_a_shell_only_where_one_is_needed(command: str, words: list[str]) -> None:
    assert command_words(command) == words


@pytest.mark.parametrize(
    ("command", "told"), [("", "got nothing"), ("echo 'a", "No closing quotation"), ("a\0b", "NUL")]
)
def test_what_is_no_command(command: str, told: str) -> None:
    with pytest.raises(ToolError, match=told):
        command_words(command)


def test_what_it_prints(tools: Toolset) -> None:
    assert call(tools, "cat a.txt") == "one\ntwo"
    assert call(tools, "wc -l < a.txt && echo end >&2; exit 3") == "2\nend\nExit status 3."
    assert call(tools, "true") == "Nothing was printed."
    assert "Exit status 127." in call(tools, "no-such-program; true | no-such-program")


def test_a_program_that_is_not_there(folder: Path) -> None:
    for confined in (True, False):
        told = call(shell(folder, confined=confined), "no-such-program -x")
        assert told.startswith("The command was not started.") and "No such file" in told and "no-such-program" in told


@linux
@pytest.mark.slow
def test_this_interpreter_and_its_packages_are_there(tools: Toolset, folder: Path) -> None:
    (folder / "test_it.py").write_text("def test_it(tmp_path):\n    (tmp_path / 'x').write_text('x')\n")
    assert "1 passed" in call(shell(folder), "python -m pytest -q test_it.py")


def test_files_of_the_folder_are_changed(tools: Toolset, folder: Path) -> None:
    call(tools, "sed -i s/one/1/ a.txt && mkdir -p b/c && mv a.txt b/c/")
    assert (folder / "b/c/a.txt").read_text() == "1\ntwo\n"


@linux
@pytest.mark.parametrize(
    "command",
    [
        "echo x > ../escaped",
        "echo x > .git/hooks/pre-commit",
        "ln -s /bin/sh .git/hooks/post-commit",
        "mv .git elsewhere",
        "rm -rf .git",
        "chmod 777 ..",
        "touch /etc/escaped /usr/escaped",
        "cat ../secret.txt /etc/shadow ~/.ssh/id_rsa",
        "ls /root /home /var",
        "mount -t tmpfs x .",
        "kill -9 {pid}",
        "cat /proc/{pid}/environ",
    ],
)
def test_commands_stay_inside(tools: Toolset, folder: Path, command: str) -> None:
    (folder.parent / "secret.txt").write_text("swordfish")
    before = folder.parent.stat().st_mode
    told = call(tools, command.format(pid=os.getpid()))
    assert "swordfish" not in told
    assert "Exit status" in told or ".." in command, "what lies above is a folder of its own, and vanishes"
    assert folder.parent.stat().st_mode == before
    assert sorted(path.name for path in folder.parent.iterdir()) == ["root", "secret.txt"]
    assert list((folder / ".git/hooks").iterdir()) == []


@linux
@pytest.mark.parametrize("command", ["echo x > .git", "rm .git", "mv .git a", "mv a.txt .git", "ln -sf a.txt .git"])
def test_the_git_file_of_a_linked_work_tree_stays(tools: Toolset, folder: Path, command: str) -> None:
    shutil.rmtree(folder / ".git")
    (folder / ".git").write_text("gitdir: elsewhere\n")
    assert "Exit status" in call(shell(folder), command)
    assert (folder / ".git").read_text() == "gitdir: elsewhere\n"


@linux
def test_there_is_no_network_unless_asked_for(tools: Toolset, folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        code = f'import socket; socket.create_connection(("127.0.0.1", {server.getsockname()[1]}), 5)'
        connect = f"{sys.executable} -c '{code}'"
        assert "Exit status 1" in call(tools, connect)
        assert call(shell(folder, network=True), connect) == "Nothing was printed."


def test_no_secret_of_the_environment(tools: Toolset, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "swordfish")
    for made in (tools, shell(folder, confined=False)):
        told = call(made, "env; cat /proc/self/environ")
        assert "PATH=" in told and "swordfish" not in told
    assert "TOKEN=given" in call(shell(folder, environment={"TOKEN": "given"}), "env")


@pytest.mark.parametrize("confined", [True, False])
def test_bounds(folder: Path, confined: bool) -> None:
    tools = shell(folder, confined=confined, bounds=Bounds(seconds=2, output=1 << 20))
    began = time.monotonic()
    assert "stopped after 2 s" in call(tools, "trap '' TERM INT HUP; while :; do sleep 0.1; done")
    assert "printed too much" in call(tools, "yes")
    assert "stopped after 2 s" in call(tools, "exec >&- 2>&-; sleep 60")
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("confined", [True, False])
def test_what_is_left_running_is_ended(folder: Path, confined: bool) -> None:
    word = str(10_000_000 + secrets.randbelow(10_000_000))
    began = time.monotonic()
    assert "started" in call(shell(folder, confined=confined), f"sleep {word} & echo started")
    assert time.monotonic() - began < 20
    limit = time.monotonic() + 5
    while running(word) and time.monotonic() < limit:
        time.sleep(0.05)
    assert not running(word)


def running(word: str) -> bool:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if word.encode() in path.read_bytes().split(b"\0"):
                return True
        except OSError:
            continue
    return False

"""The command line, with a real engine of random weights behind it."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from m1agent.cli import main
from m1agent.tools import Tool


def test_run_prints_what_happens(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["run", "2+2?", "--model", str(folder), "--max-tokens", "20", "--seed", "3", "--show-prompt"])
    out = capsys.readouterr().out
    assert code in (0, 1)
    assert "calculate_math" in out and "user name=user" in out and "2+2?" in out
    assert "tokens read" in out and "\033" not in out


def test_a_question_from_stdin_ends_without_its_newline(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("2+2?\n"))
    main(["run", "-", "--model", str(folder), "--max-tokens", "4", "--tools", "none", "--show-prompt"])
    assert "2+2?<end_of_sentence>" in capsys.readouterr().out


def test_run_as_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["run", "Hi", "--model", str(folder), "--max-tokens", "8", "--tools", "none", "--temperature", "0", "--json"])
    data = json.loads(capsys.readouterr().out)
    assert data["stop"] in ("done", "tokens") and data["usage"]["input_tokens"] > 0 and data["calls"] == []


def test_an_mcp_command_brings_its_tools(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = f"{sys.executable} -m mcp_server_time --local-timezone UTC"
    main(["run", "Hi", "--model", str(folder), "--max-tokens", "4", "--mcp-command", command, "--show-prompt"])
    assert "mcp__get_current_time" in capsys.readouterr().out


def test_a_failing_server_is_told_and_the_run_goes_on(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["run", "Hi", "--model", str(folder), "--max-tokens", "4", "--mcp-command", "/no/such/program"])
    captured = capsys.readouterr()
    assert "'/no/such/program' was not found" in captured.err and "tokens read" in captured.out


def test_tools_and_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tools", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["maths"][0]["name"] == "calculate_math"
    assert main(["tools"]) == 0 and "calculate_math: " in capsys.readouterr().out
    assert main(["models", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bundled"] == ["m1-nano"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["run", "Hi", "--model", "nowhere"], "no model 'nowhere'"),
        (["run", "Hi", "--model", "http://gpu:8000/v1"], "openai:<model>@http://gpu:8000/v1"),
        (["serve", "--port", "99999"], "port must be at most 65535"),
        (["run", "Hi", "--tools", "nothing"], "no toolset 'nothing' is installed"),
        (["run", "Hi", "--mcp", "/no/such/file"], "cannot be read"),
        (["run", "Hi", "--mcp-command", "'"], "No closing quotation"),
        (["run", "Hi", "--temperature", "-1"], "Settings.temperature must be 0 (greedy) or a number above"),
        (["run", "Hi", "--mcp-command", ""], "needs a program to start"),
    ],
)
def test_mistakes_are_told(arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert text in error and "Traceback" not in error


def test_tools_say_what_no_grammar_enforces(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {"type": "array", "items": {"type": "string"}, "uniqueItems": True}
    invite = Tool.from_schema("invite", "Invite.", {"type": "object", "properties": {"names": names}}, lambda names: "")
    monkeypatch.setattr("m1agent.cli.installed_toolsets", lambda: ["party"])
    monkeypatch.setattr("m1agent.cli.load_toolset", lambda name: [invite])
    assert main(["tools", "--report"]) == 0
    assert "checked afterwards: uniqueItems at /properties/names" in capsys.readouterr().out
    assert main(["tools", "--report", "--json"]) == 0
    (left,) = json.loads(capsys.readouterr().out)["party"][0]["unenforced"]
    assert (left["path"], left["keyword"]) == ("/properties/names", "uniqueItems")
    assert main(["tools", "--json"]) == 0
    assert "unenforced" not in json.loads(capsys.readouterr().out)["party"][0]
    everything = Tool.from_schema("leave", "Leave.", {"type": "object", "properties": {}}, lambda: "")
    monkeypatch.setattr("m1agent.cli.load_toolset", lambda name: [everything])
    assert main(["tools", "--report"]) == 0
    assert capsys.readouterr().out.endswith("The grammar enforces all of these schemas.\n")


def test_a_terminal_without_the_letters_ends_no_run(folder: Path) -> None:
    program = "import sys; from m1agent.cli import main; sys.exit(main(sys.argv[1:]) or print('\u222b'))"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-c", program, "models"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and done.stdout.endswith("?\n") and not done.stderr


def test_ctrl_c_ends_the_wait_for_a_server(folder: Path) -> None:
    silent = f"{sys.executable} -c 'import time, sys; print(1, file=sys.stderr); time.sleep(60)'"
    command = [sys.executable, "-m", "m1agent.cli", "run", "Hi", "--model", str(folder), "--mcp-command", silent]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    time.sleep(2.5)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=15)
    assert process.returncode == 130 and "Traceback" not in error


def test_ctrl_c_leaves_cleanly(folder: Path) -> None:
    command = [sys.executable, "-m", "m1agent.cli", "run", "Hi", "--model", str(folder), "--temperature", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [*command, "--max-tokens", "100000"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    process.stdout.read(30)
    started = time.perf_counter()
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=20)
    assert process.returncode == 130 and time.perf_counter() - started < 10
    assert "Traceback" not in error and "cancelled" in out


def test_a_shell_completes_the_commands(tmp_path: Path) -> None:
    script = subprocess.run(
        [sys.executable, "-m", "m1agent.cli", "completion", "bash"], capture_output=True, timeout=60
    )
    assert script.returncode == 0, script.stderr
    asked = """
    source /dev/stdin
    COMP_WORDS=(m1agent ch) COMP_CWORD=1
    $(complete -p m1agent | sed 's/.*-F \\([^ ]*\\).*/\\1/')
    echo "${COMPREPLY[@]}"
    """
    done = subprocess.run(["bash", "-c", asked], input=script.stdout, capture_output=True, timeout=20)
    assert done.stdout.decode().split() == ["chat"], done.stderr

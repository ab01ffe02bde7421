"""Servers' questions at a real terminal."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pty = pytest.importorskip("pty", reason="no terminals of this kind here")
PROGRAM = Path(__file__).parent / "servers" / "asks_at_the_terminal.py"


def run_at_a_terminal(*answers: str | None) -> tuple[str, str]:
    """What the program prints and what it says at the terminal, given an answer to each prompt; None closes stdin."""
    ours, theirs = pty.openpty()
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, str(PROGRAM)], stdin=theirs, **pipes) as process:
        os.close(theirs)
        assert process.stdout and process.stderr
        said = b""
        for answer in answers:
            while not said.endswith((b"? ", b"] ", b": ")):
                part = os.read(process.stderr.fileno(), 4096)
                assert part, said.decode()
                said += part
            os.write(ours, b"\x04" if answer is None else answer.encode() + b"\n")
            said += b"\n"
        said += process.stderr.read()
        printed = process.stdout.read().decode()
    os.close(ours)
    assert process.returncode == 0, said.decode()
    return printed.strip(), said.decode()


def test_a_form_is_filled_in() -> None:
    printed, said = run_at_a_terminal("", "many", "99", "4", "Ada")
    assert printed.endswith(': 4 for Ada"}')
    assert "The MCP server 'full' asks: A table on Mon [2Jday for how many?" in said and "\x1b" not in said
    assert "guests (Guests; integer): " in said and "name (Name; string; default nobody): " in said
    assert 'guests: expected integer, got the string "many".' in said


def test_defaults_are_taken() -> None:
    assert run_at_a_terminal("y", "2", "")[0].endswith(': 2 for nobody"}')


@pytest.mark.parametrize("answers", [["n"], [None], ["", None]])
def test_a_person_may_refuse(answers: list[str | None]) -> None:
    assert "for" not in run_at_a_terminal(*answers)[0].replace("for parameter", "")


def test_without_a_terminal_questions_are_declined() -> None:
    done = subprocess.run([sys.executable, str(PROGRAM)], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0 and "declin" in done.stdout and "asks" not in done.stderr

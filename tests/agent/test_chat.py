"""The chat: what is typed, what is shown, branches, and a real terminal."""

from __future__ import annotations

import asyncio
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from m1agent import Agent, tool
from m1agent.chat import COMMANDS, Chat
from m1agent.cli import main
from m1agent.conversation import Conversation
from m1agent.events import RunFinished
from m1agent.models.scripted import ScriptedModel
from m1agent.show import Printer
from m1agent.store import ConversationStore

CALL = '<tool_calls>\n{"name": "wipe", "arguments": {"path": "/a"}}\n</tool_calls>'


@tool(approval=True)
def wipe(path: str) -> str:
    """Delete a file."""
    return f"wiped {path}"


def talk(replies: Iterable[Any], lines: Iterable[Any], **options: Any) -> tuple[str, Chat]:
    """What a chat shows to somebody who types `lines`, of which exceptions are raised."""
    typed = iter([*lines, EOFError()])
    asked: list[str] = []

    async def read(prompt: str) -> str:
        asked.append(prompt)
        line = next(typed)
        if isinstance(line, BaseException):
            raise line
        return line

    async def run() -> Chat:
        async with Agent(ScriptedModel(replies), tools=[wipe]) as agent:
            chat = Chat(agent, read, out, **options)
            await chat.run()
            return chat

    out = StringIO()
    chat = asyncio.run(run())
    assert next(typed, None) is None, "not everything was asked for"
    return out.getvalue(), chat


def test_questions_and_answers() -> None:
    shown, chat = talk(["One.", "<think>\nhidden\n</think>\nTwo."], ["first", "", "second"])
    assert "answer:   One." in shown and "answer:   Two." in shown
    assert "hidden" not in shown and "thinking: ..." in shown
    assert len(chat.conversation) == 4


def test_thinking_is_shown_on_demand() -> None:
    shown, _ = talk(["<think>\nseen\n</think>\nYes."], ["/thinking", "really?"])
    assert "thinking: seen" in shown


@pytest.mark.parametrize(
    ("answer", "told"),
    [("y", "wiped /a"), ("n", "not allowed"), ("", "not allowed"), ("use /b", "use /b"), (EOFError(), "not allowed")],
)
def test_calls_are_asked_about(answer: Any, told: str) -> None:
    shown, chat = talk([CALL, "Done."], ["go", answer])
    assert 'allow wipe {"path": "/a"}?' in shown
    assert told in shown
    assert "Done." in shown
    assert len(chat.conversation) == 4


def test_always_is_asked_once() -> None:
    shown, _ = talk([CALL, CALL, "Done."], ["go", "always"])
    assert shown.count("allow wipe") == 1 and shown.count("wiped /a") == 2


def test_ctrl_c_at_the_prompt_is_not_the_end() -> None:
    shown, _ = talk(["One."], [KeyboardInterrupt(), "first"])
    assert "One." in shown


def test_ctrl_c_ends_a_turn_alone() -> None:
    async def slow(_: Any) -> str:
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(30)
        return "never"

    shown, chat = talk([lambda messages: slow(messages), "After."], ["first", "second"])
    assert "stopped:  cancelled" in shown and "After." in shown
    assert chat.conversation.messages[-1].text == "After."  # type: ignore[union-attr]


def test_a_failing_model_is_told_and_the_chat_goes_on() -> None:
    shown, _ = talk([RuntimeError("no power"), "Back."], ["first", "second"])
    assert "no power" in shown and "Back." in shown


def test_where_nobody_can_be_asked_the_call_that_waits_is_named() -> None:
    result = Agent(ScriptedModel([CALL]), tools=[wipe]).run_sync("Wipe /a.")
    out = StringIO()
    Printer(out).show(RunFinished(result))
    assert "stopped:  approval: wipe must be approved, and nobody can be asked here" in out.getvalue()
    assert ", 1 step, " in out.getvalue()


def test_rewind_and_history() -> None:
    shown, chat = talk(
        ["One.", "Two.", "Three."], ["first", "second", "/history", "/rewind", "/history", "third", "/rewind 2"]
    )
    assert "1. first" in shown and "2. second" in shown and "1 turn taken back; 1 left" in shown
    assert "2 turns taken back; 0 left" in shown
    assert len(chat.conversation) == 0
    shown, chat = talk(["One."], ["first", "/rewind 2"])
    assert "/rewind takes a number from 1 to 1" in shown and len(chat.conversation) == 2


def test_a_branch_and_back() -> None:
    shown, chat = talk(["One.", "Two."], ["first", "/fork", "second", "/back", "/history"])
    assert "Back in the conversation of 1 turn." in shown
    assert [getattr(message, "text", "") for message in chat.conversation.messages] == ["first", "One."]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("/nothing", "/nothing is no command"),
        ("/rewind", "nothing was said yet"),
        ("/rewind x", "nothing was said yet"),
        ("/history", "nothing was said yet"),
        ("/back", "there is no branch"),
        ("/list", "--store FILE"),
        ("/open 7", "--store FILE"),
        ("/tools", "wipe: Delete a file."),
        ("/new", "A new conversation."),
        ("/help", "/rewind [N]"),
    ],
)
def test_commands_say_what_they_do(line: str, told: str) -> None:
    shown, _ = talk([], [line, "/quit"][:1])
    assert told in shown


def test_quit_ends_it() -> None:
    async def read(_: str) -> str:
        return "/quit"

    async def run() -> None:
        async with Agent(ScriptedModel([])) as agent:
            await Chat(agent, read, StringIO()).run()

    asyncio.run(asyncio.wait_for(run(), 10))


def test_every_command_is_in_the_help() -> None:
    shown, _ = talk([], ["/help"])
    assert all(f"/{name}" in shown for name in COMMANDS)


def test_what_a_model_writes_cannot_move_the_cursor() -> None:
    shown, _ = talk(["\x1b[2Jgone\rover"], ["first"])
    assert "\x1b" not in shown and "\r" not in shown


def test_conversations_are_kept_and_gone_on_with(tmp_path: Path) -> None:
    with ConversationStore(tmp_path / "kept.db") as store:
        _, chat = talk(["One."], ["first"], store=store)
        kept: Any = chat.conversation
        shown, other = talk(["Two."], ["/list", f"/open {kept.id}", "/fork", "second", "/back"], store=store)
        assert f"{kept.id}" in shown and "1. first" in shown
        assert len(other.conversation) == 2
        shown, _ = talk([], ["/open nowhere"], store=store)
        assert "there is no conversation 'nowhere' in the store; /list shows them" in shown
        assert {info.messages for info in store.list()} >= {2, 4}


def test_a_conversation_can_be_given(tmp_path: Path) -> None:
    async def before() -> Conversation:
        async with Agent(ScriptedModel(["One."])) as agent:
            return (await agent.run("first")).conversation

    shown, _ = talk([], ["/history"], conversation=asyncio.run(before()))
    assert "1. first" in shown


CONFIG = """
[agent]
model = "m1-nano"
tools = ["maths"]
max_tokens = 200
temperature = 0.0
store = "kept.db"
"""


def chat_at_a_terminal(folder: Path, *typed: tuple[str, bytes]) -> str:
    """What a real terminal shows; each of `typed` is sent once its first part has been shown."""
    controller, terminal = pty.openpty()
    program = subprocess.Popen(
        [sys.executable, "-m", "m1agent.cli", "chat"],
        cwd=folder,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
        env=os.environ | {"TERM": "xterm"},
    )
    os.close(terminal)
    shown, seen, waiting, end = "", 0, list(typed), time.monotonic() + 100
    try:
        while time.monotonic() < end:
            if waiting and waiting[0][0] in shown[seen:]:
                seen = len(shown)
                os.write(controller, waiting.pop(0)[1])
            if select.select([controller], [], [], 0.2)[0]:
                try:
                    part = os.read(controller, 4096)
                except OSError:  # Linux: the other end is closed
                    break
                shown += part.decode(errors="replace")
                if b"\x1b[6n" in part:
                    os.write(controller, b"\x1b[1;1R")  # where the cursor is
        assert program.wait(60) == 0, shown
    finally:
        program.kill()
        program.wait()
        os.close(controller)
    assert not waiting, shown
    return shown


def test_a_real_terminal(tmp_path: Path) -> None:
    (tmp_path / "m1agent.toml").write_text(CONFIG)
    shown = chat_at_a_terminal(
        tmp_path,
        ("you>", b"What is the derivative of 3x^2 + 2x - 1?\r"),
        ("cost:", b""),
        ("you>", b"/history\r"),
        ("1. What", b""),
        ("you>", b"\x04"),
    )
    assert "calculate_math" in shown and "6x + 2" in shown
    assert (tmp_path / "kept.db.history").stat().st_mode & 0o077 == 0
    with ConversationStore(tmp_path / "kept.db") as store:
        assert [info.messages for info in store.list()] == [4]


def test_lines_from_a_pipe(folder: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "m1agent.cli", "chat", "--model", str(folder), "--max-tokens", "4", "--tools", "none"],
        input="Hi\n/history\n",
        capture_output=True,
        text=True,
        timeout=100,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "1. Hi" in done.stdout


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[agent]\nmodle = 'x'", "agent.modle: is no field; the fields are model,"),
        ("[agent]\nmax_steps = 0", "agent.max_steps: "),
        ("[agent]\ntools = 'maths'", "agent.tools: "),
        ("[agnet]\nmodel = 'x'", "[agnet] is no table"),
        ("[agent", "m1agent.toml: "),
        ("[agent]\nmodel = 'nowhere'", "no model 'nowhere'"),
        ("[agent]\nmcp = 'none.json'", "none.json"),
    ],
)
def test_a_configuration_that_cannot_be_used(
    text: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("m1agent.toml").write_text(text)
    assert main(["run", "Hi"]) == 2
    assert told in capsys.readouterr().err


def test_the_command_line_overrules_the_configuration(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("m1agent.toml").write_text("[agent]\nmodel = 'nowhere'\nmax_tokens = 3\ntools = []")
    assert main(["run", "Hi", "--model", str(folder), "--temperature", "0"]) in (0, 1)
    assert "3 written" in capsys.readouterr().out
    assert main(["run", "Hi", "--config", "none.toml"]) == 2
    assert "none.toml: cannot be read" in capsys.readouterr().err

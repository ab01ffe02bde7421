"""Lines from a person, with editing, history and completion where that is a terminal; else from stdin."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from m1agent.chat.chat import PROMPT, Read
from m1agent.chat.commands import COMMANDS
from m1agent.threads import in_thread

if TYPE_CHECKING:
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent


def reader(history: Path | None = None) -> Read:
    """What asks for lines. `history`: a file that keeps them, readable by its owner alone."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return _piped
    return _editing(history) if find_spec("prompt_toolkit") else _bare


def _editing(history: Path | None) -> Read:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.history import FileHistory, InMemoryHistory
    from prompt_toolkit.patch_stdout import patch_stdout

    if history is not None:
        os.close(os.open(history, os.O_CREAT | os.O_APPEND, 0o600))
    lines: PromptSession[str] = PromptSession(
        history=FileHistory(history) if history is not None else InMemoryHistory(),
        completer=WordCompleter([f"/{name}" for name in COMMANDS], sentence=True),
        complete_while_typing=False,
        key_bindings=_keys(),
        multiline=True,
        prompt_continuation="...> ",
    )
    answers: PromptSession[str] = PromptSession()

    async def read(prompt: str) -> str:
        with patch_stdout():
            return await (lines if prompt == PROMPT else answers).prompt_async(prompt)

    return read


def _keys() -> KeyBindings:
    """Enter sends, Esc Enter begins a new line; a backslash before Enter does so, too."""
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()

    @keys.add("enter")
    @keys.add("c-j")  # Enter that was typed while an answer was still being written
    def _(event: KeyPressEvent) -> None:  # pyright: ignore[reportUnusedFunction]
        buffer = event.current_buffer
        if buffer.document.char_before_cursor == "\\":
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:  # pyright: ignore[reportUnusedFunction]
        event.current_buffer.insert_text("\n")

    return keys


async def _bare(prompt: str) -> str:
    return await in_thread(lambda: input(prompt))


async def _piped(prompt: str) -> str:
    line = await in_thread(sys.stdin.readline)
    if not line:
        raise EOFError
    return line.rstrip("\n")

"""A child must not outlive this process, not even where this one is killed: most servers end with their stdin, but one
that is busy may not. A shell waits for the end of a pipe that only this process holds, and then ends the child."""

from __future__ import annotations

import subprocess
from collections.abc import Generator
from contextlib import contextmanager

SHELL = "/bin/sh"
SCRIPT = """read _ || { sleep "$2"; kill -s TERM -- "-$1" && sleep "$3" && kill -s KILL -- "-$1"; }"""


@contextmanager
def ends_with_us(group: int, *, stdin_grace: float, term_grace: float) -> Generator[None]:
    """While open, the process group is ended when this process is: by SIGTERM after `stdin_grace` seconds, by SIGKILL
    after `term_grace` more. Where there is no shell, nothing is done."""
    try:
        watchdog = subprocess.Popen(
            [SHELL, "-c", SCRIPT, SHELL, str(group), str(stdin_grace), str(term_grace)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
        )
    except OSError:
        yield
        return
    try:
        yield
    finally:
        watchdog.communicate(b"\n")

"""One program, run to its end or to its bounds. What it started is gone afterwards, as far as the system can tell."""

from __future__ import annotations

import asyncio
import functools
import os
import selectors
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Literal

from m1agent.threads import in_thread
from m1tools.sandbox.bounds import Bounds
from m1tools.sandbox.capture import Capture
from m1tools.sandbox.tree import descendants, holds_more

TICK = 0.1
LAUNCHING = 4  # Processes that are not the program's: what makes the namespaces, and the launcher.
DRAIN_SECONDS = 0.5
CHUNK = 1 << 16

Stopped = Literal["", "time", "memory", "processes", "output", "cancelled"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended: `code` is the exit status (128 + n after signal n), `stopped` the bound that ended it, or ''.

    `captures` are what it wrote, to standard output and, where the streams were kept apart, to standard error.
    """

    code: int
    captures: tuple[Capture, ...]
    stopped: Stopped
    seconds: float

    @property
    def output(self) -> str:
        """What it wrote, for a model to read."""
        return self.captures[0].text()

    @property
    def errors(self) -> str:
        """What it wrote to standard error, where that was kept apart."""
        return "".join(capture.text() for capture in self.captures[1:])

    @property
    def raw(self) -> bytes | None:
        """The bytes of the output, or None where some were left out."""
        return self.captures[0].whole


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A program and how it is started. `grace` seconds lie between SIGTERM and SIGKILL; 0 kills at once."""

    words: Sequence[str]
    folder: Path
    environment: Mapping[str, str]
    stdin: bytes = b""
    apart: bool = False
    handed: tuple[int, ...] = ()
    grace: float = 0.0


async def run_bounded(command: Command, bounds: Bounds) -> Outcome:
    """Run a program within its bounds. Cancelling ends it.

    Raises:
        OSError: it cannot be started.
    """
    cancelled = threading.Event()
    try:
        return await in_thread(functools.partial(supervise, command, bounds, cancelled))
    except asyncio.CancelledError:
        cancelled.set()
        raise


def supervise(command: Command, bounds: Bounds, cancelled: threading.Event) -> Outcome:
    """Run a program within its bounds, in this thread, which must live as long as the program does."""
    began = time.monotonic()
    with tempfile.TemporaryFile() as stdin:  # A pipe would have to be fed to a program that may not read.
        stdin.write(command.stdin)
        stdin.seek(0)
        process = subprocess.Popen(
            command.words,
            cwd=command.folder,
            env=command.environment,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if command.apart else subprocess.STDOUT,
            pass_fds=command.handed,
            start_new_session=True,
        )
    run = _Run(process, bounds)
    try:
        stopped = run.watch(began + bounds.seconds, cancelled)
        run.end(command.grace if stopped else 0.0)
    finally:
        code = run.close()
    return Outcome(code, tuple(run.captures), stopped, time.monotonic() - began)


class _Run:
    def __init__(self, process: subprocess.Popen[bytes], bounds: Bounds) -> None:
        self._process, self._bounds = process, bounds
        self._selector = selectors.DefaultSelector()
        self._pipes = [pipe for pipe in (process.stdout, process.stderr) if pipe is not None]
        self.captures = [Capture(bounds.shown) for _ in self._pipes]
        for pipe, capture in zip(self._pipes, self.captures, strict=True):
            os.set_blocking(pipe.fileno(), False)
            self._selector.register(pipe, selectors.EVENT_READ, capture)
        self._pidfd: int | None = None
        with suppress(AttributeError, OSError):  # Linux alone has it; elsewhere the end is seen at the next tick.
            self._pidfd = os.pidfd_open(process.pid)
            self._selector.register(self._pidfd, selectors.EVENT_READ)

    def watch(self, deadline: float, cancelled: threading.Event) -> Stopped:
        """Read until the program ends, or say which bound it met."""
        look = time.monotonic() + TICK
        while not self._ended():
            now = time.monotonic()
            if cancelled.is_set():
                return "cancelled"
            if now >= deadline:
                return "time"
            self._read(min(TICK, deadline - now))
            if sum(capture.total for capture in self.captures) > self._bounds.output:
                return "output"
            if now >= look:
                look = now + TICK
                if stopped := self._over():
                    return stopped
        return ""

    def _over(self) -> Stopped:
        most = self._bounds.processes + LAUNCHING
        if sum(1 for _ in islice(descendants(self._process.pid), most + 1)) > most:
            return "processes"  # Before anything that takes time for each of them.
        return "memory" if holds_more(self._process.pid, self._bounds.memory) else ""

    def end(self, grace: float) -> None:
        """End the program with all of its group; then take what is left in the pipes."""
        if self._pidfd is not None:
            self._selector.unregister(self._pidfd)
        if grace and not self._ended():
            self._signal(signal.SIGTERM)
            limit = time.monotonic() + grace
            while not self._ended() and time.monotonic() < limit:
                self._read(TICK)
        self._signal(signal.SIGKILL)
        limit = time.monotonic() + DRAIN_SECONDS  # What escaped the group may hold the pipes open.
        while self._open() and time.monotonic() < limit and self._room():
            self._read(TICK)

    def close(self) -> int:
        """Wait for the program and let everything go; its exit status."""
        self._signal(signal.SIGKILL)
        code = self._process.wait()
        self._selector.close()
        for pipe in self._pipes:
            pipe.close()
        if self._pidfd is not None:
            os.close(self._pidfd)
        return 128 - code if code < 0 else code

    def _room(self) -> bool:
        return sum(capture.total for capture in self.captures) <= self._bounds.output

    def _open(self) -> bool:
        return any(isinstance(key.data, Capture) for key in self._selector.get_map().values())

    def _read(self, seconds: float) -> None:
        for key, _ in self._selector.select(max(0.0, seconds)):
            if isinstance(key.data, Capture):
                self._take(key.fileobj, key.data)  # type: ignore[arg-type]

    def _take(self, pipe: IO[bytes], capture: Capture) -> None:
        try:
            chunk = os.read(pipe.fileno(), CHUNK)
        except BlockingIOError:
            return
        if chunk:
            capture.add(chunk)
        else:
            self._selector.unregister(pipe)

    def _ended(self) -> bool:
        """Whether the program has ended. It is not reaped, so that its number still means it alone."""
        if not hasattr(os, "waitid"):
            return self._process.poll() is not None
        return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

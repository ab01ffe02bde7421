"""Workers: started on first use, kept warm, killed at the deadline, gone when the program ends."""

from __future__ import annotations

import atexit
import importlib.util
import json
import os
import subprocess
import sys
import threading
from typing import IO, Any, cast

from m1tools.symbolic.errors import MathsError
from m1tools.symbolic.phrases import read

TIME_LIMIT_S = 0.8
START_LIMIT_S = 60.0
MAX_WORKERS = 4

_BOOT = "import sys, json; sys.path[:] = json.loads(sys.argv[1]); from m1tools.symbolic.worker import main; main()"


class _WorkerDied(Exception):
    """The process ended before it replied; `timed_out` when it was killed at the deadline."""

    def __init__(self, *, timed_out: bool) -> None:
        super().__init__()
        self.timed_out = timed_out


def compute(expression: str, operation: str, *, seconds: float = TIME_LIMIT_S) -> str:
    """The answer to an operation (one of `phrases.OPERATIONS`) on an expression, computed in a worker process.

    `seconds` bounds the computation, not the start of the worker. Raises MathsError, whose text names the problem and
    the remedy, for an expression that is not mathematics, too large, without an answer, or not computed in time.
    """
    read(expression, operation)
    return _pool.call({"expression": expression, "operation": operation, "seconds": seconds}, seconds)


class _Worker:
    def __init__(self) -> None:
        environment = {**os.environ, "PYTHONHASHSEED": "0"}
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", _BOOT, json.dumps([os.path.abspath(entry) for entry in sys.path])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
        self._ready = False

    def call(self, request: dict[str, str | float], seconds: float) -> dict[str, str]:
        if not self._ready:
            self._wait_until_ready()
        try:
            stdin = cast("IO[bytes]", self.process.stdin)
            stdin.write(json.dumps(request).encode() + b"\n")
            stdin.flush()
        except OSError:
            raise _WorkerDied(timed_out=False) from None
        return self._receive(seconds)

    def _wait_until_ready(self) -> None:
        try:
            self._receive(START_LIMIT_S)
        except _WorkerDied:
            remedy = "check with: python -m m1tools.symbolic.worker"
            raise MathsError(f"the process that computes did not start; {remedy}") from None
        self._ready = True

    def _receive(self, seconds: float) -> dict[str, str]:
        expired = threading.Event()

        def expire() -> None:
            expired.set()
            self.process.kill()

        timer = threading.Timer(seconds, expire)
        timer.daemon = True
        timer.start()
        try:
            line = cast("IO[bytes]", self.process.stdout).readline()
        finally:
            timer.cancel()
            timer.join()
        if not line.endswith(b"\n"):
            raise _WorkerDied(timed_out=expired.is_set())
        return json.loads(line)

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.abandon()

    def abandon(self) -> None:
        """Close this side's pipes and leave the process to whoever started it."""
        for pipe in (self.process.stdin, self.process.stdout):
            try:
                cast("IO[Any]", pipe).close()
            except OSError:
                continue


class _Pool:
    def __init__(self) -> None:
        self._slots = threading.BoundedSemaphore(MAX_WORKERS)
        self._lock = threading.Lock()
        self._idle: list[_Worker] = []

    def call(self, request: dict[str, str | float], seconds: float) -> str:
        """One request to a worker; a worker found dead is replaced and the request sent once more."""
        with self._slots:
            for attempt in range(2):
                worker = self._take()
                try:
                    reply = worker.call(request, seconds)
                except BaseException as error:
                    worker.close()
                    self._give(self._start())
                    if not isinstance(error, _WorkerDied):
                        raise
                    if error.timed_out or attempt:
                        raise _died(error, seconds) from None
                    continue
                if "restart" in reply:
                    worker.close()
                    worker = self._start()
                self._give(worker)
                return _result(reply)
        raise AssertionError("unreachable")

    def _take(self) -> _Worker:
        with self._lock:
            while self._idle:
                worker = self._idle.pop()
                if worker.alive:
                    return worker
                worker.close()
        return self._start()

    def _start(self) -> _Worker:
        if importlib.util.find_spec("sympy") is None:
            raise MathsError("sympy is not installed. Install it with: pip install 'm1agent[tools]'.")
        return _Worker()

    def _give(self, worker: _Worker) -> None:
        with self._lock:
            self._idle.append(worker)

    def close(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
        for worker in idle:
            worker.close()

    def after_fork(self) -> None:
        """A forked child leaves the workers to its parent and starts its own."""
        idle = self._idle
        self.__init__()
        for worker in idle:
            worker.process.returncode = 0
            worker.abandon()


def _result(reply: dict[str, str]) -> str:
    if "error" in reply:
        raise MathsError(reply["error"])
    return reply["result"]


def _died(error: _WorkerDied, seconds: float) -> MathsError:
    if error.timed_out:
        return MathsError(f"the computation takes too long: stopped after {seconds:g} s. Send a simpler expression.")
    return MathsError("the computation crashed: it needs too much memory or depth. Send a simpler expression.")


_pool = _Pool()
atexit.register(_pool.close)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.after_fork)

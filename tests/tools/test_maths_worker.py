"""The processes that compute: killed, replaced, shared by threads, left behind by forks, gone at the end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from m1tools.symbolic import MathsError, compute

SLOW = ("sin(x^5+cos(tan(x)))/(x^7+ln(x)+1)", "integral")
posix = pytest.mark.skipif(not hasattr(os, "fork"), reason="POSIX processes")


def workers() -> list[int]:
    """Process ids of this process's workers."""
    children = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    return [int(pid) for file in children for pid in file.read_text().split() if _is_worker(int(pid))]


def _is_worker(pid: int) -> bool:
    return b"m1tools.symbolic.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()


def test_a_warm_call_takes_milliseconds() -> None:
    compute("1 + 1", "add")
    times: list[float] = []
    for _ in range(20):
        start = time.perf_counter()
        assert compute("3x^2 + 2x - 1", "derivative") == "6x + 2"
        times.append(time.perf_counter() - start)
    print(f"median {sorted(times)[10] * 1000:.1f} ms")
    assert sorted(times)[10] < 0.1


@posix
def test_killed_between_calls() -> None:
    compute("1 + 1", "add")
    for pid in workers():
        os.kill(pid, signal.SIGKILL)
    assert compute("2 + 2", "add") == "4"


@posix
def test_killed_during_a_call_the_next_one_works() -> None:
    compute("1 + 1", "add")
    before = set(workers())
    outcome: list[str] = []

    def call() -> None:
        try:
            outcome.append(compute(*SLOW, seconds=20))
        except MathsError as error:
            outcome.append(str(error))

    thread = threading.Thread(target=call)
    thread.start()
    deadline = time.monotonic() + 15
    while thread.is_alive() and time.monotonic() < deadline:
        for pid in workers():
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.2)
    thread.join(30)
    assert outcome and ("crashed" in outcome[0] or "did not start" in outcome[0])
    assert compute("2 + 2", "add") == "4"
    assert not before & set(workers())


def test_a_timeout_leaves_the_next_call_whole() -> None:
    with pytest.raises(MathsError, match=r"takes too long: stopped after 0\.1 s"):
        compute(*SLOW, seconds=0.1)
    assert compute("2 + 2", "add") == "4"


def test_concurrent_calls_keep_their_answers() -> None:
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda n: compute(f"{n} * {n}", "multiply"), range(60)))
    assert answers == [str(n * n) for n in range(60)]


def test_a_slow_call_does_not_delay_its_siblings() -> None:
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda n: compute(f"{n} + 1", "add"), range(8)))
        slow = threads.submit(pytest.raises, MathsError, compute, *SLOW, seconds=3.0)
        time.sleep(0.1)
        assert compute("2 + 2", "add") == "4"
        assert not slow.done()
        slow.result()


@posix
def test_a_forked_child_has_its_own_workers() -> None:
    compute("1 + 1", "add")
    program = (
        "import os\n"
        "from m1tools.symbolic import compute\n"
        "assert compute('1 + 1', 'add') == '2'\n"
        "child = os.fork()\n"
        "for n in range(20):\n"
        "    assert compute(f'{n} + {child and 1}', 'add') == str(n + (child and 1))\n"
        "if child:\n"
        "    assert os.waitpid(child, 0)[1] == 0\n"
    )
    assert run(program).returncode == 0


def run(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=60, check=False
    )


@posix
def test_nothing_is_left_when_the_program_ends() -> None:
    program = (
        "from m1tools.symbolic import compute, pool\n"
        "compute('1 + 1', 'add')\n"
        "print(*(worker.process.pid for worker in pool._pool._idle))\n"
    )
    done = run(program)
    assert done.returncode == 0 and done.stderr == ""
    (pid,) = map(int, done.stdout.split())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@posix
def test_an_orphan_ends_itself() -> None:
    program = (
        "import os, signal, threading, time\n"
        "from m1tools.symbolic import compute, pool\n"
        "compute('1 + 1', 'add')\n"
        "print(pool._pool._idle[0].process.pid, flush=True)\n"
        f"threading.Thread(target=compute, args={SLOW!r}, kwargs={{'seconds': 1.0}}).start()\n"
        "time.sleep(0.2)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    pid = int(run(program).stdout)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and Path(f"/proc/{pid}/cmdline").exists() and _is_worker(pid):
        time.sleep(0.1)
    assert not Path(f"/proc/{pid}").exists() or not _is_worker(pid)


def test_importing_the_toolset_loads_no_sympy() -> None:
    done = run("import sys, m1tools.maths; print(sorted({'sympy', 'mpmath', 'torch'} & set(sys.modules)))")
    assert done.stdout.strip() == "[]", done.stderr


def test_a_program_elsewhere_on_the_path_finds_the_worker(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text("from m1tools.maths import calculate_math\nprint(calculate_math('x^2', 'derivative'))\n")
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "2x\n"

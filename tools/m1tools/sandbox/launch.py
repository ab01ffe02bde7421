"""What stands between a namespace and the program in it: sets the bounds, gives up rights, starts it, outlives it.

Run as `python -I -S launch.py PLAN WORD...`, with a plan in JSON. It imports the standard library and its neighbours
`landlock` and `root` alone, and trusts nothing the program does: the program never runs in this process.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

CANNOT_START = 125
PREFIX = "m1agent sandbox: "
PR_SET_PDEATHSIG, PR_CAPBSET_DROP, PR_SET_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 24, 36, 38
CAPABILITIES = 64
NICE = 10  # Below who watches.
RESERVED_PIDS = 310  # Numbers that the kernel gives out once only, and a few for this file.
LINUX = sys.platform == "linux"


def main() -> None:
    """Carry out the plan."""
    plan: dict[str, Any] = json.loads(sys.argv[1])
    try:
        landlock = _neighbour("landlock") if plan["landlock"] else None
        root = _neighbour("root") if plan["root"] else None
        if plan["most_pids"]:
            Path("/proc/sys/kernel/pid_max").write_text(str(RESERVED_PIDS + plan["most_pids"]))
        if plan["own_user"]:
            _forbid_nesting()
        if root is not None:
            root.enter(**plan["root"])
        if LINUX:
            _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            _prctl(PR_SET_SUBREAPER, 1)
        child = os.fork()
        if not child:
            _become(plan, landlock, sys.argv[2:])
    except OSError as error:
        _refuse(error)
    _wait(child)


def _forbid_nesting() -> None:
    """No user namespaces inside this one, where the program would have the kernel's attention as its root."""
    Path("/proc/sys/user/max_user_namespaces").write_text("0")


def _become(plan: dict[str, Any], landlock: Any, words: list[str]) -> NoReturn:
    try:
        if LINUX:
            _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if plan["root"]:
            os.setsid()  # Out of the group of what made the namespaces. Without any, the group is how it is ended.
        _give_up_rights(plan)
        if landlock is not None:
            landlock.restrict(plan["read"], plan["write"], network=plan["network"])
        for name, value in plan["limits"].items():
            _limit(getattr(resource, name, None), value)
        os.nice(NICE)
        os.chdir(plan["folder"])
        for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, and an ignored signal is inherited.
            signal.signal(number, signal.SIG_DFL)
        _execute(words)
    except BaseException as error:
        _refuse(error)


def _execute(words: list[str]) -> NoReturn:
    try:
        os.execvp(words[0], words)
    except OSError as error:
        raise OSError(f"{words[0]}: {error.strerror}") from error


def _give_up_rights(plan: dict[str, Any]) -> None:
    if plan["user"] is not None:
        os.setgroups([])
        os.setresgid(plan["user"], plan["user"], plan["user"])
    if LINUX:
        for number in range(CAPABILITIES):
            _prctl(PR_CAPBSET_DROP, number)  # Refused for numbers this kernel has not, and without the right to.
        _prctl(PR_SET_NO_NEW_PRIVS, 1)
    if plan["user"] is not None:
        os.setresuid(plan["user"], plan["user"], plan["user"])
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # The kernel forgets it when the user changes.


def _limit(kind: int | None, value: int) -> None:
    if kind is None:
        return
    hard = resource.getrlimit(kind)[1]
    bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (bound, bound))


def _wait(child: int) -> None:
    """Reap until the program ends; then end what it left behind, and with its exit status."""
    while True:
        pid, status = os.wait()
        if pid == child:
            break
    code = os.waitstatus_to_exitcode(status)
    if os.getpid() != 1:  # The end of a namespace's first process is the end of all in it.
        _end_orphans()
    os._exit(128 - code if code < 0 else code)


def _end_orphans() -> None:
    """Kill what became this process's children, and what becomes so by that."""
    limit = time.monotonic() + 2.0
    while time.monotonic() < limit:
        try:
            listed = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        except OSError:
            return
        for pid in listed:
            os.kill(int(pid), signal.SIGKILL)
        try:
            os.wait()
        except ChildProcessError:
            return


def _neighbour(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, ctypes.c_ulong(value), 0, 0, 0)


def _refuse(error: BaseException) -> NoReturn:
    os.write(2, f"{PREFIX}{error}\n".encode())
    os._exit(CANNOT_START)


if __name__ == "__main__":
    main()

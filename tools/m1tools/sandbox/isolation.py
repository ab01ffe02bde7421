"""What this machine lets a program be kept from, found by trying."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from m1tools.sandbox import landlock, root

PROBE_SECONDS = 10.0
PID_MAX_KERNEL = (6, 14)  # Since then a process namespace has a bound of its own.
NAMESPACES = ("--mount", "--net", "--pid", "--ipc", "--uts", "--fork", "--kill-child", "--mount-proc")
PROBE = "import root, sys; root.enter(sys.argv[1], 99999, read=['/proc'], write=['/dev/null'], frozen=[], empty=[])"
Level = Literal["", "root", "user"]


@dataclass(frozen=True, slots=True)
class Isolation:
    """What a program in the sandbox is kept from.

    `namespaces`: whether it has a network, processes and a file system of its own, made as `root` or in a `user`
    namespace. `landlock`: whether the kernel's Landlock bounds the files it can reach. `counted`: whether the kernel
    bounds how many processes there are; it never counts those of root by user, only by namespace.
    """

    namespaces: Level = ""
    landlock: bool = False
    counted: bool = False

    @property
    def missing(self) -> tuple[str, ...]:
        """What the program shares with its user although it should not: of `files`, `network`, `processes` and `number
        of processes`."""
        if self.namespaces:
            return () if self.counted else ("number of processes",)
        return (*(() if self.landlock else ("files",)), "network", "processes")

    @property
    def complete(self) -> bool:
        """Whether nothing is missing."""
        return not self.missing

    @property
    def told(self) -> str:
        """What is missing, in one line; '' where nothing is."""
        if self.complete:
            return ""
        return f"Not isolated on this machine: {', '.join(self.missing)}."

    def unshare(self, *, network: bool) -> list[str]:
        """The words that put a program into its namespaces. They end it when this process ends."""
        if not self.namespaces:
            return []
        own_user = ["--user", "--map-root-user"] if self.namespaces == "user" else []
        spaces = [word for word in NAMESPACES if not (network and word == "--net")]
        return ["setpriv", "--pdeathsig", "KILL", "--", "unshare", *own_user, *spaces, "--"]


@functools.cache
def isolation() -> Isolation:
    """What this machine offers; tried once, in about a tenth of a second."""
    if sys.platform != "linux":
        return Isolation()
    level = _namespaces()
    return Isolation(
        level, landlock.version() >= landlock.TRUNCATE_ABI, bool(level) and (os.getuid() != 0 or bounds_pids())
    )


def bounds_pids() -> bool:
    """Whether `kernel.pid_max` is each process namespace's own here. Before, it was the whole machine's."""
    numbers = re.match(r"(\d+)\.(\d+)", os.uname().release)
    return numbers is not None and (int(numbers[1]), int(numbers[2])) >= PID_MAX_KERNEL


def _namespaces() -> Level:
    if not (root.supported() and shutil.which("unshare") and shutil.which("setpriv")):
        return ""
    for level in ("root", "user") if os.getuid() == 0 else ("user",):
        if _works(Isolation(level)):
            return level
    return ""


def _works(made: Isolation) -> bool:
    """Whether the namespaces can be made, with a root of their own."""
    with tempfile.TemporaryDirectory() as folder:
        python = [sys.executable, "-S", "-c", PROBE, folder]
        try:
            done = subprocess.run(
                [*made.unshare(network=False), *python],
                cwd=Path(__file__).parent,
                capture_output=True,
                timeout=PROBE_SECONDS,
                stdin=subprocess.DEVNULL,
            )
        except (OSError, subprocess.TimeoutExpired):
            return False
    return not done.returncode

"""A place to run programs in."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from m1tools.sandbox.bounds import Bounds
from m1tools.sandbox.isolation import Isolation, bounds_pids, isolation
from m1tools.sandbox.process import Command, Outcome, run_bounded

KEPT = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ")
SYSTEM = (
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/nix/store",
    "/proc",
)  # The last is the namespace's own.
SETTINGS = ("ld.so.cache", "ld.so.conf", "ld.so.conf.d", "alternatives", "localtime", "timezone", "fonts", "mime.types")
NAMES = ("nsswitch.conf", "passwd", "group", "hosts", "host.conf", "protocols", "services", "ssl/certs")
NETWORK = ("resolv.conf", "gai.conf")
DEVICES = ("null", "zero", "full", "random", "urandom")
FRESH_USERS = range(1_900_000_000, 2_000_000_000)  # Nobody's, and outside of what containers map.
HOME = "/box"
CANNOT_START, PREFIX = 125, "m1agent sandbox: "  # As in launch.py, which is not to be imported.
LAUNCHER = Path(__file__).with_name("launch.py")
ENVIRONMENT = {"TERM": "dumb", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1"}


def clean_environment(home: str, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """An environment without secrets: where programs are, language and time zone, a home, and what is given."""
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    return {
        "PATH": os.defpath,
        **kept,
        "HOME": home,
        "TMPDIR": "/tmp" if home == HOME else home,
        **ENVIRONMENT,
        **(extra or {}),
    }


@dataclass(frozen=True, slots=True)
class Sandbox:
    """Where programs run, and what they may use.

    `read` and `write` are the folders they may; `frozen` folders inside those of `write` stay as they are. With
    `network` they have the machine's. Where root runs them they are a user of nobody's, unless they write or
    `same_user` keeps them root, without its rights. `environment` is added to a clean one. `isolation` is what keeps
    them in, by default all that this machine has.
    """

    bounds: Bounds = field(default_factory=Bounds)
    read: tuple[Path, ...] = ()
    write: tuple[Path, ...] = ()
    frozen: tuple[Path, ...] = ()
    network: bool = False
    same_user: bool = False
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    isolation: Isolation = field(default_factory=isolation)

    async def run(
        self,
        words: Sequence[str],
        *,
        folder: Path | None = None,
        stdin: bytes = b"",
        handed: tuple[int, ...] = (),
        apart: bool = False,
    ) -> Outcome:
        """Run a program; in `folder`, or in the empty one it is given. `handed` are descriptors it inherits; `apart`
        keeps its standard error from its output.

        Raises:
            OSError: the sandbox cannot be made, or there is no such program in it.
        """
        with self._scratch() as scratch:
            user = self._user()
            if user is not None:
                os.chown(scratch, user, user)
            home = HOME if self.isolation.namespaces else str(scratch)
            command = Command(
                words=[*self._launcher(str(scratch), home, folder, user), *words],
                folder=scratch,
                environment=clean_environment(home, self.environment),
                stdin=stdin,
                handed=handed,
                apart=apart,
            )
            outcome = await run_bounded(command, self.bounds)
        if outcome.code == CANNOT_START:
            said = outcome.errors if apart else outcome.output
            if said.startswith(PREFIX):
                raise OSError(said.removeprefix(PREFIX).strip())
        return outcome

    def _launcher(self, scratch: str, home: str, folder: Path | None, user: int | None) -> list[str]:
        bounds, spaces = self.bounds, self.isolation.namespaces
        read = [*self._system(), *map(str, self.read)]
        devices, given, frozen = [f"/dev/{name}" for name in DEVICES], [*map(str, self.write)], [*map(str, self.frozen)]
        empty = [home, "/dev/shm"]
        root = {
            "base": scratch,
            "size": bounds.scratch,
            "read": read,
            "write": [*devices, *given],
            "frozen": frozen,
            "empty": empty,
        }
        plan = {
            "root": root if spaces else None,
            "own_user": spaces == "user",
            "most_pids": bounds.processes if spaces and bounds_pids() else 0,
            "user": user,
            "landlock": self.isolation.landlock,
            "network": self.network,
            "read": read,
            "write": [*devices, *given, *([*empty, "/tmp"] if spaces else [scratch])],
            "folder": str(folder or home),
            "limits": self._limits(),
        }
        return [*self.isolation.unshare(network=self.network), *interpreter(), str(LAUNCHER), json.dumps(plan)]

    def _limits(self) -> dict[str, int]:
        """By the names of `resource`. Processes are counted by user, which means something in a namespace only."""
        bounds = self.bounds
        counted = {"RLIMIT_NPROC": bounds.processes} if self.isolation.namespaces else {}
        return counted | {
            "RLIMIT_AS": bounds.memory,
            "RLIMIT_CORE": 0,
            "RLIMIT_CPU": max(1, round(bounds.seconds) + 1),
            "RLIMIT_FSIZE": bounds.file_size,
            "RLIMIT_NOFILE": 512,
            "RLIMIT_MEMLOCK": 1 << 16,
            "RLIMIT_MSGQUEUE": 0,
        }

    def _system(self) -> Iterator[str]:
        yield from SYSTEM
        for name in (*SETTINGS, *NAMES, *(NETWORK if self.network else ())):
            yield f"/etc/{name}"

    def _user(self) -> int | None:
        """As root: a user that is nobody else's, so that its processes can be counted and no file is its own; None
        where that user could not read what it must."""
        if self.isolation.namespaces != "root" or self.write or self.same_user:
            return None
        must = [Path(os.path.realpath(sys.executable)), *(path for path in self.read if path.exists())]
        if not all(path.stat().st_mode & 0o004 for path in must):
            return None
        return FRESH_USERS[secrets.randbelow(len(FRESH_USERS))]

    @contextmanager
    def _scratch(self) -> Generator[Path]:
        made = Path(tempfile.mkdtemp(prefix="m1agent-run-")).resolve()
        try:
            yield made
        finally:
            shutil.rmtree(made, ignore_errors=True)


def interpreter() -> list[str]:
    """This Python, without anything of its user."""
    return [sys.executable, "-I", "-S"]

"""git, run on one repository that may be anybody's."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from m1agent import ToolError
from m1tools.git.config import environment, overrides, unknown
from m1tools.sandbox import Bounds, Command, Outcome, Sandbox, clean_environment, isolation, run_bounded

BOUNDS = Bounds(seconds=60, memory=4 << 30, file_size=1 << 30, shown=16_000, output=64 << 20)
IDENTITY = ("user.name", "user.email", "core.excludesfile")
GRACE = 2.0
ERRORS = 3
QUIET = {
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_PAGER": "cat",
    "PAGER": "cat",
    "GIT_EDITOR": "false",
    "GIT_ASKPASS": "",
    "SSH_ASKPASS": "",
    "LC_ALL": "C.UTF-8",
}
ALONE = {
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_ATTR_NOSYSTEM": "1",
    "GIT_ALLOW_PROTOCOL": "none",
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_SSH_COMMAND": "false",
}


class Repository:
    """The repository whose work tree is `root`.

    One that is not `trusted` runs nothing that it names itself, reads nothing outside of `root`, and is held in a
    sandbox where this machine has one. A trusted one is used as its user would, with hooks, filters and their settings.
    """

    def __init__(self, root: str | os.PathLike[str], *, trusted: bool) -> None:
        self.root, self._trusted = Path(root).resolve(), trusted
        self._command = (shutil.which("git") or "git", "--no-pager", "--literal-pathspecs")
        self._home = os.path.expanduser("~")
        self._identity: dict[str, str] | None = None

    async def run(self, *words: str, stdin: str | bytes = "", writes: bool = False, index: Path | None = None) -> str:
        """What a git command prints. `index` is a file that it takes for the repository's.

        Raises:
            ToolError: it failed, or the repository is not to be used.
        """
        return (await self._done(words, BOUNDS, stdin, writes=writes, index=index)).output.rstrip("\n")

    async def read(self, *words: str) -> bytes:
        """The bytes that a git command which changes nothing prints; many, if need be. Raises as `run`."""
        outcome = await self._done(words, replace(BOUNDS, shown=BOUNDS.output), apart=True)
        assert outcome.raw is not None
        return outcome.raw

    async def _done(
        self,
        words: Sequence[str],
        bounds: Bounds,
        stdin: str | bytes = "",
        *,
        writes: bool = False,
        index: Path | None = None,
        apart: bool = False,
    ) -> Outcome:
        if shutil.which(self._command[0]) is None:
            raise ToolError("git is not installed here.")
        self._check_place()
        given = stdin if isinstance(stdin, bytes) else stdin.encode("utf-8", "replace")
        outcome = await self._start(
            words, await self._settings(), given, bounds, writes=writes, index=index, apart=apart
        )
        if outcome.stopped:
            raise ToolError(f"git {words[0]}: stopped after {outcome.seconds:.0f} s. Ask for less, such as one path.")
        if outcome.code:
            raise ToolError(_reason(words[0], outcome))
        return outcome

    def _check_place(self) -> None:
        place = self.root / ".git"
        if not os.path.lexists(place):
            raise ToolError("This folder is not the top of a git repository.")
        if self._trusted:
            return
        leads = [place] if place.is_symlink() or not place.is_dir() else list(self._elsewhere(place))
        if leads:
            where = leads[0].relative_to(self.root)
            raise ToolError(f"{where}: it leads to another repository, so it is not used. A person can trust it.")

    def _elsewhere(self, place: Path) -> Iterator[Path]:
        for name in ("commondir", "objects/info/alternates"):
            if os.path.lexists(place / name):
                yield place / name
        for name in ("config", "config.worktree", "HEAD", "index", "objects", "refs", "packed-refs", "logs"):
            if (place / name).is_symlink():
                yield place / name

    async def _settings(self) -> dict[str, str]:
        if self._trusted:
            return {}
        # Reading settings runs nothing, so it needs no sandbox.
        words = ("config", "--list", "--name-only", "--includes", "-z")
        listed = await self._bare(words, {**QUIET, **self._alone()})
        if listed.code or listed.raw is None:
            raise ToolError("The repository's settings cannot be read, or are too long. A person can trust it.")
        names = sorted({os.fsdecode(name) for name in listed.raw.split(b"\0") if name})
        if strange := list(unknown(names)):
            told = ", ".join(strange[:3])
            raise ToolError(
                f"The repository's settings may run programs ({told}), so it is not used. A person can trust it."
            )
        if self._identity is None:
            self._identity = await self._ask_identity()
        return overrides(names) | {name: value for name, value in self._identity.items() if name not in names}

    async def _ask_identity(self) -> dict[str, str]:
        """Who the user is, by their own settings."""
        found: dict[str, str] = {}
        for name in IDENTITY:
            command = Command(
                words=[*self._command, "config", "--global", "--get", name],
                folder=Path("/"),
                environment=clean_environment(self._home),
                apart=True,
            )
            outcome = await run_bounded(command, BOUNDS)
            if not outcome.code and outcome.output.strip():
                found[name] = outcome.output.strip()
        return found

    async def _start(
        self,
        words: Sequence[str],
        settings: dict[str, str],
        stdin: bytes,
        bounds: Bounds,
        *,
        writes: bool,
        index: Path | None,
        apart: bool,
    ) -> Outcome:
        optional = {} if writes else {"GIT_OPTIONAL_LOCKS": "0"}
        other = {} if index is None else {"GIT_INDEX_FILE": str(index)}
        given = {**QUIET, **self._alone(), **optional, **other, **environment(settings)}
        command = [*self._command, *words]
        if not self._trusted and isolation().namespaces:
            sandbox = self._sandbox(given, bounds, writes=writes)
            return await sandbox.run(command, folder=self.root, stdin=stdin, apart=apart)
        return await self._bare(words, given, stdin, bounds, apart=apart)

    async def _bare(
        self,
        words: Sequence[str],
        given: dict[str, str],
        stdin: bytes = b"",
        bounds: Bounds = BOUNDS,
        *,
        apart: bool = False,
    ) -> Outcome:
        command = Command(
            words=[*self._command, *words],
            folder=self.root,
            environment=clean_environment(self._home, given),
            stdin=stdin,
            grace=GRACE,
            apart=apart,
        )
        return await run_bounded(command, bounds)

    def _alone(self) -> dict[str, str]:
        """What keeps git to this repository, unless it is trusted."""
        places = {"GIT_DIR": str(self.root / ".git"), "GIT_WORK_TREE": str(self.root)}
        return {} if self._trusted else {**ALONE, **places}

    def _sandbox(self, given: dict[str, str], bounds: Bounds, *, writes: bool) -> Sandbox:
        place = self.root / ".git"
        frozen = tuple(path for name in ("config", "hooks", "info") if (path := place / name).exists())
        return Sandbox(
            bounds,
            read=() if writes else (self.root,),
            write=(self.root,) if writes else (),
            frozen=frozen if writes else (),
            same_user=True,
            environment=given,
        )


def _reason(command: str, outcome: Outcome) -> str:
    lines = [
        line
        for line in (outcome.errors or outcome.output).splitlines()
        if line.strip() and not line.startswith("hint:")
    ]
    return f"git {command}: " + "\n".join(line.removeprefix("fatal: ") for line in lines[:ERRORS])

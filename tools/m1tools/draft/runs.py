"""Drafts of a folder that outlive a program, found again by the folder."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from m1tools.draft.drafts import STATE, Drafts
from m1tools.draft.errors import DraftError


class Runs:
    """The runs of one kind about one folder. Each has drafts in a folder of its own in `place`, named by its time.

    Args:
        folder: what the drafts are copies of.
        kind: which program they belong to.
        state: where all are kept; by default the user's folder for state (`XDG_STATE_HOME`).
    """

    def __init__(
        self, folder: str | os.PathLike[str], kind: str, *, state: str | os.PathLike[str] | None = None
    ) -> None:
        self.folder = Path(folder).resolve()
        home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
        known = hashlib.sha256(os.fsencode(self.folder)).hexdigest()[:8]
        self.place = Path(state or Path(home, "m1agent")) / kind / f"{self.folder.name}-{known}"

    @property
    def kept(self) -> tuple[str, ...]:
        """The names of the runs that can be gone on with, the last one last."""
        return tuple(sorted(found.parent.name for found in self.place.glob(f"*/{STATE}")))

    async def begin(self, note: Mapping[str, Any] | None = None, *, trusted: bool = False) -> Drafts:
        """A new run; arguments and errors are those of `Drafts.begin`.

        Raises:
            DraftError: another run was killed while it landed, which is to be finished first.
        """
        for name in self.kept:
            if self._is_half(name):
                raise DraftError(f"a change was put in by half; finish that first, by going on with run {name}")
        place = self.place / f"{time.strftime('%Y%m%d-%H%M%S')}-{time.time_ns() % 1_000_000_000:09d}"
        place.mkdir(0o700, parents=True)
        try:
            return await Drafts.begin(self.folder, place, trusted=trusted, note=note)
        except BaseException:
            shutil.rmtree(place)
            raise

    def _is_half(self, name: str) -> bool:
        with suppress(DraftError), Drafts.open(self.place / name) as drafts:  # One that is in use will end by itself.
            return bool(drafts.landing)
        return False

    def resume(self, name: str = "") -> Drafts:
        """The drafts of a run, the last one where none is named.

        Raises:
            DraftError: there is none, or another program has it.
        """
        found = [one for one in self.kept if name in ("", one)]
        if not found:
            raise DraftError(f"there is no run {name}".rstrip() + f" about {self.folder} to go on with")
        return Drafts.open(self.place / found[-1])

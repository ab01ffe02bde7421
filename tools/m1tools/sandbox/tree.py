"""What a process and its descendants hold, as Linux tells it; elsewhere nothing is known."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

PROC = Path("/proc")
PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


def descendants(pid: int) -> Iterator[int]:
    """`pid` and every process below it."""
    yield pid
    for listing in (PROC / str(pid) / "task").glob("*/children"):
        with suppress(OSError):  # The thread has ended.
            for child in listing.read_text().split():
                yield from descendants(int(child))


def holds_more(pid: int, memory: int) -> bool:
    """Whether `pid` and its descendants hold more than `memory` bytes together.

    Pages that several share are counted once, but only where counting them for each gives too much: that takes longer.
    """
    family = list(descendants(pid))
    if sum(map(_resident, family)) <= memory:
        return False
    return sum(map(_share, family)) > memory


def _resident(pid: int) -> int:
    try:
        return int((PROC / str(pid) / "statm").read_text().split()[1]) * PAGE
    except (OSError, IndexError):
        return 0


def _share(pid: int) -> int:
    try:
        for line in (PROC / str(pid) / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return _resident(pid)

"""Documents read apart: a parser of PDF, DOCX or HTML meets files of strangers, so it runs in a sandbox."""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, Literal

from m1agent import ToolError
from m1tools.formats.section import Extracted, Limits, bounded
from m1tools.sandbox import Bounds, Outcome, Sandbox

PACKAGE = Path(__file__).parents[1]
SPENT = 152  # 128 + SIGXCPU
Kind = Literal["pdf", "docx", "html", "page", "markdown"]


async def extract(
    name: str, data: bytes, kind: Kind, limits: Limits, *, charset: str = "", address: str = ""
) -> Extracted:
    """What a document holds. `name` is what errors call it; `charset` and `address` are what a server said of it.

    Raises:
        ToolError: it is damaged, encrypted, or over a limit; one sentence says which.
    """
    if len(data) > limits.size:
        raise ToolError(f"{name}: expected at most {limits.size} bytes, got {len(data)}.")
    options = {"limits": asdict(limits), "charset": charset, "address": address}
    with tempfile.TemporaryFile() as source, tempfile.TemporaryFile() as target:
        source.write(data)
        source.flush()
        handed = (source.fileno(), target.fileno())
        words = [sys.executable, "-P", "-m", "m1tools.formats.worker", kind, *map(str, handed), json.dumps(options)]
        outcome = await _sandbox(limits).run(words, handed=handed)
        answer = _answer(target, limits)
    if answer is None:
        raise ToolError(f"{name}: {_why(outcome, limits)}")
    if "error" in answer:
        raise ToolError(f"{name}: {answer['error']}")
    return bounded(Extracted.from_json(answer), limits)


def _sandbox(limits: Limits) -> Sandbox:
    readable = (Path(sys.base_prefix), Path(sys.prefix), PACKAGE.parent)  # To be imported, a folder must be listed.
    bounds = Bounds(
        seconds=limits.seconds, memory=limits.memory, processes=8, file_size=_largest(limits), output=1 << 20
    )
    return Sandbox(bounds, read=readable, environment={"PYTHONPATH": str(PACKAGE.parent), "OMP_NUM_THREADS": "1"})


def _largest(limits: Limits) -> int:
    """Bytes of an answer: JSON spells a character in at most 12, and a section's frame in few."""
    return 12 * limits.characters + 8000 * min(limits.pages, 100_000) + (1 << 20)


def _answer(target: IO[bytes], limits: Limits) -> dict[str, Any] | None:
    target.seek(0)
    data = target.read(_largest(limits) + 1)
    try:
        return json.loads(data) if data else None
    except ValueError:
        return None


def _why(outcome: Outcome, limits: Limits) -> str:
    if outcome.stopped == "time" or outcome.code == SPENT:
        return f"reading it took more than {limits.seconds:g} s. It may be meant to do harm."
    if outcome.stopped == "memory" or outcome.code in (134, 137, 139):
        return "it takes more memory than is allowed, or crashes its reader. It may be meant to do harm."
    last = outcome.output.strip().rpartition("\n")[2][:200]
    return f"it cannot be read (exit status {outcome.code}{': ' if last else ''}{last})."

"""Guards: what may go in, and what may come out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from m1agent.hooks import settled
from m1agent.messages import Message


@dataclass(frozen=True, slots=True)
class Block:
    """The run ends with `stop == "blocked"`; `reason` is in its result."""

    reason: str


@dataclass(frozen=True, slots=True)
class Retry:
    """The answer is not accepted; the model is told `feedback` and answers again."""

    feedback: str


InputGuard: TypeAlias = Callable[[Sequence[Message]], "Block | Awaitable[Block | None] | None"]
OutputGuard: TypeAlias = Callable[[Any], "Block | Retry | Awaitable[Block | Retry | None] | None"]


async def judged(guards: Iterable[Callable[[Any], Any]], value: Any) -> Block | Retry | None:
    """The first objection of a guard, asked in order. Raises TypeError for an answer that is none."""
    for guard in guards:
        verdict = await settled(guard(value))
        if isinstance(verdict, Block | Retry):
            return verdict
        if verdict is not None:
            raise TypeError(f"a guard returns None, Block('why') or Retry('feedback'), not {verdict!r}")
    return None

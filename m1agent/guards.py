"""Guards: what may go in, and what may come out.

A guard returns None where it has no objection; it may be async. One that raises ends the run with `stop == "error"`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from m1agent.errors import GuardError
from m1agent.hooks import settled
from m1agent.messages import Message
from m1agent.problems import shown
from m1agent.schema import function_name


@dataclass(frozen=True, slots=True)
class Block:
    """The run ends with `stop == "blocked"`; `reason` is in its result."""

    reason: str


@dataclass(frozen=True, slots=True)
class Retry:
    """The answer is not accepted; the model is told `feedback`, may call tools, and answers again."""

    feedback: str


InputGuard: TypeAlias = Callable[[Sequence[Message]], "Block | Awaitable[Block | None] | None"]
OutputGuard: TypeAlias = Callable[[Any], "Block | Retry | Awaitable[Block | Retry | None] | None"]


async def judged(guards: Iterable[Callable[[Any], Any]], value: Any) -> Block | Retry | None:
    """The first objection of a guard, asked in order.

    Raises:
        GuardError: a guard raised; nobody knows whether what it looked at may pass.
        TypeError: a guard returned something that is no verdict.
    """
    for guard in guards:
        try:
            verdict = await settled(guard(value))
        except Exception as error:
            raise GuardError(f"{function_name(guard)} raised {type(error).__name__}: {error}") from error
        if isinstance(verdict, Block | Retry):
            return verdict
        if verdict is not None:
            raise TypeError(f"a guard returns None, Block('why') or Retry('feedback'), not {shown(verdict)}")
    return None

"""Our calls that a server is working on: what it asks of our model meanwhile is theirs to pay for."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from m1agent.context import Context

SAMPLES = 8


@dataclass(slots=True, eq=False)
class _Call:
    context: Context[Any]
    samples: int = 0


# Newer servers ask in the answer to a call, so the request is served in that call's own context.
_here: ContextVar[_Call | None] = ContextVar("m1agent_mcp_call", default=None)


class RunningCalls:
    """The calls under way at one server, the oldest first. Each lets the server ask the model `SAMPLES` times."""

    def __init__(self) -> None:
        self._calls: list[_Call] = []

    def __bool__(self) -> bool:
        return bool(self._calls)

    @contextmanager
    def call(self, context: Context[Any]) -> Generator[None]:
        """The call of this context is under way while the block is open."""
        call = _Call(context)
        self._calls.append(call)
        token = _here.set(call)
        try:
            yield
        finally:
            _here.reset(token)
            self._calls.remove(call)

    def take_sample(self) -> Context[Any] | None:
        """Whom a request for the model is charged to, or None when no call has one left.

        It is the call that the request came with. The older protocol tells none: there it is the oldest.
        """
        candidates = [call for call in self._calls if call is _here.get()] or self._calls
        call = next((call for call in candidates if call.samples < SAMPLES), None)
        if call is None:
            return None
        call.samples += 1
        return call.context

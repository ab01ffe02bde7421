"""Taking part in a run: a few typed moments. Those who only want to watch use `m1agent.observe`."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar, cast

from m1agent.context import Context
from m1agent.messages import ToolCall, ToolOutput, ToolResult

T = TypeVar("T")
BeforeCall: TypeAlias = Callable[
    [Context[Any], ToolCall], "ToolCall | ToolOutput | Awaitable[ToolCall | ToolOutput | None] | None"
]
AfterCall: TypeAlias = Callable[
    [Context[Any], ToolCall, ToolResult], "ToolResult | Awaitable[ToolResult | None] | None"
]


@dataclass(frozen=True, slots=True)
class Hooks:
    """Functions, sync or async, that may change what happens. What one raises is the result of the call.

    `before_call(context, call)`: None lets the call run; a `ToolCall` runs in its place (its arguments are validated
    again); a `ToolOutput` is the result, and nothing runs. `after_call(context, call, result)`: None keeps the result,
    another `ToolResult` replaces it.
    """

    before_call: BeforeCall | None = None
    after_call: AfterCall | None = None

    @property
    def any(self) -> bool:
        return self.before_call is not None or self.after_call is not None


async def settled(value: T | Awaitable[T]) -> T:
    """What a sync or async function returned."""
    return cast("T", await value if inspect.isawaitable(value) else value)

"""Taking part in a run: a few typed moments. Those who only want to watch use `m1agent.observe`."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar, cast

from m1agent.context import Context
from m1agent.messages import ToolCall, ToolOutput, ToolResult
from m1agent.problems import shown

T = TypeVar("T")
BeforeCall: TypeAlias = Callable[
    [Context[Any], ToolCall], "ToolCall | ToolOutput | Awaitable[ToolCall | ToolOutput | None] | None"
]
AfterCall: TypeAlias = Callable[
    [Context[Any], ToolCall, ToolResult], "ToolResult | Awaitable[ToolResult | None] | None"
]


@dataclass(frozen=True, slots=True)
class Hooks:
    """Functions, sync or async, that may change what happens. They run after a call was approved, in the event loop.
    The calls they are given are copies: changing one in place changes nothing.

    `before_call(context, call)`: None lets the call run; a `ToolCall` runs in its place (its arguments are validated
    again, nobody is asked again); a `ToolOutput` is the result, and nothing runs. What it raises is the result.
    `after_call(context, call, result)`: None keeps the result, an error or not; another `ToolResult` replaces it, and
    so does what it raises.
    """

    before_call: BeforeCall | None = None
    after_call: AfterCall | None = None

    @property
    def any(self) -> bool:
        """Whether there is one."""
        return self.before_call is not None or self.after_call is not None

    async def before(self, context: Context[Any], call: ToolCall) -> ToolCall | ToolOutput | None:
        """What `before_call` says. Raises TypeError where that makes no sense."""
        given: Any = await settled(self.before_call(context, call)) if self.before_call is not None else None
        if given is None or isinstance(given, ToolCall | ToolOutput):
            return given
        raise TypeError(f"before_call returns None, a ToolCall or a ToolOutput, not {shown(given)}")

    async def after(self, context: Context[Any], call: ToolCall, result: ToolResult) -> ToolResult:
        """The result after `after_call`. Raises TypeError where it returned something else."""
        given: Any = await settled(self.after_call(context, call, result)) if self.after_call is not None else None
        if given is None or isinstance(given, ToolResult):
            return result if given is None else given
        raise TypeError(f"after_call returns None or a ToolResult, not {shown(given)}")


async def settled(value: T | Awaitable[T]) -> T:
    """What a sync or async function returned."""
    return cast("T", await value if inspect.isawaitable(value) else value)

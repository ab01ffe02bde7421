"""What a tool may know of the run that calls it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic

from typing_extensions import TypeVar

from m1agent.limits import Limits
from m1agent.messages import Message, ToolCall, Usage

if TYPE_CHECKING:
    from m1agent.models.base import Model

Deps = TypeVar("Deps", default=None)


@dataclass(frozen=True, slots=True)
class Context(Generic[Deps]):
    """The run behind a call. A tool asks for it with a first parameter of this type, which no schema shows.

        @tool
        def orders(context: Context[Database], customer: str) -> list[str]:
            '''Orders of a customer.'''
            return context.deps.orders(customer)

    `deps` is what the run was started with (`Agent.run(..., deps=...)`), `call` the call being answered, `model` the
    agent's model. `ask` answers for calls that a person must approve, or is None. The other fields are what the methods
    reach the run by.
    """

    deps: Deps
    call: ToolCall
    model: Model | None = None
    ask: Callable[[Any], Any] | None = field(default=None, repr=False)
    on_progress: Callable[[str, float | None], None] = field(default=lambda message, fraction: None, repr=False)
    on_usage: Callable[[Usage], None] = field(default=lambda usage: None, repr=False)
    on_messages: Callable[[], tuple[Message, ...]] = field(default=lambda: (), repr=False)
    on_left: Callable[[], Limits | None] = field(default=lambda: Limits(steps=None), repr=False)

    @property
    def messages(self) -> tuple[Message, ...]:
        """The conversation up to the call; copied at each asking."""
        return self.on_messages()

    @property
    def left(self) -> Limits | None:
        """The tokens that are left to the run just now, as limits; None where they are used up."""
        return self.on_left()

    def progress(self, message: str = "", fraction: float | None = None) -> None:
        """Tell how far the work is: a `ToolProgress` event. `fraction` runs from 0 to 1. Any thread may call it.

        Raises:
            TypeError: `message` is no text, or `fraction` no number.
            ValueError: `fraction` is not between 0 and 1.
        """
        given: Any = message
        if not isinstance(given, str):
            raise TypeError(f"progress: message must be text, not {given!r}")
        _check_fraction(fraction)
        self.on_progress(message, fraction)

    def charge(self, usage: Usage) -> None:
        """Count tokens that were spent on behalf of this call, such as those of another agent. Any thread may call
        it. Raises TypeError for anything but a `Usage`."""
        given: Any = usage
        if not isinstance(given, Usage):
            raise TypeError(f"charge takes a Usage, such as Usage(output_tokens=5), not {given!r}")
        self.on_usage(usage)


def _check_fraction(given: Any) -> None:
    if given is None:
        return
    if isinstance(given, bool) or not isinstance(given, int | float):
        raise TypeError(f"progress: fraction must be a number from 0 to 1, or None, not {given!r}")
    if not 0 <= given <= 1:
        raise ValueError(f"progress: fraction must be between 0 and 1, not {given!r}")

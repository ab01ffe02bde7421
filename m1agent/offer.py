"""What the next reply of a run may be. The prompt names all tools all the same, so that it only grows."""

from __future__ import annotations

from collections.abc import Callable

from m1agent.messages import ToolSpec
from m1agent.output import Output
from m1agent.prompt.envelope import Envelope, Named, ToolChoice
from m1agent.tools import Tool
from m1agent.toolset import Toolset


class Offer:
    """The tools a reply may call, or the answer it must be.

    Equal replies share one envelope, so that a grammar is compiled once.

    Args:
        tools: all tools of the run.
        output: the type of the answer, where it is not text.
        worn_out: whether a tool is offered no more.
    """

    def __init__(self, tools: Toolset, output: Output | None, worn_out: Callable[[Tool], bool]) -> None:
        self._tools = tools
        self._output = output
        self._worn_out = worn_out
        self._changing = any(tool.available or tool.retries for tool in tools)
        self._made: dict[tuple[ToolChoice, tuple[str, ...]], Envelope] = {}
        self._all = tools.specs

    def envelope(self, choice: ToolChoice, *, answer: bool) -> Envelope:
        """A reply of that choice; with `answer` the final one. What is said beside calls is JSON where the output has
        a type."""
        specs = self._usable() if self._changing else self._all
        key = (self._possible(choice, specs, answer=answer), tuple(spec.name for spec in specs))
        if key not in self._made:
            schema = self._output.schema if self._output is not None and key[0] in ("auto", "none") else None
            self._made[key] = Envelope(specs, key[0], answer=schema)
        return self._made[key]

    def _possible(self, choice: ToolChoice, specs: tuple[ToolSpec, ...], *, answer: bool) -> ToolChoice:
        if answer or (choice == "auto" and not specs):
            return "none"
        left = {spec.name for spec in specs}
        named = isinstance(choice, Named) and choice.name in self._tools and choice.name not in left
        if named or (choice == "required" and len(self._tools) and not left):
            return "auto" if left else "none"
        return choice

    def _usable(self) -> tuple[ToolSpec, ...]:
        return tuple(tool.spec for tool in self._tools if not self._worn_out(tool) and _available(tool))


def _available(tool: Tool) -> bool:
    """Whether the tool says it may be called. One that fails to say is offered, and its call told why it was not
    run."""
    try:
        return tool.available is None or tool.available()
    except Exception:
        return True

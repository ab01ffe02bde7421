"""Tools together: composed, and found in installed packages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from m1agent.errors import ToolDefinitionError, ToolsetNotFound
from m1agent.messages import ToolSpec
from m1agent.problems import close_match, shown
from m1agent.schema import function_name
from m1agent.tools import Needs, Tool, tool

ENTRY_POINTS = "m1agent.tools"


class Toolset:
    """Tools under one name, in a fixed order.

    Raises:
        ToolDefinitionError: two tools have the same name, or something is no tool.
    """

    def __init__(self, name: str, tools: Iterable[Tool]) -> None:
        self.name = name
        self._tools: dict[str, Tool] = {}
        for item in tools:
            given: Any = item
            if not isinstance(given, Tool):
                what = function_name(given) if callable(given) else shown(given)
                raise ToolDefinitionError(f"{what} is no tool; a Toolset holds what @tool makes of a function")
            if item.name in self._tools:
                raise ToolDefinitionError(
                    f"two tools are called '{item.name}'; give one another name, or use prefixed()"
                )
            self._tools[item.name] = item

    def __iter__(self) -> Iterator[Tool]:
        return iter(self._tools.values())

    def __len__(self) -> int:
        return len(self._tools)

    def __contains__(self, name: object) -> bool:
        return name in self._tools

    def __getitem__(self, name: str) -> Tool:
        return self._tools[name]

    def __repr__(self) -> str:
        return f"Toolset({self.name!r}, [{', '.join(self._tools)}])"

    def get(self, name: str) -> Tool | None:
        """The tool of that name, or None."""
        return self._tools.get(name)

    @property
    def specs(self) -> tuple[ToolSpec, ...]:
        """What a model is told about the tools, in order."""
        return tuple(item.spec for item in self)

    def unknown(self, name: str) -> str:
        """What a model is told that called a tool which is not here."""
        names = ", ".join(self._tools) or "none"
        return f"There is no tool {shown(name)}.{close_match(name, self._tools)} Tools: {names}."

    def prefixed(self, prefix: str) -> Toolset:
        """The same tools with `prefix` before each name."""
        return self.mapped(lambda item: item.renamed(prefix + item.name))

    def renamed(self, names: Mapping[str, str]) -> Toolset:
        """The same tools, some under other names: `{"old": "new"}`.

        Raises:
            ToolDefinitionError: a name is none of the tools, or two tools would have the same.
        """
        for name in names:
            if name not in self._tools:
                raise ToolDefinitionError(f"{self.unknown(name)} renamed() takes the names they have now")
        return self.mapped(lambda item: item.renamed(names.get(item.name, item.name)))

    def approval_required(self, needs: Needs = True) -> Toolset:
        """The same tools, each waiting for a human's yes before it runs: always, or by the arguments."""
        return self.mapped(lambda item: item.changed(approval=needs))

    def available_when(self, test: Callable[[], bool]) -> Toolset:
        """The same tools, which a reply may only call while `test` is true; the prompt stays as it is."""
        return self.mapped(lambda item: item.changed(available=test))

    def mapped(self, change: Callable[[Tool], Tool]) -> Toolset:
        """The tools that `change` makes of these, in the same order."""
        return Toolset(self.name, map(change, self))

    def filtered(self, keep: Callable[[Tool], bool]) -> Toolset:
        """Only the tools for which `keep` is true."""
        return Toolset(self.name, filter(keep, self))


def gather_tools(items: Iterable[Tool | Toolset | Callable[..., Any]], name: str = "tools") -> Toolset:
    """One toolset of tools, toolsets and plain typed functions, in the order given.

    Raises:
        ToolDefinitionError: two tools have the same name, or something cannot become a tool.
    """
    if callable(items) or isinstance(items, str | Tool):
        only = items.name if isinstance(items, Tool) else function_name(items) if callable(items) else items
        raise ToolDefinitionError(f"tools are a list; pass [{only}]")
    found: list[Tool] = []
    for item in items:
        if isinstance(item, Toolset):
            found += item
        elif isinstance(item, Tool):
            found.append(item)
        elif callable(item):
            found.append(tool(item))
        else:
            raise ToolDefinitionError(f"{item!r} is no tool; pass a Tool, a Toolset or a typed function")
    return Toolset(name, found)


def installed_toolsets() -> tuple[str, ...]:
    """Names of the toolsets that installed packages offer through the entry-point group `m1agent.tools`."""
    return tuple(sorted(_entry_points()))


def ready_toolsets() -> tuple[str, ...]:
    """Names of the installed toolsets that are ready as they are: their entry point names a `Toolset`.

    One that a function makes, such as that of a folder's files, reaches what is around it, and is for those who ask for
    it by name.
    """
    return tuple(name for name, point in sorted(_entry_points().items()) if isinstance(point.load(), Toolset))


def load_toolset(name: str) -> Toolset:
    """The installed toolset of that name. Its entry point names a `Toolset`, or a function that returns one.

    Raises:
        ToolsetNotFound: no installed package offers it, or what it offers is none.
    """
    points = _entry_points()
    if name not in points:
        raise ToolsetNotFound(f"no toolset '{name}' is installed; there are: {', '.join(sorted(points)) or 'none'}")
    offered: Any = points[name].load()
    made: Any = offered if isinstance(offered, Toolset) else offered()
    if not isinstance(made, Toolset):
        raise ToolsetNotFound(f"'{points[name].value}' gives a {type(made).__name__}, not a Toolset")
    return made


def _entry_points() -> dict[str, EntryPoint]:

    return {point.name: point for point in entry_points(group=ENTRY_POINTS)}

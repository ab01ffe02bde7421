"""Tools: typed functions, or schemas with a handler, that a model may call."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, ParamSpec, TypeVar, overload

import anyio
import anyio.to_thread
from pydantic import ValidationError
from pydantic_core import from_json, to_json

from m1agent.errors import InvalidArguments, SchemaError, ToolDefinitionError, ToolsetNotFound
from m1agent.messages import JsonSchema, ToolSpec
from m1agent.problems import cap, close_match, dotted, shown
from m1agent.schema import FunctionParameters, canonical_json, function_name, function_parameters
from m1agent.validation import ArgumentsSchema

ENTRY_POINTS = "m1agent.tools"
NOTHING = "Done. Nothing was returned."

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Validated:
    """Arguments that fit a tool.

    `arguments` are the JSON values after coercion, `kwargs` what the handler is called with, `coercions` one line for
    each value that was read as another.
    """

    arguments: dict[str, Any]
    kwargs: dict[str, Any]
    coercions: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Tool:
    """Something a model may call: what it is told (`spec`), the check of its arguments, and the handler that runs.

    Made by the decorator `tool` from a typed function, or by `Tool.from_schema` from a JSON Schema.
    """

    spec: ToolSpec
    handler: Callable[..., Any]
    checker: ArgumentsSchema
    parameters: FunctionParameters | None = None

    @classmethod
    def from_schema(
        cls, name: str, description: str, parameters: JsonSchema, handler: Callable[..., Awaitable[Any] | Any]
    ) -> Tool:
        """A tool whose arguments are described by a JSON Schema; `handler` gets them as keyword arguments.

        The schema is used as it is, in the draft its `$schema` names; references may only lead inside it.

        Raises:
            ToolDefinitionError: no usable schema.
        """
        try:
            checker = ArgumentsSchema(parameters)
        except SchemaError as error:
            raise ToolDefinitionError(f"{name}: {error}") from error
        return cls(ToolSpec(name, description, parameters), handler, checker)

    @property
    def name(self) -> str:
        """The name the model calls it by."""
        return self.spec.name

    def validate(self, arguments: Mapping[str, Any]) -> Validated:
        """Hold arguments against the JSON Schema, then against the function's types.

        Raises:
            InvalidArguments: they do not fit; its text lists every problem for the model.
        """
        checked = self.checker.check(arguments)
        if checked.problems:
            raise InvalidArguments(self.name, checked.problems)
        if self.parameters is None:
            return Validated(checked.arguments, dict(checked.arguments), checked.coercions)
        try:
            kwargs = self.parameters.bind(checked.arguments)
        except ValidationError as error:
            raise InvalidArguments(self.name, cap(_typed_problems(error, checked.arguments))) from error
        return Validated(checked.arguments, kwargs, checked.coercions)

    async def run(self, validated: Validated) -> str:
        """Run the handler with checked arguments and return its result as text; sync handlers run in a thread.

        What the handler raises passes through. Cancelling does not wait for a sync handler.
        """
        if _is_async(self.handler):
            return render_result(await self.handler(**validated.kwargs))
        work = functools.partial(self.handler, **validated.kwargs)
        # A limiter of its own: threads that hang must never use up those of other tools.
        result = await anyio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=anyio.CapacityLimiter(1))
        return render_result(await result if inspect.isawaitable(result) else result)

    async def call(self, arguments: Mapping[str, Any]) -> str:
        """`validate`, then `run`.

        Raises:
            InvalidArguments: the arguments do not fit.
        """
        return await self.run(self.validate(arguments))

    def renamed(self, name: str) -> Tool:
        """The same tool under another name."""
        return Tool(
            ToolSpec(name, self.spec.description, self.spec.parameters), self.handler, self.checker, self.parameters
        )


class FunctionTool(Tool, Generic[P, R]):
    """A tool made of a function; calling it calls the function."""

    def __init__(self, function: Callable[P, R], name: str | None, description: str | None) -> None:
        parameters = function_parameters(function)
        told = parameters.description if description is None else description
        spec = ToolSpec(function_name(function) if name is None else name, told, parameters.schema)
        super().__init__(spec, function, ArgumentsSchema(parameters.schema, closed=True), parameters)
        functools.update_wrapper(self, function)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.handler(*args, **kwargs)


@overload
def tool(function: Callable[P, R], /) -> FunctionTool[P, R]: ...
@overload
def tool(
    *, name: str | None = None, description: str | None = None
) -> Callable[[Callable[P, R]], FunctionTool[P, R]]: ...
def tool(
    function: Callable[..., Any] | None = None, /, *, name: str | None = None, description: str | None = None
) -> Any:
    """Make a tool of a typed function, sync or async.

    The JSON Schema comes from the annotations, the descriptions from the Google-style docstring. The function stays
    callable as before.

        @tool
        def add(a: int, b: int) -> int:
            '''Add two numbers.'''
            return a + b

    Args:
        function: the function; left out when the decorator is given options.
        name: what the model calls it by, instead of the function's name.
        description: what the model is told, instead of the docstring.

    Raises:
        ToolDefinitionError: a parameter is positional-only, variadic, not annotated, or of a type JSON cannot hold.
    """
    if function is None:
        return functools.partial(_function_tool, name=name, description=description)
    return FunctionTool(function, name, description)


def _function_tool(function: Callable[..., Any], *, name: str | None, description: str | None) -> Tool:
    return FunctionTool(function, name, description)


class Toolset:
    """Tools under one name, in a fixed order.

    Raises:
        ToolDefinitionError: two tools have the same name.
    """

    def __init__(self, name: str, tools: Iterable[Tool]) -> None:
        self.name = name
        self._tools: dict[str, Tool] = {}
        for item in tools:
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
        return Toolset(self.name, [item.renamed(prefix + item.name) for item in self])

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


def render_result(value: Any) -> str:
    """A tool's result as the text a model reads: strings as they are, everything else as JSON.

    Raises:
        TypeError: the value has no JSON form.
    """
    if isinstance(value, str):
        return value
    if value is None:
        return NOTHING
    try:
        return canonical_json(from_json(to_json(value, by_alias=True, inf_nan_mode="strings")))
    except ValueError as error:
        raise TypeError(
            f"a tool returned a {type(value).__name__}, which has no JSON form; return text or JSON values"
        ) from error


def _entry_points() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=ENTRY_POINTS)}


def _is_async(function: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


def _typed_problems(error: ValidationError, arguments: Mapping[str, Any]) -> Iterator[str]:
    for item in error.errors(include_url=False, include_context=False):
        path = dotted(_data_path(item["loc"], arguments)) or "arguments"
        text = item["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
        text = text.replace("Input should be", "expected").removesuffix(".")
        yield f"{path}: {text if len(text) <= 100 else text[:97] + '...'}, got {shown(item['input'])}."


def _data_path(location: tuple[int | str, ...], arguments: Mapping[str, Any]) -> list[int | str]:
    """The parts of a pydantic location that lead into the data; the others name branches of a union."""
    path: list[int | str] = []
    value: Any = arguments
    for part in location:
        try:
            value = value[part]
        except (KeyError, IndexError, TypeError):
            continue
        path.append(part)
    return path

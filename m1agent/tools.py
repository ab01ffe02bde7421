"""Tools: typed functions, or schemas with a handler, that a model may call."""

from __future__ import annotations

import copy
import functools
import inspect
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, Self, TypeAlias, TypeVar, cast, overload

from pydantic import ValidationError

from m1agent.arguments import Checker, FunctionArguments
from m1agent.context import Context
from m1agent.errors import InvalidArguments, SchemaError, ToolDefinitionError
from m1agent.messages import JsonSchema, ToolCall, ToolOutput, ToolSpec
from m1agent.problems import cap, close_match, dotted, shown
from m1agent.render import render_result
from m1agent.schema import FunctionParameters, function_name, function_parameters
from m1agent.threads import in_thread

if TYPE_CHECKING:
    pass


P = ParamSpec("P")
R = TypeVar("R")
NAME = re.compile(r"[^\s\x00-\x1f\x7f\"'\\<>]{1,128}")
Needs: TypeAlias = bool | Callable[[dict[str, Any]], bool]


@dataclass(frozen=True, slots=True)
class Hints:
    """What a tool says of itself; None where it says nothing.

    `read_only`: it changes nothing. `destructive`: it may overwrite or delete. `idempotent`: a second identical call
    changes nothing more. `open_world`: it reaches out to systems beyond its own.
    """

    read_only: bool | None = None
    destructive: bool | None = None
    idempotent: bool | None = None
    open_world: bool | None = None


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

    `approval`: whether a call waits for a human's yes, perhaps by its arguments; None leaves it to `hints`.
    `timeout`: seconds a call may take. `retries`: failures in a row after which a run offers the tool no more.
    `available`: whether the next reply may call it; the prompt stays as it is either way.
    """

    spec: ToolSpec
    handler: Callable[..., Any]
    checker: Checker
    parameters: FunctionParameters | None = None
    takes_context: bool = False
    hints: Hints = Hints()
    approval: Needs | None = None
    timeout: float | None = None
    retries: int | None = None
    available: Callable[[], bool] | None = None

    def __post_init__(self) -> None:
        name: Any = self.name
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise ToolDefinitionError(
                f"{name!r} cannot be a tool's name: 1 to 128 characters without spaces, quotes, '<', '>' and '\\'; "
                "give another with name="
            )
        if problem := self._problem():
            raise ToolDefinitionError(f"{name}: {problem}")

    def _problem(self) -> str | None:
        """Which field is not what it must be; untyped callers meet it here and not in the middle of a run."""
        handler, hints, timeout, retries = cast("Sequence[Any]", (self.handler, self.hints, self.timeout, self.retries))
        approval, available = cast("Sequence[Any]", (self.approval, self.available))
        if not callable(handler):
            return f"its handler must be a function, not {shown(handler)}"
        if not isinstance(hints, Hints):
            return f"hints must be Hints(...), not {shown(hints)}"
        if timeout is not None and (not isinstance(timeout, int | float) or not timeout > 0):
            return f"timeout must be above 0 seconds, not {timeout!r}"
        if retries is not None and (not isinstance(retries, int) or retries < 1):
            return f"retries must be at least 1, and a whole number, not {retries!r}"
        if approval is not None and not isinstance(approval, bool) and not callable(approval):
            return f"approval must be True, False or a function of the arguments, not {shown(approval)}"
        if available is not None and not callable(available):
            return f"available must be a function, such as lambda: False, not {shown(available)}"
        return None

    @classmethod
    def from_schema(
        cls,
        name: str,
        description: str,
        parameters: JsonSchema,
        handler: Callable[..., Awaitable[Any] | Any],
        *,
        takes_context: bool = False,
        hints: Hints | None = None,
        approval: Needs | None = None,
        timeout: float | None = None,
        retries: int | None = None,
        available: Callable[[], bool] | None = None,
    ) -> Tool:
        """A tool whose arguments are described by a JSON Schema; `handler` gets them as keyword arguments.

        The schema is used as it is, in the draft its `$schema` names; references may only lead inside it. With
        `takes_context` the handler's first argument is a `Context`.

        Raises:
            ToolDefinitionError: no usable schema, or `timeout` or `retries` is out of range.
        """
        from m1agent.validation import ArgumentsSchema

        try:
            checker = ArgumentsSchema(parameters)
        except SchemaError as error:
            raise ToolDefinitionError(f"{name}: {error}") from error
        return cls(
            ToolSpec(name, description, parameters),
            handler,
            checker,
            takes_context=takes_context,
            hints=hints or Hints(),
            approval=approval,
            timeout=timeout,
            retries=retries,
            available=available,
        )

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
        except Exception as error:  # A validator of the types themselves failed.
            raise InvalidArguments(self.name, [f"{type(error).__name__}: {error}"]) from error
        return Validated(checked.arguments, kwargs, checked.coercions)

    def needs_approval(self, arguments: dict[str, Any]) -> bool:
        """Whether a call with these arguments waits for a human's yes."""
        if self.approval is None:
            return self.hints.destructive is True
        return self.approval(arguments) if callable(self.approval) else self.approval

    async def run(self, validated: Validated, context: Context[Any] | None = None) -> ToolOutput:
        """Run the handler with checked arguments and return what it made; sync handlers run in a thread.

        What the handler raises passes through. Cancelling does not wait for a sync handler.
        """
        about = (context or Context(None, ToolCall("", self.name, validated.arguments)),) if self.takes_context else ()
        if is_async(self.handler):
            return render_result(await self.handler(*about, **validated.kwargs))
        work = functools.partial(self.handler, *about, **validated.kwargs)
        result = await in_thread(work)
        return render_result(await result if inspect.isawaitable(result) else result)

    async def call(self, arguments: Mapping[str, Any], context: Context[Any] | None = None) -> str:
        """`validate`, then `run`; the text a model would read.

        Raises:
            InvalidArguments: the arguments do not fit.
        """
        return (await self.run(self.validate(arguments), context)).content

    def renamed(self, name: str) -> Self:
        """The same tool under another name."""
        return self.changed(spec=replace(self.spec, name=name))

    def changed(self, **changes: Any) -> Self:
        """The same tool with other fields, such as `approval=True` or `timeout=5.0`.

        Raises:
            TypeError: a tool has no such field.
            ToolDefinitionError: `timeout` or `retries` is out of range.
        """
        known = self.__dataclass_fields__
        twin = copy.copy(self)
        for name, value in changes.items():
            if name not in known:
                raise TypeError(f"a tool has no field '{name}'.{close_match(name, known)} Fields: {', '.join(known)}.")
            object.__setattr__(twin, name, value)
        twin.__post_init__()
        return twin


class FunctionTool(Tool, Generic[P, R]):
    """A tool made of a function; calling it calls the function."""

    def __init__(self, function: Callable[P, R], name: str | None, description: str | None, **fields: Any) -> None:
        parameters = function_parameters(function)
        told = parameters.description if description is None else description
        spec = ToolSpec(function_name(function) if name is None else name, told, parameters.schema)
        checker = FunctionArguments(parameters.schema)
        super().__init__(spec, function, checker, parameters, parameters.takes_context, **fields)
        functools.update_wrapper(self, function)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.handler(*args, **kwargs)


@overload
def tool(function: Callable[P, R], /) -> FunctionTool[P, R]: ...
@overload
def tool(
    *,
    name: str | None = None,
    description: str | None = None,
    approval: Needs | None = None,
    timeout: float | None = None,
    retries: int | None = None,
    hints: Hints | None = None,
    available: Callable[[], bool] | None = None,
) -> Callable[[Callable[P, R]], FunctionTool[P, R]]: ...
def tool(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    description: str | None = None,
    approval: Needs | None = None,
    timeout: float | None = None,
    retries: int | None = None,
    hints: Hints | None = None,
    available: Callable[[], bool] | None = None,
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
        approval: a call waits for a human's yes: always, never, or by its arguments. By default `hints` decide.
        timeout: seconds a call may take; the model is told when it took longer.
        retries: failures in a row after which a run offers the tool no more.
        hints: what the tool does to the world.
        available: whether the next reply may call the tool; asked before each reply.

    A first parameter of type `Context` is given the run's context and is no part of the schema.

    Raises:
        ToolDefinitionError: a parameter is positional-only, variadic, not annotated, or of a type JSON cannot hold; the
            name cannot stand in a call; or an option is of another kind or out of range.
    """
    make: Any = functools.partial(
        FunctionTool,
        name=name,
        description=description,
        hints=hints or Hints(),
        approval=approval,
        timeout=timeout,
        retries=retries,
        available=available,
    )
    return make if function is None else make(function)


def is_async(function: Callable[..., Any]) -> bool:
    """Whether calling it gives an awaitable at once, so that it needs no thread."""
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

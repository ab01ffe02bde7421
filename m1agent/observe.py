"""Watching runs without taking part in them: what tracing, metrics and audit logs hang on to.

An `Observer` is told of each run and gives a `RunObserver` for it, which is told of that run's replies and tool calls.
One observer may watch many runs at a time; a `RunObserver` sees one.

Where the loop calls what. `watch(observers, RunInfo(...))` makes one guarded `RunObserver` of all observers, and a
silent one of none, so the loop asks nothing and calls:

    Run.events   `seen = watch(...)` at the very start, in the task that reads the events: the tracer's current span is
                 the run's parent. `seen.run_finished(result)` in the `finally`, after the history is settled, however
                 the run ended, also when its reader left (then with what `_result()` says at that point).
    Run._reply   `seen.reply_started(ReplyInfo(...))` before the model is asked; `seen.reply_finished(reply, error)`
                 exactly once after, in a `finally`: with the `ReplyFinished` event, or None and the exception that
                 ended the reply (CancelledError, GeneratorExit and Interrupted included).
    Run._next    `with seen.replying():` around each single await of the model's stream. It never spans a `yield`:
                 an async generator runs in its reader's context, where what was set would leak out.
    Calls._run   `seen.tool_started(call, spec)` as the first thing in the *task of the call*, and
                 `seen.tool_finished(call, result, error)` as its last, in the same task, also when it is cancelled.
                 In between the observer may have set context variables: async tools see them, and so do sync ones,
                 because `m1agent.threads` carries the context along. `error` is the exception the tool raised, with
                 its traceback, or None.
    Calls        for a call that is never run (unknown tool, arguments that do not fit, denied, no calls left):
                 `seen.tool_finished(call, result, None)` alone, from whichever task settles it.

What an observer raises is logged (logger `m1agent.observe`) and goes no further: watching must not end a run.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from m1agent.messages import ToolCall, ToolResult, ToolSpec

if TYPE_CHECKING:
    from m1agent.conversation import Conversation
    from m1agent.events import ReplyFinished
    from m1agent.models.base import Settings
    from m1agent.result import RunResult

LOG = logging.getLogger("m1agent.observe")
IN_PROCESS = "m1agent"


@dataclass(frozen=True, slots=True)
class RunInfo:
    """The run that begins. `agent` is empty where it has no name; `provider` is the family the model comes from, such
    as `openai`, and `IN_PROCESS` for one that runs in this process."""

    conversation: Conversation
    model: str
    agent: str = ""
    provider: str = IN_PROCESS
    instructions: str = ""
    tools: tuple[ToolSpec, ...] = ()

    @property
    def conversation_id(self) -> str:
        """The id of a stored conversation, or nothing."""
        return getattr(self.conversation, "id", "")


@dataclass(frozen=True, slots=True)
class ReplyInfo:
    """The reply that is asked for: number `step` of the run, counted from 1, to what `conversation` ends with."""

    step: int
    model: str
    settings: Settings
    conversation: Conversation


class RunObserver(Protocol):
    """Is told of one run. Methods return at once; `tool_*` may be called from several tasks in turn."""

    def reply_started(self, reply: ReplyInfo) -> None:
        """The model is about to be asked."""
        ...

    def replying(self) -> AbstractContextManager[None]:
        """Held around each wait for the model, so that what the model does belongs to the reply."""
        ...

    def reply_finished(self, reply: ReplyFinished | None, error: BaseException | None) -> None:
        """The reply is complete, or `error` ended it."""
        ...

    def tool_started(self, call: ToolCall, tool: ToolSpec) -> None:
        """A call begins to run, in this task."""
        ...

    def tool_finished(self, call: ToolCall, result: ToolResult, error: BaseException | None) -> None:
        """A call has its result; `error` is what the tool raised. Without `tool_started` before: it was never run."""
        ...

    def run_finished(self, result: RunResult) -> None:
        """The run has ended. Nothing is told after it."""
        ...


class Observer(Protocol):
    """Is told of every run of the agents it was given to."""

    def run_started(self, run: RunInfo) -> RunObserver:
        """A run begins; whoever is returned watches it."""
        ...


class Unobserved:
    """Nobody watches. Also a base for observers that care about some of the methods only."""

    def reply_started(self, reply: ReplyInfo) -> None:
        """Nothing is done."""

    def replying(self) -> AbstractContextManager[None]:
        return _NOTHING

    def reply_finished(self, reply: ReplyFinished | None, error: BaseException | None) -> None:
        """Nothing is done."""

    def tool_started(self, call: ToolCall, tool: ToolSpec) -> None:
        """Nothing is done."""

    def tool_finished(self, call: ToolCall, result: ToolResult, error: BaseException | None) -> None:
        """Nothing is done."""

    def run_finished(self, result: RunResult) -> None:
        """Nothing is done."""


_NOTHING = nullcontext[None]()
UNOBSERVED = Unobserved()


def watch(observers: Iterable[Observer], run: RunInfo) -> RunObserver:
    """One observer of `run` that tells all `observers`, in order, and keeps what they raise away from the run."""
    watching = list(_begin(observers, run))
    return _Guarded(watching) if watching else UNOBSERVED


def _begin(observers: Iterable[Observer], run: RunInfo) -> Iterator[RunObserver]:
    for observer in observers:
        with _logged(observer):
            yield observer.run_started(run)


class _Guarded:
    """Tells each observer; what one raises is logged, and the others are told all the same."""

    def __init__(self, observers: list[RunObserver]) -> None:
        self._observers = observers

    def reply_started(self, reply: ReplyInfo) -> None:
        self._tell(lambda observer: observer.reply_started(reply))

    @contextmanager
    def replying(self) -> Generator[None]:
        stack = ExitStack()
        for observer in self._observers:
            with _logged(observer):
                stack.enter_context(observer.replying())
        try:
            yield
        finally:
            with _logged(self):
                stack.close()

    def reply_finished(self, reply: ReplyFinished | None, error: BaseException | None) -> None:
        self._tell(lambda observer: observer.reply_finished(reply, error))

    def tool_started(self, call: ToolCall, tool: ToolSpec) -> None:
        self._tell(lambda observer: observer.tool_started(call, tool))

    def tool_finished(self, call: ToolCall, result: ToolResult, error: BaseException | None) -> None:
        self._tell(lambda observer: observer.tool_finished(call, result, error))

    def run_finished(self, result: RunResult) -> None:
        self._tell(lambda observer: observer.run_finished(result))

    def _tell(self, what: Callable[[RunObserver], None]) -> None:
        for observer in self._observers:
            with _logged(observer):
                what(observer)


@contextmanager
def _logged(observer: object) -> Generator[None]:
    try:
        yield
    except Exception:
        LOG.exception("%s failed; the run goes on without it", type(observer).__name__)

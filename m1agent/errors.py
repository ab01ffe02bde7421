"""Every error this package raises on purpose.

    M1AgentError
    ├── ToolError               raised by a tool: its text is told to the model as written
    │   └── InvalidArguments    a call's arguments do not fit the tool's schema
    ├── ToolDefinitionError     a function or a schema that cannot become a tool
    ├── ToolsetNotFound         no installed toolset has that name
    ├── ModelError              a model could not write its reply
    │   ├── ModelNotFound       no model goes by that name
    │   ├── PromptError         a bare prompt that the model cannot read
    │   ├── ContextFull         the conversation has more tokens than the model's context holds
    │   └── ReplayMismatch      a replayed model was asked something else than was recorded
    ├── GuardError              a guard failed, so nobody knows what it would have said
    ├── RunStopped              a result was unwrapped whose run ended before an answer
    ├── SchemaError             a JSON Schema that is none
    ├── ConversationInUse       a run was started on a conversation that another run is using
    ├── TranscriptError         JSON that is no transcript, or messages that have no JSON form
    ├── StoreError              a file of conversations cannot be read or written
    │   ├── ConversationNotFound    the store holds no conversation of that id
    │   └── ConversationChanged     someone else went on with the conversation since it was opened
    ├── ServeError              a server that cannot be started as asked
    ├── ChatError               a command of the chat that cannot be done
    ├── UsageError              an option of the command line that has a wrong value
    ├── BenchError              a benchmark that cannot be run as asked
    ├── ConfigFileError         an m1agent.toml that cannot be used
    └── McpError                an MCP server could not be reached or misbehaved

What a run can meet (limits, cancellation, loops, a failing model) is no exception: the run's result says it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class M1AgentError(Exception):
    """Base of every error of this package."""


class ToolError(M1AgentError):
    """A tool could not do what it was asked. The model is told the text exactly as written."""


class InvalidArguments(ToolError):
    """The arguments of a call do not fit the tool's schema; `problems` holds one line for each."""

    def __init__(self, tool: str, problems: Sequence[str]) -> None:
        self.tool = tool
        self.problems = tuple(problems)
        super().__init__("\n".join([f"Invalid arguments for {tool}:", *self.problems]))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.tool, self.problems)


class ConversationInUse(M1AgentError):
    """Two runs cannot extend one conversation at a time; `owner` says who holds it where that is known."""

    def __init__(self, owner: str = "another run") -> None:
        self.owner = owner
        super().__init__(
            f"{owner} is using this conversation: wait for it, close its stream "
            "(`async with contextlib.aclosing(agent.stream(...))`), or give this run `conversation.fork()`"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.owner,)


class TranscriptError(M1AgentError):
    """JSON that is no transcript, or messages that have no JSON form; the text names the place."""


class StoreError(M1AgentError):
    """A file of conversations cannot be read or written; the text names the file and the reason."""


class ConversationNotFound(StoreError):
    """The store holds no conversation of that id."""


class ConversationChanged(StoreError):
    """Someone else went on with the conversation since it was opened here: open it again."""


class ToolDefinitionError(M1AgentError):
    """A function or a schema cannot become a tool; the text names the culprit and the remedy."""


class ToolsetNotFound(M1AgentError):
    """No installed toolset has that name."""


class ModelError(M1AgentError):
    """A model could not write its reply."""


class ModelNotFound(ModelError):
    """No model goes by that name."""


class PromptError(ModelError):
    """A bare prompt that the model cannot read; the text names the token."""


class ContextFull(ModelError):
    """The conversation has more tokens than the model's context holds; the text says how many."""


class ReplayMismatch(ModelError):
    """A replayed model was asked something else than was recorded; the text shows the difference."""


class GuardError(M1AgentError):
    """A guard failed, so nobody knows what it would have said; the cause is what it raised."""


class RunStopped(M1AgentError):
    """`RunResult.unwrap` of a run that ended before an answer; `stop` is its stop reason."""

    def __init__(self, stop: str, reason: str = "") -> None:
        self.stop, self.reason = stop, reason
        super().__init__(f"the run ended before an answer: {stop}" + (f" ({reason})" if reason else ""))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.stop, self.reason)


class SchemaError(M1AgentError):
    """A JSON Schema that is none, or one that refers to something outside itself."""


class ServeError(M1AgentError):
    """A server that cannot be started as asked; the text names the field and the remedy."""


class McpError(M1AgentError):
    """An MCP server could not be reached or misbehaved."""


class ChatError(M1AgentError):
    """A command of the chat cannot be done; the text says what to do instead."""


class ConfigFileError(M1AgentError):
    """A configuration file cannot be used; the text names the file, the field and the remedy."""


class UsageError(M1AgentError):
    """An option of the command line has a value that is none of its own; the text names it."""


class BenchError(M1AgentError):
    """A benchmark cannot be run as asked: its data, its file of results or a server is not there, or not usable."""

"""Who may call what: rules, then the tool's own wish, then a human.

A call that must be asked about waits for the `ask` callback where there is one. Where there is none, the run ends with
`stop == "approval"`; its conversation can be stored, and the next run takes the answers by call id:

    result = await agent.run("Clean up.")                        # result.stop == "approval"
    answers = {call.id: True for call in result.pending}         # or Denied("not that folder")
    result = await agent.run(None, conversation=result.conversation, approvals=answers)
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, Literal, TypeAlias, cast

from m1agent.messages import ToolCall
from m1agent.schema import canonical_json
from m1agent.threads import in_thread
from m1agent.tools import Tool, is_async

Decision: TypeAlias = Literal["allow", "ask", "deny"]
DECISIONS = ("allow", "ask", "deny")
NOT_ALLOWED = "This call was not allowed."


@dataclass(frozen=True, slots=True)
class Denied:
    """A human's no; the model is told the reason."""

    reason: str = ""

    @property
    def told(self) -> str:
        """What the model is told."""
        return f"{NOT_ALLOWED} {self.reason}".strip()


Answer: TypeAlias = bool | Denied


@dataclass(frozen=True, slots=True)
class ApprovalRequest:
    """A call that waits for an answer; its arguments have been validated."""

    call: ToolCall
    tool: Tool


Ask: TypeAlias = Callable[[ApprovalRequest], Answer | Awaitable[Answer]]


@dataclass(frozen=True, slots=True)
class Rule:
    """What holds for calls of tools whose name fits the pattern `tools` (`*` and `?` as in file names).

    `arguments` narrows it: each named argument, as text, must fit its pattern; one that was left out counts with the
    default of the schema. A pattern compares text and knows nothing of paths: `/tmp/*` fits `/tmp/../etc`. `reason` is
    told to the model where the decision is `deny`. A run refuses to begin where a rule without `*`, `?` and `[` names a
    tool that is not there, or an argument that its tool does not have.
    """

    tools: str
    decision: Decision
    arguments: Mapping[str, str] = field(default_factory=dict[str, str])
    reason: str = ""

    def __post_init__(self) -> None:
        if self.decision not in DECISIONS:
            raise ValueError(f"Rule.decision must be 'allow', 'ask' or 'deny', not {self.decision!r}")
        for name, pattern in self.arguments.items():
            if not isinstance(cast("Any", pattern), str):
                raise ValueError(f"Rule.arguments: the pattern of '{name}' must be text such as '5*', not {pattern!r}")

    def fits(self, call: ToolCall) -> bool:
        """Whether the rule speaks about this call."""
        return fnmatchcase(call.name, self.tools) and all(
            name in call.arguments and fnmatchcase(_text(call.arguments[name]), pattern)
            for name, pattern in self.arguments.items()
        )


class Approval:
    """The first rule that fits decides; then the tool itself (`approval`, or a destructive hint).

    Args:
        rules: in order of precedence.
        ask: answers for the calls that must be asked about: True, False or `Denied("why")`. It is asked about one call
            at a time while other calls run; a function that is not async runs in a thread, so it may wait for a key.
    """

    def __init__(self, rules: Iterable[Rule] = (), *, ask: Ask | None = None) -> None:
        given: Any = rules
        if isinstance(given, Rule | str) or not isinstance(given, Iterable):
            raise TypeError(f"Approval takes a list of rules, such as [Rule('*', 'ask')], not {given!r}")
        self.rules = tuple(rules)
        for rule in cast("Iterable[Any]", self.rules):
            if not isinstance(rule, Rule):
                raise TypeError(f"Approval takes a list of rules, such as [Rule('*', 'ask')], not [{rule!r}]")
        self.ask = ask

    def decide(self, tool: Tool, call: ToolCall) -> Decision | Denied:
        """What is to happen with a call; `Denied` says why not."""
        full = _with_defaults(tool, call) if self.rules else call
        for rule in self.rules:
            if rule.fits(full):
                return Denied(rule.reason) if rule.decision == "deny" else rule.decision
        if tool.approval is None and tool.hints.destructive is None:
            return "allow"
        return "ask" if tool.needs_approval(call.arguments) else "allow"

    def asking(self, ask: Ask | None) -> Approval:
        """The same rules; where they have nobody to ask, `ask` answers."""
        if ask is None or self.ask is not None:
            return self
        twin = copy.copy(self)
        twin.ask = ask
        return twin

    async def answer(self, request: ApprovalRequest) -> Denied | None:
        """Ask; None when the call may run. Raises TypeError when the callback answers neither yes nor no."""
        assert self.ask is not None
        ask = functools.partial(self.ask, request)
        given: Any = ask() if is_async(self.ask) else await in_thread(ask)
        return refusal(await given if inspect.isawaitable(given) else given)


def refusal(answer: Any) -> Denied | None:
    """An answer as the reason not to run the call, or None. Raises TypeError for what is no answer."""
    if isinstance(answer, Denied):
        return answer
    if isinstance(answer, bool):
        return None if answer else Denied()
    raise TypeError(f"an approval is True, False or Denied('why'), not {answer!r}")


def _with_defaults(tool: Tool, call: ToolCall) -> ToolCall:
    """The call with the arguments that it left out and the schema has a default for."""
    properties = cast("dict[str, Any]", tool.spec.parameters.get("properties", {}))
    parts = {name: cast("dict[str, Any]", part) for name, part in properties.items() if isinstance(part, dict)}
    defaults = {name: part["default"] for name, part in parts.items() if "default" in part}
    return replace(call, arguments={**defaults, **call.arguments})


def _text(value: Any) -> str:
    return value if isinstance(value, str) else canonical_json(value)

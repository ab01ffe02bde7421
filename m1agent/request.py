"""What one run is asked: its named arguments, read and checked."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Generic, TypedDict, cast, get_args, get_origin

from typing_extensions import TypeVar

from m1agent.approval import Answer, Ask, refusal
from m1agent.cancel import Cancel
from m1agent.conversation import Conversation
from m1agent.limits import Limits
from m1agent.messages import AssistantMessage, Message, SystemMessage, ToolMessage, UserMessage
from m1agent.models.base import Settings
from m1agent.problems import shown
from m1agent.prompt.envelope import Named, ToolChoice
from m1agent.tools import Tool

Deps = TypeVar("Deps", default=None)


class RunOptions(TypedDict, Generic[Deps], total=False):
    """What one run may be given.

    conversation: what was said before; it is extended.
    deps: what tools find as `context.deps`.
    limits, settings: instead of the agent's.
    tool_choice: what the first reply must be: `auto`, `none`, `required`, a `Named` or one of the tools.
    cancel: ends the run from outside.
    ask: answers for calls that wait for approval while the run goes on, where the agent's own `approval` asks nobody.
    approvals: answers for the calls that the conversation waits for, by call id: True, False or `Denied("why")`. A call
        that is left out is not run, and the model is told that nobody answered.
    """

    conversation: Conversation | None
    deps: Deps
    limits: Limits | None
    settings: Settings | None
    tool_choice: ToolChoice | Tool
    cancel: Cancel | None
    ask: Ask | None
    approvals: Mapping[str, Answer] | None


def read_prompt(prompt: Any) -> Sequence[Message]:
    """Messages of a prompt. Raises TypeError where it is neither text nor messages."""
    if isinstance(prompt, str):
        return [UserMessage(prompt)]
    if prompt is None:
        return ()
    kinds = (SystemMessage, UserMessage, AssistantMessage, ToolMessage)
    if not isinstance(prompt, Sequence) or not all(isinstance(item, kinds) for item in cast("Sequence[Any]", prompt)):
        raise TypeError(f"a prompt is text or a list of messages such as UserMessage('Hi'), not {shown(prompt)}")
    return cast("Sequence[Message]", prompt)


def read_approvals(given: Any, conversation: Conversation) -> Mapping[str, Answer]:
    """Answers by call id.

    Raises:
        TypeError: no mapping, or an answer that is none.
        ValueError: a call that does not wait.
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise TypeError(f"approvals are answers by call id, such as {{call.id: True}}, not {shown(given)}")
    waiting = [call.id for call in conversation.waiting]
    for call, answer in cast("Mapping[str, Any]", given).items():
        if call not in waiting:
            raise ValueError(f"approvals: no call '{call}' waits; waiting: {', '.join(waiting) or 'none'}")
        refusal(answer)
    return cast("Mapping[str, Answer]", given)


def read_choice(given: Any) -> ToolChoice:
    """What the first reply must be. Raises ValueError where it is no such thing."""
    if isinstance(given, Tool):
        return Named(given.name)
    if given in ("auto", "none", "required") or isinstance(given, Named):
        return given
    raise ValueError(f"tool_choice is 'auto', 'none', 'required', a tool or Named('<tool>'), not {given!r}")


def check_deps(deps: Any, kind: Any) -> None:
    """Raises TypeError where `deps` is not of that type; of a generic type, its parameters are not looked at.

    Types that no object can be held against, such as a TypedDict or a plain Protocol, are left to the type checker.
    """
    origin = get_origin(kind)
    if origin is Annotated:
        check_deps(deps, get_args(kind)[0])
        return
    plain = origin if isinstance(origin, type) and origin is not types.UnionType else kind
    try:
        fits = plain is None or isinstance(deps, plain)
    except TypeError:
        return
    if not fits:
        name = getattr(kind, "__name__", str(kind))
        raise TypeError(f"deps must be a {name}, not a {type(deps).__name__}; give the run deps=...")

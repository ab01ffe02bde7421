"""How messages become the pieces of a prompt, one addition at a time: shared by every model that renders itself."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import takewhile

from m1agent.messages import AssistantMessage, Message, Setup, SystemMessage, ToolMessage
from m1agent.prompt.template import END, Piece, render_message, render_reply_start, render_setup

NEWLINE = Piece("\n")
CLOSE = (Piece(END, special=True), NEWLINE)
CALL_ID = re.compile(r"call_([0-9]{1,9})")


def opening(setup: Setup, history: Sequence[Message] = ()) -> list[Piece]:
    """What a thread begins with; system messages at the head of the history join the instructions."""
    system = list(takewhile(lambda message: isinstance(message, SystemMessage), history))
    pieces = render_setup(setup, [message for message in system if isinstance(message, SystemMessage)])
    return pieces + [piece for message in history[len(system) :] for piece in render_message(message)]


def question(new: Sequence[Message]) -> list[Piece]:
    """The new turns, and the beginning of the reply to them."""
    return [piece for message in new for piece in render_message(message)] + render_reply_start()


def last_call(messages: Sequence[Message]) -> int:
    """The highest number of a call in the messages, 0 for none: a thread that reads them counts on from there."""
    found = (CALL_ID.fullmatch(id) for message in messages for id in _call_ids(message))
    return max((int(match[1]) for match in found if match), default=0)


def _call_ids(message: Message) -> Iterator[str]:
    match message:
        case AssistantMessage(calls=calls):
            yield from (call.id for call in calls)
        case ToolMessage(results):
            yield from (result.call_id for result in results)
        case _:
            pass

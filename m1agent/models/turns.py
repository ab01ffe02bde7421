"""How messages become the pieces of a prompt, one addition at a time: shared by every model that renders itself."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

from m1agent.messages import Message, Setup, SystemMessage
from m1agent.prompt.template import END, Piece, render_message, render_reply_start, render_setup

NEWLINE = Piece("\n")
CLOSE = (Piece(END, special=True), NEWLINE)


def opening(setup: Setup, history: Sequence[Message] = ()) -> list[Piece]:
    """What a thread begins with; system messages at the head of the history join the instructions."""
    system = list(takewhile(lambda message: isinstance(message, SystemMessage), history))
    pieces = render_setup(setup, [message for message in system if isinstance(message, SystemMessage)])
    return pieces + [piece for message in history[len(system) :] for piece in render_message(message)]


def question(new: Sequence[Message]) -> list[Piece]:
    """The new turns, and the beginning of the reply to them."""
    return [piece for message in new for piece in render_message(message)] + render_reply_start()

"""A conversation at the terminal: what is typed, what is shown, and the commands in between."""

from m1agent.chat.chat import Chat
from m1agent.chat.commands import COMMANDS

__all__ = ["COMMANDS", "Chat"]

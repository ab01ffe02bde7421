"""`m1agent chat`: a conversation at the terminal."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from pathlib import Path
from typing import Any

from m1agent.cli_agent import add_agent_options, agent_of, config_of

EXIT_DONE = 0
HELP = """\
Talk with a model and its tools. Ctrl-C ends an answer, Ctrl-D the chat; /help lists the commands.

  m1agent chat
  m1agent chat --model /models/MiniMax-M1 --mcp servers.json --store conversations.db
"""


def add_chat(commands: Any) -> None:
    """Add `chat` to the parser."""
    chat: argparse.ArgumentParser = commands.add_parser(
        "chat", help="talk with a model", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_agent_options(chat)
    chat.add_argument("--store", metavar="FILE", help="keep conversations in this file")
    chat.add_argument("--open", metavar="ID", dest="conversation", help="go on with a conversation of the store")
    chat.set_defaults(command=talk)


def talk(given: argparse.Namespace) -> int:
    """`m1agent chat`."""
    return asyncio.run(_talk(given))


async def _talk(given: argparse.Namespace) -> int:
    from m1agent.chat import Chat
    from m1agent.chat.terminal import reader
    from m1agent.errors import ChatError
    from m1agent.store import ConversationStore

    logging.getLogger("m1agent.mcp").addHandler(logging.NullHandler())  # What they say is shown by /tools.
    path = config_of(given).store
    if given.conversation and path is None:
        raise ChatError("--open needs the store that holds the conversation: --store FILE")
    store = ConversationStore(path) if path is not None else None
    try:
        opened = store.open(given.conversation) if store is not None and given.conversation else None
        async with agent_of(given) as agent:
            for status in agent.servers:
                if status.state != "ready":
                    print(f"m1agent: MCP server '{status.name}' is left out: {status.reason}", file=sys.stderr)
            history = Path(f"{path}.history") if path is not None else None
            await Chat(agent, reader(history), sys.stdout, store=store, conversation=opened).run()
    finally:
        if store is not None:
            store.close()
    return EXIT_DONE

"""What a line that begins with `/` does."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from m1agent.conversation import Conversation
from m1agent.errors import ChatError, ConversationNotFound
from m1agent.messages import AssistantMessage, UserMessage
from m1agent.store import StoredConversation

if TYPE_CHECKING:
    from m1agent.chat.chat import Chat

SHORT = 70
NOTHING = "nothing was said yet"


@dataclass(frozen=True, slots=True)
class Command:
    """A command: how it is written, what it does, and the function that does it; False ends the chat."""

    usage: str
    about: str
    do: Callable[[Chat, str], Awaitable[bool | None]]


async def run_command(chat: Chat, line: str) -> bool:
    """Do what a line says; whether the chat goes on.

    Raises:
        ChatError: there is no such command, or it cannot be done; the text says what to do instead.
    """
    name, _, rest = line[1:].partition(" ")
    command = COMMANDS.get(name)
    if command is None:
        raise ChatError(
            f"/{name} is no command; /help lists them. A question that begins with / needs a space before it"
        )
    return await command.do(chat, rest.strip()) is not False


async def _help(chat: Chat, _: str) -> None:
    width = max(len(command.usage) for command in COMMANDS.values())
    for command in COMMANDS.values():
        chat.say(f"  {command.usage:<{width}}  {command.about}")
    chat.say(
        "  Ctrl-C ends an answer that is being written. Esc, then Enter begins a new line; so does a \\ at the end."
    )


async def _tools(chat: Chat, _: str) -> None:
    for spec in chat.agent.setup().tools:
        about = spec.description.splitlines()[0] if spec.description else ""
        chat.say(f"  {spec.name}: {about}")
    for status in chat.agent.servers:
        chat.say(f"  server {status.name}: {status.state}{f', {status.reason}' if status.reason else ''}")


async def _history(chat: Chat, _: str) -> None:
    if not turns(chat.conversation):
        chat.say(NOTHING)
    for number, start in enumerate(turns(chat.conversation), 1):
        messages = chat.conversation.messages
        asked = messages[start]
        answers = [one for one in messages[start:] if isinstance(one, AssistantMessage) and one.text]
        chat.say(f"  {number}. {_short(asked.text if isinstance(asked, UserMessage) else '')}")
        if answers and number == len(turns(chat.conversation)):
            chat.say(f"     {_short(answers[-1].text)}")


async def _rewind(chat: Chat, rest: str) -> None:
    starts = turns(chat.conversation)
    count = _count(rest or "1", most=len(starts))
    await chat.conversation.rewind(starts[-count])
    chat.say(f"{count} {'turn' if count == 1 else 'turns'} taken back; {len(starts) - count} left")


async def _fork(chat: Chat, _: str) -> None:
    old = chat.conversation
    if isinstance(old, StoredConversation) and chat.store is not None:
        chat.conversation = chat.store.fork(old.id)
    else:
        chat.conversation = old.fork()
    chat.parents.append(old)
    chat.say("A branch from here; /back returns to where it began.")


async def _back(chat: Chat, _: str) -> None:
    if not chat.parents:
        raise ChatError("there is no branch to return from; /fork begins one")
    await chat.conversation.aclose()
    chat.conversation = chat.parents.pop()
    count = len(turns(chat.conversation))
    chat.say(f"Back in the conversation of {count} {'turn' if count == 1 else 'turns'}.")


async def _new(chat: Chat, _: str) -> None:
    await _change(chat, chat.new())
    chat.say("A new conversation.")


async def _list(chat: Chat, _: str) -> None:
    if chat.store is None:
        raise ChatError("conversations are not kept: start m1agent chat with --store FILE")
    for info in chat.store.list():
        here = "*" if isinstance(chat.conversation, StoredConversation) and chat.conversation.id == info.id else " "
        chat.say(f"{here} {info.id}  {info.changed:%Y-%m-%d %H:%M}  {info.messages} messages  {_short(info.title)}")


async def _open(chat: Chat, rest: str) -> None:
    if chat.store is None:
        raise ChatError("conversations are not kept: start m1agent chat with --store FILE")
    if not rest:
        raise ChatError("/open needs the id of a conversation; /list shows them")
    try:
        found = chat.store.open(rest)
    except ConversationNotFound:
        raise ChatError(f"there is no conversation '{rest}' in the store; /list shows them") from None
    await _change(chat, found)
    await _history(chat, "")


async def _thinking(chat: Chat, _: str) -> None:
    chat.printer.fold = not chat.printer.fold
    chat.say("Thinking is folded." if chat.printer.fold else "Thinking is shown.")


async def _quit(_: Chat, __: str) -> bool:
    return False


COMMANDS = {
    "help": Command("/help", "this list", _help),
    "tools": Command("/tools", "the tools, and the state of MCP servers", _tools),
    "history": Command("/history", "the questions so far", _history),
    "rewind": Command("/rewind [N]", "take back the last turn, or the last N", _rewind),
    "fork": Command("/fork", "try something in a branch of this conversation", _fork),
    "back": Command("/back", "return from a branch", _back),
    "new": Command("/new", "begin a new conversation", _new),
    "list": Command("/list", "conversations in the store", _list),
    "open": Command("/open ID", "go on with one of them", _open),
    "thinking": Command("/thinking", "show thinking, or fold it again", _thinking),
    "quit": Command("/quit", "leave", _quit),
}


def turns(conversation: Conversation) -> list[int]:
    """Where each turn begins: the messages of the user."""
    return [n for n, message in enumerate(conversation.messages) if isinstance(message, UserMessage)]


async def _change(chat: Chat, conversation: Conversation) -> None:
    for old in (chat.conversation, *chat.parents):
        await old.aclose()
    chat.conversation, chat.parents = conversation, []


def _count(text: str, *, most: int) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= most:
        raise ChatError(
            f"/rewind takes a number from 1 to {most}, the turns there are, not '{text}'" if most else NOTHING
        )
    return int(text)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHORT else f"{line[: SHORT - 1]}…"

"""The conversation itself: a line in, a run shown, and again. Nothing here knows what kind of terminal it is."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from m1agent.agent import Agent
from m1agent.approval import Answer, ApprovalRequest, Denied
from m1agent.cancel import Cancel
from m1agent.chat.commands import run_command
from m1agent.conversation import Conversation
from m1agent.errors import M1AgentError
from m1agent.schema import canonical_json
from m1agent.show import Printer, plain
from m1agent.store import ConversationStore

Read = Callable[[str], Awaitable[str]]
"""Asks for a line with a prompt. Raises EOFError where the user has left, KeyboardInterrupt for Ctrl-C."""

PROMPT, ALWAYS = "you> ", ("a", "always")


class Chat:
    """One agent, and the conversation that is gone on with.

    Args:
        agent: what answers.
        read: asks for a line.
        out: where everything is shown.
        store: where conversations are kept; None keeps this one in memory.
        conversation: what is gone on with; None begins a new one.
    """

    def __init__(
        self,
        agent: Agent[Any, Any],
        read: Read,
        out: TextIO,
        *,
        store: ConversationStore | None = None,
        conversation: Conversation | None = None,
    ) -> None:
        self.agent = agent
        self.out = out
        self.store = store
        self.conversation = conversation if conversation is not None else self.new()
        self.printer = Printer(out, fold=True)
        self.parents: list[Conversation] = []
        self._read = read
        self._allowed: set[str] = set()

    def new(self) -> Conversation:
        """A conversation without a past, in the store where there is one."""
        return self.store.create() if self.store is not None else Conversation()

    def say(self, text: str) -> None:
        """Show a line."""
        self.out.write(f"{plain(text)}\n")
        self.out.flush()

    async def run(self) -> None:
        """Until the user leaves. The agent must have been entered."""
        self.say("Type a question, /help for the commands, Ctrl-D to leave.")
        while True:
            try:
                line = (await self._read(PROMPT)).strip()
            except KeyboardInterrupt:
                continue
            except EOFError:
                break
            if line.startswith("/"):
                try:
                    if not await run_command(self, line):
                        break
                except (M1AgentError, ValueError) as error:
                    self.say(str(error))
            elif line:
                await self.turn(line)
        await self.conversation.aclose()
        for parent in self.parents:
            await parent.aclose()

    async def turn(self, text: str) -> None:
        """One question and its answer. Ctrl-C ends this turn; what it finished stays."""
        cancel = Cancel()
        with _interrupting(cancel):
            try:
                async for event in self.agent.stream(
                    text, conversation=self.conversation, cancel=cancel, ask=self._ask
                ):
                    self.printer.show(event)
            except M1AgentError as error:
                self.say(f"error: {error}")

    async def _ask(self, request: ApprovalRequest) -> Answer:
        name = request.call.name
        if name in self._allowed:
            return True
        self.printer.end()
        self.say(f"allow {name} {canonical_json(request.call.arguments)}?")
        try:
            answer = (await self._read("[y]es, [n]o, [a]lways, or why not> ")).strip()
        except (EOFError, KeyboardInterrupt):
            return Denied()
        if answer.lower() in ALWAYS:
            self._allowed.add(name)
        if answer.lower() in (*ALWAYS, "y", "yes"):
            return True
        return Denied("" if answer.lower() in ("", "n", "no") else answer)


@contextmanager
def _interrupting(cancel: Cancel) -> Generator[None]:
    """Ctrl-C cancels, as long as this is entered."""
    loop = asyncio.get_running_loop()
    handled = False
    with suppress(NotImplementedError, ValueError, RuntimeError):  # Windows; not the main thread
        loop.add_signal_handler(signal.SIGINT, cancel.cancel)
        handled = True
    try:
        yield
    finally:
        if handled:
            loop.remove_signal_handler(signal.SIGINT)

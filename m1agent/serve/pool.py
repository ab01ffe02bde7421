"""Threads of earlier requests, for those that go on with them.

A chat request carries its whole history, so the server finds what it has already computed by a digest of it: of the
setup, and of each message as far as it is part of the prompt. A request works on a fork, so what is kept here never
changes: two requests may go on from one reply, and the same question may be asked again. The reply's own tokens are
those that were written, not the text tokenised anew.

Clients often leave the thinking out when they send a reply back, so a reply is found with it or without.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import anyio

from m1agent.messages import AssistantMessage, Message, Setup, SystemMessage, ToolMessage, UserMessage
from m1agent.models.base import Model, Thread
from m1agent.schema import canonical_json
from m1agent.threads import in_thread

Digest = bytes


@dataclass(eq=False, slots=True)
class _Kept:
    thread: Thread
    keys: tuple[Digest, ...]
    parent: _Kept | None = None


@dataclass(frozen=True, slots=True)
class Taken:
    """A thread of the request's own, what it has still to be told, and how to find its replies."""

    thread: Thread
    unread: Sequence[Message]
    digest: Digest
    parent: _Kept | None


class ThreadPool:
    """At most `capacity` threads of a model, those longest unused dropped first."""

    def __init__(self, model: Model, capacity: int) -> None:
        self._model = model
        self._capacity = capacity
        self._kept: OrderedDict[Digest, _Kept] = OrderedDict()
        self._threads: OrderedDict[_Kept, None] = OrderedDict()
        self._lock = asyncio.Lock()

    def __len__(self) -> int:
        return len(self._threads)

    async def take(self, setup: Setup, messages: Sequence[Message]) -> Taken:
        """A thread that has read as many of the messages as an earlier one; the last is always unread."""
        digests = [_start(setup)]
        for message in messages:
            digests.append(_next(digests[-1], message))
        async with self._lock:
            for count in range(len(messages) - 1, 0, -1):
                kept = self._kept.get(digests[count])
                if kept is None or not isinstance(messages[count - 1], AssistantMessage):
                    continue
                self._threads.move_to_end(kept)
                thread = await forked(kept.thread)
                return Taken(thread, messages[count:], digests[-1], kept)
        return Taken(self._model.open(setup), messages, digests[-1], None)

    async def keep(self, taken: Taken, thread: Thread, reply: AssistantMessage) -> None:
        """Keep the thread, which has said `reply`; it is the pool's from here on."""
        if not self._capacity or thread.ids is None:
            await thread.aclose()
            return
        keys = tuple({_next(taken.digest, one): None for one in (reply, replace(reply, thinking=""))})
        kept = _Kept(thread, keys, taken.parent)
        async with self._lock:
            for key in keys:
                await self._drop(self._kept.get(key))
            self._kept |= dict.fromkeys(keys, kept)
            self._threads[kept] = None
            # The one it goes on from is rarely asked for again: it makes room first.
            if taken.parent in self._threads:
                self._threads.move_to_end(taken.parent, last=False)
            while len(self._threads) > self._capacity:
                await self._drop(next(iter(self._threads)))

    async def aclose(self) -> None:
        """Close all threads."""
        async with self._lock:
            for kept in list(self._threads):
                await self._drop(kept)

    async def _drop(self, kept: _Kept | None) -> None:
        if kept is None:
            return
        self._threads.pop(kept, None)
        kept.parent = None
        for key in kept.keys:
            if self._kept.get(key) is kept:
                del self._kept[key]
        await kept.thread.aclose()


async def forked(thread: Thread) -> Thread:
    """A fork, made beside the event loop: it waits for a forward pass under way. A cancellation waits for it."""
    making = asyncio.ensure_future(in_thread(thread.fork))
    try:
        return await asyncio.shield(making)
    except asyncio.CancelledError:
        with anyio.CancelScope(shield=True), suppress(Exception):
            await (await making).aclose()
        raise


def _start(setup: Setup) -> Digest:
    tools = [[spec.name, spec.description, spec.parameters] for spec in setup.tools]
    return hashlib.sha256(canonical_json([setup.instructions, tools]).encode("utf-8", "replace")).digest()


def _next(before: Digest, message: Message) -> Digest:
    return hashlib.sha256(before + canonical_json(_rendered(message)).encode("utf-8", "replace")).digest()


def _rendered(message: Message) -> list[object]:
    """What of a message stands in a prompt: ids of calls do not."""
    match message:
        case SystemMessage(text):
            return ["system", text]
        case UserMessage(text):
            return ["user", text]
        case AssistantMessage(text, thinking, calls):
            return ["assistant", text, thinking, [[call.name, call.arguments] for call in calls]]
        case ToolMessage(results):
            return ["tool", [[result.name, result.content] for result in results]]

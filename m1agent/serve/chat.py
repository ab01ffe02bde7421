"""Chat requests: one reply, or several as forks, and how they are told."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace

import anyio

from m1agent.events import (
    ArgumentsDelta,
    CallStarted,
    ModelEvent,
    ReplyFinished,
    TextDelta,
    ThinkingDelta,
    TokensScored,
)
from m1agent.messages import AssistantMessage, Message, Usage
from m1agent.models.base import Model, Settings, Thread
from m1agent.schema import canonical_json
from m1agent.serve.logprobs import chat_logprobs
from m1agent.serve.pool import Taken, ThreadPool, forked
from m1agent.serve.reading import Asked
from m1agent.serve.replies import CheckedReply
from m1agent.serve.wire_out import (
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChunkChoice,
    CompletionDetails,
    Delta,
    DeltaCall,
    DeltaFunction,
    Finish,
    OutCall,
    OutFunction,
    OutMessage,
    OutUsage,
    PromptDetails,
)


@dataclass(frozen=True, slots=True)
class Head:
    """What every part of an answer begins with."""

    model: str
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))


class Replies:
    """The replies to one chat request. `usage` counts them all, the prompt once."""

    def __init__(self, model: Model, pool: ThreadPool, asked: Asked, count: int) -> None:
        self._model = model
        self._pool = pool
        self._asked = asked
        self._count = count
        self._finished: list[ReplyFinished] = []
        self._open: set[Thread] = set()

    @property
    def usage(self) -> Usage:
        """Tokens of the replies that are complete."""
        total = sum((one.usage for one in self._finished), Usage())
        prompt = max((one.usage.input_tokens for one in self._finished), default=0)
        reused = min((one.usage.reused_tokens for one in self._finished), default=0)
        return Usage(prompt, total.output_tokens, reused, total.forced_tokens, total.thinking_tokens)

    async def events(self) -> AsyncGenerator[tuple[int, ModelEvent]]:
        """The events of all replies, each with the index of its reply; in one reply, they are in order."""
        taken = await self._pool.take(self._asked.setup, self._asked.messages)
        self._open.add(taken.thread)
        try:
            unread = taken.unread
            if self._count > 1:
                unread = await self._read_ahead(taken)
                for _ in range(self._count - 1):
                    self._open.add(await forked(taken.thread))
            streams = [self._reply(index, thread, taken, unread) for index, thread in enumerate(list(self._open))]
            async with aclosing(streams[0] if self._count == 1 else merged(streams)) as events:
                async for event in events:
                    yield event
        finally:
            with anyio.CancelScope(shield=True):
                for thread in self._open:
                    await thread.aclose()

    async def _read_ahead(self, taken: Taken) -> Sequence[Message]:
        """Read once what all replies begin with, where the model can; what is left to be read."""
        if (read := getattr(taken.thread, "read", None)) is None:
            return taken.unread
        await read(taken.unread)
        return ()

    async def _reply(
        self, index: int, thread: Thread, taken: Taken, unread: Sequence[Message]
    ) -> AsyncGenerator[tuple[int, ModelEvent]]:
        constrained = bool(getattr(self._model, "constrained", False))
        settings = _own_seed(self._asked.settings, index)
        reply = CheckedReply(thread, self._asked.prepared, settings, constrained=constrained)
        async with aclosing(reply.events(unread)) as events:
            async for event in events:
                if isinstance(event, ReplyFinished):
                    self._finished.append(event)
                    # With stop texts, or after a second try, the thread has read what the client has not.
                    if reply.tries == 1 and not settings.stop:
                        self._open.discard(thread)
                        await self._pool.keep(taken, thread, event.message)
                yield index, event


def _own_seed(settings: Settings, index: int) -> Settings:
    """Replies to one request differ, also where it gives a seed."""
    if settings.seed is None or not index:
        return settings
    return replace(settings, seed=(settings.seed + index) % 2**63)


async def merged(
    streams: Sequence[AsyncGenerator[tuple[int, ModelEvent]]],
) -> AsyncGenerator[tuple[int, ModelEvent]]:
    """The items of several streams as they come; the first error ends them all."""
    items: asyncio.Queue[tuple[int, ModelEvent] | Exception | None] = asyncio.Queue(maxsize=len(streams))

    async def pump(stream: AsyncGenerator[tuple[int, ModelEvent]]) -> None:
        async with aclosing(stream):
            try:
                async for item in stream:
                    await items.put(item)
            except Exception as error:
                await items.put(error)
            await items.put(None)

    tasks = [asyncio.create_task(pump(stream), name="reply") for stream in streams]
    try:
        running = len(tasks)
        while running:
            item = await items.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                running -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        with anyio.CancelScope(shield=True):
            for task in tasks:
                with suppress(asyncio.CancelledError):
                    await task


async def whole(head: Head, replies: Replies, asked: Asked) -> ChatCompletion:
    """The answer in one piece."""
    choices: dict[int, ChatChoice] = {}
    scored: dict[int, list[TokensScored]] = {}
    async with aclosing(replies.events()) as events:
        async for index, event in events:
            if isinstance(event, TokensScored):
                scored.setdefault(index, []).append(event)
            if isinstance(event, ReplyFinished):
                choices[index] = ChatChoice(
                    index=index,
                    message=_message(event.message, legacy=asked.legacy),
                    logprobs=chat_logprobs(scored.get(index, ())) if asked.settings.logprobs is not None else None,
                    finish_reason=_finish(event, legacy=asked.legacy),
                )
    return ChatCompletion(
        id=head.id,
        object="chat.completion",
        created=head.created,
        model=head.model,
        choices=[choices[index] for index in sorted(choices)],
        usage=usage_of(replies.usage),
    )


async def streamed(head: Head, replies: Replies, asked: Asked, *, include_usage: bool) -> AsyncGenerator[bytes]:
    """The answer in chunks, each a JSON text."""

    def chunk(choices: list[ChunkChoice], usage: OutUsage | None = None) -> bytes:
        given = {"usage": usage} if include_usage else {}
        return ChatChunk(
            id=head.id,
            object="chat.completion.chunk",
            created=head.created,
            model=head.model,
            choices=choices,
            **given,
        ).json_bytes()

    begun: set[int] = set()
    async with aclosing(replies.events()) as events:
        async for index, event in events:
            if index not in begun:
                begun.add(index)
                yield chunk([_part(index, Delta(role="assistant", content=""))])
            if isinstance(event, ReplyFinished):
                yield chunk([_part(index, Delta(), finish=_finish(event, legacy=asked.legacy))])
            elif isinstance(event, TokensScored):
                yield chunk([_part(index, Delta(), scored=event)])
            elif (delta := _delta(event, legacy=asked.legacy)) is not None:
                yield chunk([_part(index, delta)])
    if include_usage:
        yield chunk([], usage_of(replies.usage))


def _part(index: int, delta: Delta, *, finish: Finish | None = None, scored: TokensScored | None = None) -> ChunkChoice:
    logprobs = chat_logprobs([scored]) if scored is not None else None
    return ChunkChoice(index=index, delta=delta, logprobs=logprobs, finish_reason=finish)


def _delta(event: ModelEvent, *, legacy: bool) -> Delta | None:
    match event:
        case ThinkingDelta(text):
            return Delta(reasoning_content=text)
        case TextDelta(text):
            return Delta(content=text)
        case CallStarted(index, id, name):
            function = DeltaFunction(name=name, arguments="")
            if legacy:
                return Delta(function_call=function)
            return Delta(tool_calls=[DeltaCall(index=index, id=id, type="function", function=function)])
        case ArgumentsDelta(index, text):
            function = DeltaFunction(arguments=text)
            return Delta(function_call=function) if legacy else Delta(tool_calls=[_more(index, function)])
        case _:
            return None


def _more(index: int, function: DeltaFunction) -> DeltaCall:
    return DeltaCall(index=index, function=function)


def _message(message: AssistantMessage, *, legacy: bool) -> OutMessage:
    out = OutMessage(role="assistant", content=message.text or (None if message.calls else ""), refusal=None)
    if message.thinking:
        out.reasoning_content = message.thinking
    functions = [OutFunction(name=one.name, arguments=canonical_json(one.arguments)) for one in message.calls]
    if functions and legacy:
        out.function_call = functions[0]
    elif functions:
        out.tool_calls = [
            OutCall(id=call.id, type="function", function=function)
            for call, function in zip(message.calls, functions, strict=True)
        ]
    return out


def _finish(reply: ReplyFinished, *, legacy: bool) -> Finish:
    if reply.stop == "length":
        return "length"
    if reply.message.calls:
        return "function_call" if legacy else "tool_calls"
    return "stop"


def usage_of(usage: Usage) -> OutUsage:
    """Token counts as clients read them."""
    return OutUsage(
        prompt_tokens=usage.input_tokens,
        completion_tokens=usage.output_tokens,
        total_tokens=usage.input_tokens + usage.output_tokens,
        prompt_tokens_details=PromptDetails(cached_tokens=usage.reused_tokens),
        completion_tokens_details=CompletionDetails(
            reasoning_tokens=usage.thinking_tokens, forced_tokens=usage.forced_tokens
        ),
    )

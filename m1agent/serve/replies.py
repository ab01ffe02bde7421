"""One reply as it is delivered: its calls and its answer fit their schemas, whichever model writes it.

What a grammar holds to its schema is passed on as it is written. Of any other model, calls (and an answer that has a
schema) are held back until the reply is complete and checked; what does not fit is told to the model, which writes once
more. A reply that still does not fit is an error, never a call.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace

from m1agent.errors import ModelError
from m1agent.events import (
    ArgumentsDelta,
    CallReady,
    CallStarted,
    ModelEvent,
    ReplyFinished,
    TextDelta,
)
from m1agent.messages import Message, ToolCall, ToolMessage, ToolResult, Usage, UserMessage
from m1agent.models.base import Settings, Thread
from m1agent.schema import canonical_json
from m1agent.serve.prepared import Prepared
from m1agent.serve.refused import Refused

TRIES = 2
NOT_RUN = "This call was not run: another call beside it was wrong. Make all calls again."


class CheckedReply:
    """The reply of a thread. `tries` says afterwards how many were written."""

    def __init__(self, thread: Thread, prepared: Prepared, settings: Settings, *, constrained: bool) -> None:
        self._thread = thread
        self._prepared = prepared
        self._settings = settings
        self._constrained = constrained
        self._usage = Usage()
        self.tries = 0

    async def events(self, new: Sequence[Message]) -> AsyncGenerator[ModelEvent]:
        """The events of the reply to `new`.

        Raises:
            Refused: 502, the model wrote no reply that fits.
        """
        while True:
            self.tries += 1
            reply: ReplyFinished | None = None
            async with aclosing(self._written(new)) as stream:
                async for event in stream:
                    if isinstance(event, ReplyFinished):
                        reply = event
                    else:
                        yield event
            if reply is None:
                raise ModelError("the model ended its reply without finishing it")
            self._usage += reply.usage
            faults, calls = self._checked(reply)
            cut = reply.stop == "length" and not reply.message.calls
            if not any(faults) or cut:
                for event in self._held(reply, calls):
                    yield event
                message = replace(reply.message, calls=tuple(calls))
                yield replace(reply, message=message, usage=self._usage)
                return
            if self._constrained or self.tries == TRIES:
                fault = next(fault for fault in faults if fault)
                raise Refused(502, f"the model's reply does not fit: {fault}", code="invalid_reply")
            new = _feedback(faults, calls)

    async def _written(self, new: Sequence[Message]) -> AsyncGenerator[ModelEvent]:
        """The reply as the model writes it, without what is held back."""
        answer = not self._constrained and self._prepared.answer is not None
        stream = self._thread.respond(new, self._prepared.envelope, self._settings)
        async with aclosing(stream):  # type: ignore[type-var]
            async for event in stream:
                match event:
                    case TextDelta() if answer:
                        pass
                    case CallStarted() | ArgumentsDelta() | CallReady() if not self._constrained:
                        pass
                    case _:
                        yield event

    def _checked(self, reply: ReplyFinished) -> tuple[list[str], list[ToolCall]]:
        """What is wrong with each call, and then with the whole; and the calls, safe readings made."""
        checked = [self._prepared.call_fault(call) for call in reply.message.calls]
        whole = self._prepared.fault(reply.message) or ""
        return [*(fault for fault, _ in checked), whole], [call for _, call in checked]

    def _held(self, reply: ReplyFinished, calls: Sequence[ToolCall]) -> list[ModelEvent]:
        if self._constrained:
            return []
        events: list[ModelEvent] = []
        if self._prepared.answer is not None and reply.message.text:
            events.append(TextDelta(reply.message.text))
        for index, call in enumerate(calls):
            text = canonical_json(call.arguments)
            events += [CallStarted(index, call.id, call.name), ArgumentsDelta(index, text), CallReady(index, call)]
        return events


def _feedback(faults: Sequence[str], calls: Sequence[ToolCall]) -> list[Message]:
    """What the model is told of a reply that does not fit."""
    *each, whole = faults
    if not calls:
        return [UserMessage(whole)]
    results = (
        ToolResult(call.id, call.name, fault or whole or NOT_RUN, is_error=True)
        for call, fault in zip(calls, each, strict=True)
    )
    return [ToolMessage(tuple(results))]

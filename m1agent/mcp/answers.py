"""Answers to what a server asks of this side, the same in both protocol eras."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from m1agent.errors import SchemaError
from m1agent.events import ReplyFinished
from m1agent.mcp.client_side import Accepted, Cancelled, ClientSide, Declined, Elicitation, LogMessage
from m1agent.mcp.clock import Clock
from m1agent.mcp.config import ServerConfig
from m1agent.mcp.redaction import Redactor
from m1agent.mcp.running import SAMPLES, RunningCalls
from m1agent.messages import AssistantMessage, Message, Setup, UserMessage
from m1agent.models.base import Model, Settings
from m1agent.problems import shown
from m1agent.prompt.envelope import Envelope
from m1agent.schema import canonical_json
from m1agent.validation import ArgumentsSchema

if TYPE_CHECKING:
    from mcp.client import ClientRequestContext
    from mcp_types import (
        CreateMessageRequestParams,
        CreateMessageResult,
        ElicitRequestParams,
        ElicitResult,
        ErrorData,
        ListRootsResult,
        LoggingMessageNotificationParams,
        SamplingMessage,
    )

log = logging.getLogger("m1agent.mcp")
SAMPLING_TOKENS = 1024
SAMPLING_AT_ONCE = 2
REFUSED = -32600
LOG_LINES, LOG_SECONDS = 100, 10.0
LONGEST_LINE = 2000
LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "notice": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "critical": logging.CRITICAL,
    "alert": logging.CRITICAL,
    "emergency": logging.CRITICAL,
}

T = TypeVar("T")


class Unanswerable(Exception):
    """A server's request cannot be answered; its text is told to the server. `code` is one of JSON-RPC's."""

    def __init__(self, text: str, code: int = -32602) -> None:
        self.code = code
        super().__init__(text)


class Answers:
    """Serves one server's requests. `running` are our calls at it: without one it may not ask the model."""

    def __init__(self, config: ServerConfig, side: ClientSide, redact: Redactor, clock: Clock) -> None:
        self.running = RunningCalls()
        self._name = config.name
        self._side = side
        self._samples = side.model is not None and config.sampling
        self._paths = [Path(root).absolute() for root in side.roots]
        self._redact = redact
        self._clock = clock
        self._lines = _Bucket(LOG_LINES, LOG_SECONDS)
        self._sampling = asyncio.Semaphore(SAMPLING_AT_ONCE)

    def options(self) -> dict[str, Any]:
        """The callbacks as `mcp.Client` takes them; what is not offered is not declared."""
        found: dict[str, Any] = {"logging_callback": self._log, "log_level": self._log_level()}
        if self._samples:
            found["sampling_callback"] = self._sample
        if self._side.elicit is not None:
            found["elicitation_callback"] = self._elicit
        if self._side.roots:
            found["list_roots_callback"] = self._roots
        return found

    # Sampling

    async def _sample(
        self, context: ClientRequestContext, params: CreateMessageRequestParams
    ) -> CreateMessageResult | ErrorData:
        return await self._answered(lambda: self._reply(params))

    async def _reply(self, params: CreateMessageRequestParams) -> CreateMessageResult:
        from mcp_types import CreateMessageResult, TextContent

        model = self._side.model
        assert model is not None
        if not self.running:
            raise Unanswerable("the model is asked during a tool call alone, and none is running", REFUSED)
        charged = self.running.take_sample()
        if charged is None:
            raise Unanswerable(f"a tool call may ask the model {SAMPLES} times, and these are used up", REFUSED)
        messages = [_message(message) for message in params.messages]
        if not messages or not isinstance(messages[-1], UserMessage):
            raise Unanswerable("the last message must be the user's")
        temperature = params.temperature if params.temperature is None or params.temperature >= 0 else None
        settings = Settings(
            max_tokens=max(1, min(params.max_tokens, SAMPLING_TOKENS)),
            temperature=temperature,
            stop=tuple(text for text in params.stop_sequences or () if text),
        )
        async with self._sampling:
            reply = await _one_reply(model, params.system_prompt or "", messages, settings)
        charged.charge(reply.usage)
        return CreateMessageResult(
            role="assistant",
            content=TextContent(text=reply.message.text),
            model=model.name,
            stop_reason="maxTokens" if reply.stop == "length" else "endTurn",
        )

    # Elicitation

    async def _elicit(self, context: ClientRequestContext, params: ElicitRequestParams) -> ElicitResult | ErrorData:
        return await self._answered(lambda: self._ask(params))

    async def _ask(self, params: ElicitRequestParams) -> ElicitResult:
        from mcp_types import ElicitResult

        assert self._side.elicit is not None
        if params.mode == "url":
            question = Elicitation(params.message, {"type": "object"}, self._name, params.url)
        else:
            question = Elicitation(params.message, dict(params.requested_schema), self._name)
        answer: Any = await self._side.elicit(question)
        match answer:
            case Accepted(values) if question.url is None:
                return ElicitResult(action="accept", content=checked(question, values))
            case Accepted():
                return ElicitResult(action="accept")
            case Declined():
                return ElicitResult(action="decline")
            case Cancelled():
                return ElicitResult(action="cancel")
            case _:
                raise TypeError(f"elicit returned {shown(answer)}; return Accepted(values), Declined() or Cancelled()")

    # Roots

    async def _roots(self, context: ClientRequestContext) -> ListRootsResult | ErrorData:
        from mcp_types import ListRootsResult, Root
        from pydantic import FileUrl

        return ListRootsResult(roots=[Root(uri=FileUrl(path.as_uri()), name=path.name) for path in self._paths])

    # Logs

    async def _log(self, params: LoggingMessageNotificationParams) -> None:
        level = LEVELS[params.level]
        if self._side.on_log is None and not log.isEnabledFor(level):
            return
        left_out = self._lines.take(asyncio.get_running_loop().time())
        if left_out is None:
            return
        if left_out:
            log.warning("MCP server '%s': %d lines of its log were left out", self._name, left_out)
        data: Any = params.data
        text = self._redact(data if isinstance(data, str) else canonical_json(data))
        text = text if len(text) <= LONGEST_LINE else f"{text[:LONGEST_LINE]}..."
        # A server must not write lines that look like another's.
        text = text.replace("\r", "\\r").replace("\n", "\\n")
        log.log(level, "MCP server '%s': %s", self._name, text)
        if self._side.on_log is not None:
            self._side.on_log(LogMessage(self._name, level, text, params.logger or ""))

    def _log_level(self) -> str:
        """From which level on the server is to send its log: what nobody would see need not be sent."""
        if self._side.on_log is not None or log.isEnabledFor(logging.INFO):
            return "debug" if log.isEnabledFor(logging.DEBUG) else "info"
        return "warning" if log.isEnabledFor(logging.WARNING) else "error"

    async def _answered(self, work: Callable[[], Awaitable[T]]) -> T | ErrorData:
        """The answer, or what the server is told instead; the server's clock stands still meanwhile."""
        from mcp_types import INTERNAL_ERROR, ErrorData

        try:
            with self._clock.paused():
                return await work()
        except Unanswerable as error:
            log.warning("MCP server '%s' is refused: %s", self._name, error)
            return ErrorData(code=error.code, message=str(error))
        except Exception as error:
            log.warning("MCP server '%s' got no answer", self._name, exc_info=True)
            return ErrorData(code=INTERNAL_ERROR, message=f"the client could not answer ({type(error).__name__})")


def checked(question: Elicitation, values: Any) -> dict[str, Any]:
    """The values as the question's schema wants them. Raises Unanswerable when they do not fit it."""
    try:
        result = ArgumentsSchema(question.schema).check(values)
    except SchemaError as error:
        raise Unanswerable(f"the requested schema cannot be used: {error}") from error
    except (TypeError, ValueError) as error:
        raise Unanswerable("the answer is no object") from error
    if result.problems:
        raise Unanswerable("the answer does not fit the requested schema: " + " ".join(result.problems))
    return result.arguments


class _Bucket:
    """Lets at most `size` lines through in any `seconds`, more or less, and counts the others."""

    def __init__(self, size: int, seconds: float) -> None:
        self._size, self._seconds = size, seconds
        self._level, self._at = float(size), 0.0
        self._left_out = 0

    def take(self, now: float) -> int | None:
        """How many lines were left out since the last one let through, or None to leave this one out as well."""
        self._level = min(self._size, self._level + (now - self._at) * self._size / self._seconds)
        self._at = now
        if self._level < 1:
            self._left_out += 1
            return None
        self._level -= 1
        left_out, self._left_out = self._left_out, 0
        return left_out


def _message(message: SamplingMessage) -> UserMessage | AssistantMessage:
    blocks = message.content if isinstance(message.content, list) else [message.content]
    if odd := next((block.type for block in blocks if block.type != "text"), None):
        raise Unanswerable(f"only text can be sampled from, not {odd}")
    text = "\n".join(cast("str", getattr(block, "text", "")) for block in blocks)
    return UserMessage(text) if message.role == "user" else AssistantMessage(text)


async def _one_reply(model: Model, instructions: str, messages: Sequence[Message], settings: Settings) -> ReplyFinished:
    thread = model.open(Setup(instructions), messages[:-1])
    try:
        stream: Any = thread.respond(messages[-1:], Envelope(choice="none"), settings)
        async with aclosing(stream):
            async for event in stream:
                if isinstance(event, ReplyFinished):
                    return event
    finally:
        await thread.aclose()
    raise Unanswerable("the model ended its reply without finishing it", -32603)

"""Models behind any server that speaks OpenAI's chat completions: vLLM, SGLang, llama.cpp, Ollama, `m1agent serve`.

    model = OpenAIModel("Qwen/Qwen3-8B", "http://localhost:8000/v1")
    model = load_model("openai:Qwen/Qwen3-8B@http://localhost:8000/v1")

A thread is a list of messages: what was sent is never rendered again, so a server's prefix cache holds. Calls are held
against the tools' own schemas by the loop, as those of every model are; where the server can hold the model to them
while it writes, it is asked to.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from m1agent.errors import ContextFull, ModelError
from m1agent.events import ModelEvent, ReplyFinished
from m1agent.messages import AssistantMessage, Message, Setup, ToolMessage
from m1agent.models.base import Settings
from m1agent.models.openai_dialect import DIALECTS, UNKNOWN, Dialect, Listing, read_listing
from m1agent.models.openai_http import Key, Server
from m1agent.models.openai_json import as_list, as_object
from m1agent.models.openai_reply import ReplyReader
from m1agent.models.openai_trouble import Trouble
from m1agent.models.openai_wire import Transcript, characters, request_fields
from m1agent.models.turns import last_call
from m1agent.partial import PartialReply
from m1agent.prompt.envelope import Envelope, Named

log = logging.getLogger(__name__)

OPENAI = "https://api.openai.com/v1"
KEY = "OPENAI_API_KEY"
LISTING_SECONDS = 5.0
SPARE = (
    "stream_options",
    "parallel_tool_calls",
    "response_format",
    "thinking_token_budget",
    "thinking_budget_tokens",
    "chat_template_kwargs",
    "reasoning_effort",
    "reasoning_split",
    "strict",
    "seed",
    "top_p",
    "temperature",
)
"""Fields that a server may refuse and a reply can do without, the wordiest names first."""
LIMITS = ("max_completion_tokens", "max_tokens")


class OpenAIModel:
    """A model of a compatible server.

    Args:
        model: the name the server knows it by.
        base_url: where the server is; an address without a path gets `/v1`.
        api_key: the key, or None for that of the environment variable `api_key_env`; without either none is sent.
        timeout: seconds of silence after which a request counts as lost.
        patience: seconds for which a request is tried again that fails in passing (429, 5xx, no connection, silence)
            before the reply has begun. `Retry-After` is obeyed within them.
        headers: sent with every request, and no more shown than the key is.
        dialect: what the server understands; found out by its list of models where it is None.

    Raises ValueError for a base URL that is none.
    """

    def __init__(
        self,
        model: str,
        base_url: str = OPENAI,
        *,
        api_key: str | None = None,
        api_key_env: str = KEY,
        timeout: float = 600.0,
        patience: float = 60.0,
        headers: Mapping[str, str] | None = None,
        dialect: Dialect | None = None,
    ) -> None:
        self.model = model
        self.server = Server(base_url, Key(api_key, api_key_env), timeout=timeout, patience=patience, headers=headers)
        self.thought_in: str = ""
        self.parsed = False
        self.refused: dict[str, str] = {}
        self._dialect = DIALECTS["openai"] if dialect is None and self.server.url == OPENAI else dialect

    @property
    def name(self) -> str:
        return self.model

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.model} at {self.server.shown}>"

    def open(self, setup: Setup, history: Sequence[Message] = ()) -> OpenAIThread:
        return OpenAIThread(self, setup, history)

    async def aclose(self) -> None:
        await self.server.aclose()

    async def dialect(self) -> Dialect:
        """What the server understands; asked for once."""
        if self._dialect is None:
            try:
                self._dialect = DIALECTS[(await self.listing()).kind]
            except Trouble as trouble:
                log.debug("%s lists no models: %s", self.server.shown, trouble)
                if not trouble.status:  # It may be about to start.
                    return UNKNOWN
                self._dialect = UNKNOWN
        return self._dialect

    async def listing(self) -> Listing:
        """The server's list of models. Raises Trouble where it has none."""
        value, headers = await self.server.get("/models", seconds=LISTING_SECONDS)
        return read_listing(value, headers.get("server", ""))

    def check(self, chunk: Mapping[str, Any]) -> None:
        """Raises Trouble for an object that is an error in a form of this server's own."""

    def differ(self) -> Callable[[str], str]:
        """Makes increments of text that may be sent in full each time."""
        return str

    def settings(self, given: Settings) -> Settings:
        """The settings as this server takes them."""
        return given

    # Requests

    def fit(self, body: dict[str, Any]) -> dict[str, Any]:
        """A request without the fields that this server has refused before."""
        for name in self.refused:
            body = _without(body, name)
        return body

    def give_up(self, body: Mapping[str, Any], trouble: Trouble) -> bool:
        """Whether the trouble is a field that the reply can do without; from then on it is left out."""
        if trouble.begun or trouble.status not in (400, 422, 200, 500) or trouble.too_long:
            return False
        sent = json.dumps({name: value for name, value in body.items() if name != "messages"})
        for name in (*SPARE, *LIMITS):
            if name in self.refused or f'"{name}":' not in sent or not _names(trouble.text, name):
                continue
            if name in LIMITS and not all(_names(trouble.text, limit) for limit in LIMITS):
                continue
            self.refused[name] = trouble.text
            log.warning("%s refuses %r, which is left out from here on: %s", self.server.shown, name, trouble)
            return True
        return False

    async def explained(self, trouble: Trouble) -> ModelError:
        """The trouble with its remedy."""
        what = f"{self.server.shown}: {trouble}" if trouble.status <= 0 else f"{self.server.shown}: {trouble.text}"
        if trouble.status in (401, 403):
            return ModelError(f"{what}. {self._key_remedy()}")
        if trouble.no_parser:
            return ModelError(
                f"{what}. Start vLLM with --enable-auto-tool-choice --tool-call-parser ..., llama.cpp with --jinja"
            )
        if trouble.too_long:
            return ContextFull(
                f"the conversation does not fit into the context of '{self.name}' ({what}); "
                "shorten it with Agent(compaction=...), a smaller ResultBudget, or conversation.rewind(...)"
            )
        if trouble.no_model or trouble.status == 404:
            return ModelError(f"{what}. {await self._models_remedy()}")
        if trouble.begun:
            return ModelError(f"the reply of '{self.name}' broke off: {what}")
        if trouble.status == 0:
            return ModelError(f"no answer from {what}. Is the server running, and the address right?")
        if trouble.status == 429:
            return ModelError(f"{what}. Wait, or raise patience= (seconds of trying again)")
        return ModelError(what)

    def _key_remedy(self) -> str:
        environment = self.server.key.environment
        if self.server.key.value() is None:
            return f"No key was sent: set {environment}, or name another variable with api_key_env="
        return f"The key it was sent (from {self.server.key!r}) is not the one it wants"

    async def _models_remedy(self) -> str:
        try:
            models = (await self.listing()).models
        except Trouble:
            return f"Is {self.server.shown} the base URL of the API (it usually ends in /v1)?"
        shown = ", ".join(models[:20]) + (", ..." if len(models) > 20 else "")
        return f"Its models are: {shown}" if models else "It lists no models"


class OpenAIThread:
    """One conversation with a server: the messages it was sent."""

    def __init__(self, model: OpenAIModel, setup: Setup, history: Sequence[Message]) -> None:
        self._model = model
        self._setup = setup
        self._sent = Transcript.begin(setup, history, model.thought_in)
        self._calls = last_call(history)
        self._known = {id for message in history for id in _call_ids(message)}

    @property
    def ids(self) -> None:
        return None

    async def respond(
        self, new: Sequence[Message], envelope: Envelope, settings: Settings
    ) -> AsyncGenerator[ModelEvent]:
        model, sent = self._model, self._sent
        dialect = await model.dialect()
        _check_choice(model.name, envelope, dialect)
        sent.add(new, model.thought_in)
        self._known |= {id for message in new for id in _call_ids(message)}
        self._calls = max(self._calls, last_call(new))
        fields = request_fields(self._setup, envelope, model.settings(settings), dialect, sent.names)
        partial = PartialReply()
        reader = self._reader(envelope)
        try:
            async with aclosing(self._chunks(fields)) as chunks:
                async for chunk in chunks:
                    for event in reader.read(chunk):
                        partial.add(event)
                        yield event
            body = {"messages": sent.messages, "tools": fields.get("tools")}
            events = reader.finish(characters(body))
            last = events[-1]
            assert isinstance(last, ReplyFinished)
            self._finish(last.message, reader)
        except (GeneratorExit, BaseException):
            self._hold(partial.message())
            raise
        for event in events[:-1]:
            yield event
        _check_reply(model.name, last, envelope, reader)
        yield last

    async def _chunks(self, fields: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any]]:
        model = self._model
        while True:
            body = model.fit({"model": model.model, "messages": self._sent.messages, **fields})
            try:
                async with aclosing(model.server.stream(body, model.check)) as chunks:
                    async for chunk in chunks:
                        yield chunk
                return
            except Trouble as trouble:
                if not model.give_up(body, trouble):
                    raise await model.explained(trouble) from None

    def _reader(self, envelope: Envelope) -> ReplyReader:
        model = self._model
        return ReplyReader(
            envelope,
            known=self._known,
            next_id=self._next_id,
            name_of=self._sent.names.own,
            parsed=model.parsed,
            differ=model.differ,
        )

    def _next_id(self) -> str:
        self._calls += 1
        return f"call_{self._calls}"

    def _finish(self, message: AssistantMessage, reader: ReplyReader) -> None:
        self._model.thought_in = reader.thought_in or self._model.thought_in
        self._model.parsed = self._model.parsed or reader.structured
        self._sent.add_reply(message, reader.thought_in, reader.details)
        self._known |= {call.id for call in message.calls}

    def _hold(self, message: AssistantMessage) -> None:
        """Hold a reply that was cut, as far as it was passed on."""
        if message != AssistantMessage():
            self._sent.add([message], self._model.thought_in)

    def mark(self) -> tuple[int, int]:
        return len(self._sent.messages), self._calls

    async def rewind(self, mark: Any) -> bool:
        length, self._calls = mark
        del self._sent.messages[length:]
        return True

    def fork(self) -> OpenAIThread:
        twin = OpenAIThread(self._model, self._setup, ())
        twin._sent = Transcript(self._sent.names, list(self._sent.messages))
        twin._calls, twin._known = self._calls, set(self._known)
        return twin

    async def aclose(self) -> None:
        """The connections are the model's."""


def _check_choice(name: str, envelope: Envelope, dialect: Dialect) -> None:
    choice = envelope.choice
    kind = "named" if isinstance(choice, Named) else choice
    if kind in ("required", "named") and not envelope.tools:
        raise ModelError(f"tool_choice is {kind!r}, but there are no tools to choose from")
    if isinstance(choice, Named) and choice.name not in {spec.name for spec in envelope.tools}:
        raise ModelError(f"tool_choice names '{choice.name}', which is none of the tools")
    if kind not in dialect.choices:
        known = ", ".join(sorted(dialect.choices))
        raise ModelError(f"the server of '{name}' cannot be held to tool_choice {kind!r}; it knows {known}")


def _check_reply(name: str, reply: ReplyFinished, envelope: Envelope, reader: ReplyReader) -> None:
    if reader.finish_reason == "content_filter":
        raise ModelError(f"a content filter of the server ended the reply of '{name}'")
    forced = envelope.choice not in ("auto", "none")
    if forced and not reply.message.calls and reply.stop == "done":
        raise ModelError(f"'{name}' had to call a tool (tool_choice) and did not: its server does not hold it to that")


def _call_ids(message: Message) -> list[str]:
    match message:
        case AssistantMessage(calls=calls):
            return [call.id for call in calls]
        case ToolMessage(results):
            return [result.call_id for result in results]
        case _:
            return []


def _names(text: str, field: str) -> bool:
    return re.search(rf"(?<![a-z_]){field}(?![a-z_])", text) is not None


def _without(body: dict[str, Any], name: str) -> dict[str, Any]:
    if name == "strict":
        return {key: _unmarked(value) if key in ("tools", "response_format") else value for key, value in body.items()}
    kept = {key: value for key, value in body.items() if key != name}
    if name in LIMITS and name in body:
        kept[next(limit for limit in LIMITS if limit != name)] = body[name]
    return kept


def _unmarked(value: Any) -> Any:
    """Tools or a response format without their own `strict`; a property of that name stays."""
    if isinstance(value, list):
        return [_unmarked(one) for one in as_list(value)]
    marked = {name: as_object(part) for name, part in value.items() if name in ("function", "json_schema")}
    return value | {name: {key: one for key, one in part.items() if key != "strict"} for name, part in marked.items()}

"""The application: its paths, and what answers them."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from functools import partial
from typing import TypeVar

import anyio
import anyio.to_thread
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from m1agent.messages import Usage
from m1agent.models.base import Model
from m1agent.serve.admission import Gate
from m1agent.serve.body import parse, read_body
from m1agent.serve.chat import Head, Replies, streamed, whole
from m1agent.serve.completions import Completions
from m1agent.serve.config import ServeConfig
from m1agent.serve.delivery import EventStream, send_json, send_refused, while_connected
from m1agent.serve.describe import description
from m1agent.serve.guard import Guard, log_failure
from m1agent.serve.metrics import Metrics
from m1agent.serve.page import page
from m1agent.serve.pool import ThreadPool
from m1agent.serve.prepared import Preparing
from m1agent.serve.reading import read_chat
from m1agent.serve.refused import Refused, refusal
from m1agent.serve.wire import Asking, ChatRequest, CompletionRequest
from m1agent.serve.wire_out import Answer, Health, ModelCard, ModelList

T = TypeVar("T")
In = TypeVar("In", bound=BaseModel)
READERS = 2
"""Requests whose bodies are parsed, and whose schemas are checked, at a time."""


class App:
    """A model behind HTTP: an ASGI application. `aclose` frees the threads it keeps; the model is the caller's."""

    def __init__(self, model: Model, config: ServeConfig) -> None:
        self._model = model
        self._config = config
        self._name = config.name or model.name
        self._created = int(time.time())
        self._gate = Gate(config.running, config.waiting)
        self._pool = ThreadPool(model, config.sessions)
        self._preparing = Preparing()
        self._readers = anyio.CapacityLimiter(READERS)
        self._metrics = Metrics()
        self._metrics.watch("running", "Requests being answered.", lambda: self._gate.running)
        self._metrics.watch("waiting", "Requests that wait for their turn.", lambda: self._gate.waiting)
        self._metrics.watch("sessions", "Conversations kept for requests to come.", lambda: len(self._pool))
        self._description = description(self._name)
        self._html = page()
        router = Router(
            [
                Route("/", self._chat_page),
                Route("/health", self._health),
                Route("/metrics", self._counted),
                Route("/openapi.json", self._described),
                Route("/v1/models", self._models),
                Route("/v1/models/{id:path}", self._one_model),
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
                Route("/v1/completions", self._complete, methods=["POST"]),
            ],
            redirect_slashes=False,
            default=_unknown,
        )
        self._app = Guard(router, config, self._metrics)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)

    async def aclose(self) -> None:
        """Free what is kept for requests to come."""
        await self._pool.aclose()

    # What is quickly answered

    async def _health(self, _: Request) -> Response:
        return _json(Health(status="ok", model=self._name, running=self._gate.running, waiting=self._gate.waiting))

    async def _chat_page(self, _: Request) -> Response:
        return self._html

    async def _counted(self, _: Request) -> Response:
        return Response(self._metrics.page(), media_type="text/plain; version=1.0.0; charset=utf-8")

    async def _described(self, _: Request) -> Response:
        return Response(self._description, media_type="application/json")

    async def _models(self, _: Request) -> Response:
        return _json(ModelList(object="list", data=[self._card]))

    async def _one_model(self, request: Request) -> Response:
        self._check_name(request.path_params["id"])
        return _json(self._card)

    @property
    def _card(self) -> ModelCard:
        return ModelCard(id=self._name, object="model", created=self._created, owned_by="m1agent")

    # What the model answers

    async def _chat(self, request: Request) -> ASGIApp:
        given = await self._read(request, ChatRequest)
        wants = bool(given.logprobs)
        if wants and not getattr(self._model, "logprobs", False):
            raise Refused(
                400, f"logprobs: '{self._name}' cannot tell them; leave them out", param="logprobs", code="unsupported"
            )
        if given.top_logprobs is not None and not wants:
            raise Refused(400, "top_logprobs: it goes with logprobs: true", param="top_logprobs")
        asked = await self._beside(partial(read_chat, given, self._preparing, self._config.tokens))
        replies = Replies(self._model, self._pool, asked, given.n or 1)
        head = Head(self._name)
        if given.stream:
            usage = bool(given.stream_options and given.stream_options.include_usage)
            return self._streaming(streamed(head, replies, asked, include_usage=usage), lambda: replies.usage)
        return self._whole(lambda: whole(head, replies, asked), lambda: replies.usage)

    async def _complete(self, request: Request) -> ASGIApp:
        given = await self._read(request, CompletionRequest)
        if given.logprobs is not None and not getattr(self._model, "logprobs", False):
            raise Refused(400, f"logprobs: '{self._name}' cannot tell them; leave them out", param="logprobs")
        work = Completions(self._model, given, self._config.choices, self._config.tokens)
        if given.stream:
            usage = bool(given.stream_options and given.stream_options.include_usage)
            return self._streaming(work.streamed(self._name, include_usage=usage), lambda: work.usage)
        return self._whole(lambda: work.whole(self._name), lambda: work.usage)

    async def _read(self, request: Request, kind: type[In]) -> In:
        """The request, as far as its shape and the fields that both kinds have say."""
        body = await read_body(request, self._config.body_bytes, self._config.body_seconds)
        given = await self._beside(partial(parse, body, kind))
        assert isinstance(given, Asking)
        self._check_name(given.model)
        if (given.n or 1) > self._config.choices:
            raise Refused(400, f"n: at most {self._config.choices} here", param="n")
        if given.stream_options is not None and not given.stream:
            raise Refused(400, "stream_options: it goes with stream: true", param="stream_options")
        return given

    def _check_name(self, name: str) -> None:
        if name != self._name:
            raise Refused(
                404,
                f"there is no model '{name[:100]}' here; there is: {self._name}",
                param="model",
                code="model_not_found",
            )

    async def _beside(self, work: Callable[[], T]) -> T:
        """The result of what would hold up the event loop."""
        return await anyio.to_thread.run_sync(work, limiter=self._readers)

    def _streaming(self, chunks: AsyncGenerator[bytes], usage: Callable[[], Usage]) -> ASGIApp:
        async def answer(send: Send) -> None:
            async with aclosing(chunks):
                await EventStream(send).deliver(self._timed(chunks), self._refusal)

        return self._answering(answer, usage)

    def _whole(self, work: Callable[[], Awaitable[Answer]], usage: Callable[[], Usage]) -> ASGIApp:
        async def answer(send: Send) -> None:
            await send_json(send, (await work()).json_bytes())

        return self._answering(answer, usage)

    def _answering(self, answer: Callable[[Send], Awaitable[None]], usage: Callable[[], Usage]) -> ASGIApp:
        """Answer when it is the request's turn, until the client leaves."""

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            async def work() -> None:
                try:
                    async with self._gate.pass_through():
                        await answer(send)
                except Exception as error:
                    await send_refused(send, self._refusal(error))

            try:
                if not await while_connected(receive, work):
                    self._metrics.left()
            finally:
                self._metrics.used(usage())

        return app

    async def _timed(self, chunks: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
        began: float | None = time.perf_counter()
        async for chunk in chunks:
            if began is not None:
                self._metrics.began(time.perf_counter() - began)
                began = None
            yield chunk

    def _refusal(self, error: Exception) -> Refused:
        refused = refusal(error, self._model)
        if refused.status >= 500:
            log_failure(error)
        return refused


async def _unknown(scope: Scope, receive: Receive, send: Send) -> None:
    raise Refused(404, "there is nothing at this path; /openapi.json lists what there is", code="unknown_path")


def _json(answer: Answer) -> Response:
    return Response(answer.json_bytes(), media_type="application/json", headers={"Cache-Control": "no-store"})

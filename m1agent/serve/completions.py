"""Completion requests: a text goes on, without any chat format. Only a model that reads bare texts can answer them."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, cast

from m1agent.events import ModelEvent, ReplyFinished, ScoredToken, TextDelta, TokensScored
from m1agent.messages import Usage
from m1agent.models.base import Settings
from m1agent.serve.chat import merged, usage_of
from m1agent.serve.logprobs import text_logprobs
from m1agent.serve.reading import bounded, sampling
from m1agent.serve.refused import Refused
from m1agent.serve.wire import CompletionRequest
from m1agent.serve.wire_out import TextChoice, TextCompletion

MAX_TOKENS = 16
"""What OpenAI's API writes where nothing is said."""


@dataclass(slots=True)
class Completions:
    """The completions of one request, at most `most` of at most `tokens`. `usage` counts those that have ended."""

    model: Any
    request: CompletionRequest
    most: int
    tokens: int | None = None
    usage: Usage = field(default_factory=Usage)
    id: str = field(default_factory=lambda: f"cmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        """Raises Refused where the model cannot, or the request asks for too much."""
        if not hasattr(self.model, "complete"):
            raise Refused(400, f"'{self.model.name}' cannot go on with bare texts; use /v1/chat/completions")
        if len(self.prompts) * (self.request.n or 1) > self.most:
            raise Refused(400, f"prompt: at most {self.most} completions a request, prompts times n", param="prompt")

    @property
    def prompts(self) -> Sequence[str | list[int]]:
        """The prompts, one by one."""
        prompt = self.request.prompt
        if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)):
            return [cast("str | list[int]", prompt)]
        return cast("list[str | list[int]]", prompt)

    async def events(self) -> AsyncGenerator[tuple[int, ModelEvent]]:
        """The events of all completions, each with the index of its choice."""
        each = self.request.n or 1
        settings = replace(
            sampling(self.request, bounded(self.request.max_tokens or MAX_TOKENS, self.tokens)),
            logprobs=self.request.logprobs,
        )
        streams = [
            self._one(index, self.prompts[index // each], settings, index % each)
            for index in range(len(self.prompts) * each)
        ]
        async with aclosing(merged(streams)) as events:
            async for event in events:
                yield event

    async def _one(
        self, index: int, prompt: str | list[int], settings: Settings, nth: int
    ) -> AsyncGenerator[tuple[int, ModelEvent]]:
        if settings.seed is not None:
            settings = replace(settings, seed=(settings.seed + nth) % 2**63)
        if self.request.echo:
            yield index, TextDelta(await self.model.text(prompt))
        stream: AsyncIterator[ModelEvent] = self.model.complete(prompt, settings)
        async with aclosing(cast("AsyncGenerator[ModelEvent]", stream)) as events:
            async for event in events:
                if isinstance(event, ReplyFinished):
                    # A prompt counts once, however often it is gone on with.
                    read = event.usage if nth == 0 else Usage(output_tokens=event.usage.output_tokens)
                    self.usage += read
                yield index, event

    async def whole(self, name: str) -> TextCompletion:
        """The answer in one piece."""
        texts: dict[int, list[str]] = {}
        scored: dict[int, list[ScoredToken]] = {}
        choices: dict[int, TextChoice] = {}
        async with aclosing(self.events()) as events:
            async for index, event in events:
                match event:
                    case TextDelta(text):
                        texts.setdefault(index, []).append(text)
                    case TokensScored(tokens):
                        scored.setdefault(index, []).extend(tokens)
                    case ReplyFinished():
                        choices[index] = self._choice(
                            index, "".join(texts.get(index, ())), scored.get(index, ()), event
                        )
                    case _:
                        pass
        ordered = [choices[index] for index in sorted(choices)]
        return self._answer(name, ordered, usage=usage_of(self.usage))

    async def streamed(self, name: str, *, include_usage: bool) -> AsyncGenerator[bytes]:
        """The answer in chunks, each a JSON text."""
        usual = {"usage": None} if include_usage else {}
        async with aclosing(self.events()) as events:
            async for index, event in events:
                match event:
                    case TextDelta(text):
                        part = self._choice(index, text)
                    case TokensScored(tokens):
                        part = self._choice(index, "", tokens)
                    case ReplyFinished():
                        part = self._choice(index, "", (), event)
                    case _:
                        continue
                yield self._answer(name, [part], **usual).json_bytes()
        if include_usage:
            yield self._answer(name, [], usage=usage_of(self.usage)).json_bytes()

    def _choice(
        self, index: int, text: str, scored: Sequence[ScoredToken] = (), reply: ReplyFinished | None = None
    ) -> TextChoice:
        wanted = self.request.logprobs is not None and (scored or reply is not None)
        return TextChoice(
            index=index,
            text=text,
            logprobs=text_logprobs(scored, 0) if wanted else None,
            finish_reason=None if reply is None else "length" if reply.stop == "length" else "stop",
        )

    def _answer(self, name: str, choices: list[TextChoice], **usage: Any) -> TextCompletion:
        return TextCompletion(
            id=self.id, object="text_completion", created=self.created, model=name, choices=choices, **usage
        )

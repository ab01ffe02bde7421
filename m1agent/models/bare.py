"""Bare texts going on, without any chat format."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import TYPE_CHECKING

from m1agent.errors import ContextFull, PromptError
from m1agent.events import ModelEvent, ReplyFinished, TextDelta, TokensScored
from m1agent.messages import AssistantMessage, Usage
from m1agent.models.base import Settings
from m1agent.models.scoring import scored

if TYPE_CHECKING:
    from m1agent.models.local import LocalModel


def prompt_ids(model: LocalModel, prompt: str | Sequence[int]) -> list[int]:
    """Token ids of a bare prompt.

    Raises:
        PromptError: there is no token, or one that is none of the model's.
        ContextFull: they fill the context.
    """
    ids = model.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
    config = model.engine.config
    if wrong := [id for id in ids if not 0 <= id < config.vocab_size]:
        raise PromptError(f"{wrong[0]} is no token of '{model.name}', which has {config.vocab_size}")
    if not ids:
        raise PromptError("there is nothing to go on with; give a text")
    if len(ids) >= config.max_position_embeddings:
        raise ContextFull(
            f"the prompt has {len(ids)} tokens, and the context of '{model.name}' holds "
            f"{config.max_position_embeddings}; shorten it"
        )
    return ids


async def completion(model: LocalModel, prompt: str | Sequence[int], settings: Settings) -> AsyncGenerator[ModelEvent]:
    """The events of one completion; the last is `ReplyFinished`."""
    await model.load()
    with model.engine.session() as session:
        await session.aappend(prompt_ids(model, prompt))
        stream = session.stream(model.params(settings))
        try:
            async for chunk in stream:
                if chunk.text:
                    yield TextDelta(chunk.text)
                if chunk.logprobs:
                    yield TokensScored(tuple(scored(chunk.logprobs, model.tokenizer.token_bytes)))
        finally:
            await stream.aclose()
        done = stream.completion
    usage = Usage(done.prompt_tokens, len(done.ids), done.reused_tokens, done.forced_tokens)
    stop = "length" if done.finish_reason == "length" else "done"
    yield ReplyFinished(AssistantMessage(done.text), usage, stop)

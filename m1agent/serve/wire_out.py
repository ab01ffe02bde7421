"""What the server answers, in the shapes of OpenAI's API."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Answer(BaseModel):
    """A part of an answer; what was not set is not sent."""

    model_config = ConfigDict(extra="forbid")

    def json_bytes(self) -> bytes:
        """The answer as it goes over the wire."""
        return self.model_dump_json(exclude_unset=True).encode()


class OutFunction(Answer):
    name: str
    arguments: str = Field(description="A JSON object, as text; it fits the tool's schema.")


class OutCall(Answer):
    id: str
    type: Literal["function"]
    function: OutFunction


class OutMessage(Answer):
    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: str | None = None
    tool_calls: list[OutCall] | None = None
    function_call: OutFunction | None = None


class TopLogprob(Answer):
    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Answer):
    content: list[TokenLogprob] | None
    refusal: None


Finish = Literal["stop", "length", "tool_calls", "function_call"]


class ChatChoice(Answer):
    index: int
    message: OutMessage
    logprobs: ChatLogprobs | None
    finish_reason: Finish


class PromptDetails(Answer):
    cached_tokens: int = Field(description="Tokens of the prompt that were not computed again.")


class CompletionDetails(Answer):
    reasoning_tokens: int
    forced_tokens: int = Field(description="Tokens the grammar left no choice about.")


class OutUsage(Answer):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails


class ChatCompletion(Answer):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: OutUsage


# Streams


class DeltaFunction(Answer):
    name: str | None = None
    arguments: str


class DeltaCall(Answer):
    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: DeltaFunction


class Delta(Answer):
    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[DeltaCall] | None = None
    function_call: DeltaFunction | None = None


class ChunkChoice(Answer):
    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: Finish | None


class ChatChunk(Answer):
    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: OutUsage | None = None


# Completions


class TextLogprobs(Answer):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TextChoice(Answer):
    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: Literal["stop", "length"] | None


class TextCompletion(Answer):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: OutUsage | None = None


# The rest


class ModelCard(Answer):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(Answer):
    object: Literal["list"]
    data: list[ModelCard]


class Health(Answer):
    status: Literal["ok", "draining"]
    model: str
    running: int
    waiting: int


class Fault(Answer):
    message: str = Field(description="What is wrong, and what to do about it.")
    type: str
    param: Annotated[str | None, Field(description="The field that is wrong.")]
    code: str | None


class Failure(Answer):
    error: Fault


def failure(body: dict[str, Any]) -> bytes:
    """An error as it goes over the wire."""
    return Failure.model_validate(body).json_bytes()

"""What clients send: the requests of OpenAI's API, as far as a text model can answer them.

Fields that change nothing here (`user`, `metadata`, ...) are accepted; a field that would change the answer and cannot
be followed is refused by name.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

MOST_TOKENS = 2**31 - 1
Name = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[a-zA-Z0-9_.-]+$")]


class Given(BaseModel):
    """A part of a request in which an unknown field is an error."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Echoed(BaseModel):
    """A part that clients send back as some server gave it to them, with more fields than they know of."""

    model_config = ConfigDict(extra="ignore", strict=True)


# Messages


class TextPart(Echoed):
    type: Literal["text"]
    text: str


class RefusalPart(Echoed):
    type: Literal["refusal"]
    refusal: str


Text: TypeAlias = str | list[TextPart]


class SystemTurn(Echoed):
    role: Literal["system", "developer"]
    content: Text


class UserTurn(Echoed):
    role: Literal["user"]
    content: Text


class CalledFunction(Echoed):
    name: Name
    arguments: str = Field(description="A JSON object, as text.")


class WireCall(Echoed):
    id: Annotated[str, Field(min_length=1)]
    type: Literal["function"] = "function"
    function: CalledFunction


class AssistantTurn(Echoed):
    role: Literal["assistant"]
    content: str | list[Annotated[TextPart | RefusalPart, Field(discriminator="type")]] | None = None
    refusal: str | None = None
    reasoning_content: str | None = Field(None, description="Thinking, as the server gave it.")
    tool_calls: list[WireCall] | None = None
    function_call: CalledFunction | None = None


class ToolTurn(Echoed):
    role: Literal["tool"]
    tool_call_id: str
    content: Text


class FunctionTurn(Echoed):
    role: Literal["function"]
    name: Name
    content: str | None


Turn: TypeAlias = Annotated[
    SystemTurn | UserTurn | AssistantTurn | ToolTurn | FunctionTurn, Field(discriminator="role")
]


# Tools


class Function(Given):
    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = Field(None, description="JSON Schema of the arguments, an object.")
    strict: bool | None = Field(None, description="Accepted; calls always fit their schema.")


class FunctionTool(Given):
    type: Literal["function"]
    function: Function


class FunctionName(Given):
    name: Name


class FunctionChoice(Given):
    type: Literal["function"]
    function: FunctionName


class Allowed(Given):
    mode: Literal["auto", "required"]
    tools: list[FunctionChoice] = Field(min_length=1)


class AllowedChoice(Given):
    type: Literal["allowed_tools"]
    allowed_tools: Allowed


Choice: TypeAlias = (
    Literal["none", "auto", "required"] | Annotated[FunctionChoice | AllowedChoice, Field(discriminator="type")]
)


# The form of the answer


class TextFormat(Given):
    type: Literal["text"]


class JsonObjectFormat(Given):
    type: Literal["json_object"]


class AnswerSchema(Given):
    name: Name
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class JsonSchemaFormat(Given):
    type: Literal["json_schema"]
    json_schema: AnswerSchema


Format: TypeAlias = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]


class StreamOptions(Given):
    include_usage: bool | None = None
    include_obfuscation: bool | None = Field(None, description="Accepted; chunks are not padded.")


# Requests


class Asking(Given):
    """What both kinds of requests have."""

    model: Annotated[str, Field(min_length=1, max_length=512)]
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    stop: str | Annotated[list[str], Field(max_length=16)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS)] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0, description="There is none: 0.")] | None = None
    frequency_penalty: Annotated[float, Field(ge=0, le=0, description="There is none: 0.")] | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0, description="There is none: {}.")] | None = None
    user: str | None = None


class ChatRequest(Asking):
    messages: list[Turn] = Field(min_length=1)
    tools: list[FunctionTool] | None = None
    tool_choice: Choice | None = None
    parallel_tool_calls: bool | None = None
    functions: list[Function] | None = Field(None, description="The older form of `tools`.")
    function_call: Literal["none", "auto"] | FunctionName | None = None
    response_format: Format | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS)] | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = Field(
        None, description="`none` allows no thinking; the others leave it to the model."
    )
    modalities: list[Literal["text"]] | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = Field(None, description="Accepted; nothing is stored.")
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = Field(None, description="Accepted; what was computed before is found without it.")
    prompt_cache_retention: str | None = None
    verbosity: Literal["medium"] | None = None


Token = Annotated[int, Field(ge=0, le=MOST_TOKENS)]
Tokens = Annotated[list[Token], Field(min_length=1)]
TokenLists = Annotated[list[Tokens], Field(min_length=1)]
Bare = Annotated[str, Field(min_length=1)]
Bares = Annotated[list[Bare], Field(min_length=1)]


class CompletionRequest(Asking):
    prompt: Bare | Bares | Tokens | TokenLists = Field(
        description="One text or several, as text or as token ids; special tokens by their names are special."
    )
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    best_of: Annotated[int, Field(ge=1, le=1, description="Choosing among several is not offered: 1.")] | None = None
    suffix: Annotated[str, Field(max_length=0, description="Filling in is not offered.")] | None = None

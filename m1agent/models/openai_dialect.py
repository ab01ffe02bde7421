"""What a compatible server understands beyond what all of them do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from m1agent.models.openai_json import as_list, as_object

Kind = Literal["openai", "vllm", "sglang", "llama.cpp", "ollama", "minimax", "transformers", "m1agent", "unknown"]
Extra = Mapping[str, Any]
OWNERS: dict[str, Kind] = {
    "vllm": "vllm",
    "sglang": "sglang",
    "llamacpp": "llama.cpp",
    "library": "ollama",
    "m1agent": "m1agent",
}
NO_THINKING: Extra = {"chat_template_kwargs": {"enable_thinking": False}}


def _unbounded(tokens: int) -> Extra:
    return {}


@dataclass(frozen=True, slots=True)
class Dialect:
    """How to ask one kind of server for what not all of them can do.

    token_limit: the field that bounds a reply. strict: whether tools and answers are marked `strict`, which some
    servers enforce: those of any schema, those of OpenAI's subset, or none.
    answer_beside_tools: an answer's schema may be sent while tools may be called; elsewhere it would forbid the calls.
    choices: the tool choices that are understood. thinking: fields that bound the thinking to some tokens, 0 for none.
    extra: fields of every request.
    """

    kind: Kind = "unknown"
    token_limit: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    strict: Literal["any", "closed", "none"] = "none"
    answer_beside_tools: bool = False
    choices: frozenset[str] = frozenset({"auto", "none", "required", "named"})
    thinking: Callable[[int], Extra] = _unbounded
    extra: Extra | None = None


def _vllm(tokens: int) -> Extra:
    return {"thinking_token_budget": tokens, **({} if tokens else NO_THINKING)}


def _sglang(tokens: int) -> Extra:
    return {"chat_template_kwargs": {"thinking_budget": tokens}} if tokens else NO_THINKING


def _llama_cpp(tokens: int) -> Extra:
    return {"thinking_budget_tokens": tokens, **({} if tokens else NO_THINKING)}


def _effort(tokens: int) -> Extra:
    return {} if tokens else {"reasoning_effort": "none"}


def _template(tokens: int) -> Extra:
    return {} if tokens else NO_THINKING


UNKNOWN = Dialect()
DIALECTS: dict[Kind, Dialect] = {
    "openai": Dialect("openai", "max_completion_tokens", "closed", answer_beside_tools=True, thinking=_effort),
    "vllm": Dialect("vllm", strict="any", thinking=_vllm),
    "sglang": Dialect("sglang", strict="any", thinking=_sglang),
    "llama.cpp": Dialect("llama.cpp", thinking=_llama_cpp),
    "ollama": Dialect("ollama", thinking=_effort),
    "transformers": Dialect("transformers", thinking=_template),
    "m1agent": Dialect("m1agent", answer_beside_tools=True),
    "unknown": UNKNOWN,
}


@dataclass(frozen=True, slots=True)
class Listing:
    """What a server says of itself when it lists its models: their names and context lengths, and its kind."""

    kind: Kind
    models: tuple[str, ...]
    contexts: Mapping[str, int]


def read_listing(value: Any, server: str = "") -> Listing:
    """The answer to `GET /models`; `server` is the header of that name. What is none of it counts as empty."""
    data = as_list(as_object(value).get("data") if isinstance(value, dict) else value)
    entries = [as_object(one) for one in data if isinstance(as_object(one).get("id"), str)]
    kinds: list[Kind] = [OWNERS[owner] for one in entries if (owner := str(one.get("owned_by"))) in OWNERS]
    kind: Kind = kinds[0] if kinds else "llama.cpp" if "llama.cpp" in server else "unknown"
    contexts = {str(one["id"]): length for one in entries if (length := _context(one)) is not None}
    return Listing(kind, tuple(str(one["id"]) for one in entries), contexts)


def _context(entry: Mapping[str, Any]) -> int | None:
    meta = as_object(entry.get("meta"))
    found = (entry.get("max_model_len"), entry.get("context_length"), meta.get("n_ctx"))
    return next((value for value in found if isinstance(value, int) and value > 0), None)

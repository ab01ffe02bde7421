"""Models of MiniMax's own API, with its own rules.

    export MINIMAX_API_KEY=...
    model = load_model("minimax:MiniMax-M1")

Errors come with status 200 and a `base_resp`; temperatures are above 0 and at most 1; tools can be offered or not, but
no call can be required. Models from M2 on send their thinking in `reasoning_details` when asked to, and want it back.
(https://platform.minimax.io/docs/api-reference/text-openai-api)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from m1agent.models.base import Settings
from m1agent.models.openai import OpenAIModel
from m1agent.models.openai_dialect import Dialect
from m1agent.models.openai_json import as_object
from m1agent.models.openai_trouble import Trouble

MINIMAX = "https://api.minimax.io/v1"
KEY = "MINIMAX_API_KEY"
COLDEST = 0.01
SPLITS = re.compile(r"MiniMax-M([2-9]|\d\d)", re.I)
PASSING = frozenset({1000, 1001, 1002, 1024, 1033, 1041, 2045})
KEYS = frozenset({1004, 2049})
REMEDIES = {
    1004: "the key's region and group must be those of the host: api.minimax.io, or api.minimaxi.com in China",
    1008: "the account's balance is used up",
    1026: "its filter refused the prompt",
    1027: "its filter refused the reply",
    1039: "context_length: the conversation is too long",
    2056: "the plan's limit for these hours is used up",
}


class MiniMaxModel(OpenAIModel):
    """A model of MiniMax's API; arguments as for `OpenAIModel`. The key is that of MINIMAX_API_KEY."""

    def __init__(self, model: str, base_url: str = MINIMAX, *, api_key_env: str = KEY, **options: Any) -> None:
        extra = {"reasoning_split": True} if SPLITS.match(model) else None
        dialect = Dialect("minimax", "max_completion_tokens", choices=frozenset({"auto", "none"}), extra=extra)
        super().__init__(model, base_url, api_key_env=api_key_env, dialect=dialect, **options)
        self.thought_in = "reasoning_details" if extra else "reasoning_content"

    def check(self, chunk: Mapping[str, Any]) -> None:
        base = as_object(chunk.get("base_resp"))
        code = base.get("status_code")
        if not isinstance(code, int) or code == 0:
            return
        remedy = REMEDIES.get(code, "")
        text = f"{base.get('status_msg') or 'no reason given'} ({code})" + (f"; {remedy}" if remedy else "")
        raise Trouble(text, 401 if code in KEYS else 429 if code == 1002 else 200, passing=code in PASSING)

    def differ(self) -> Callable[[str], str]:
        return Increments()

    def settings(self, given: Settings) -> Settings:
        """Its temperatures are above 0 and at most 1: greedy is the coldest of them."""
        if given.temperature is None:
            return given
        return replace(given, temperature=min(1.0, max(COLDEST, given.temperature)))


class Increments:
    """Makes increments of a text that comes in increments or, as its documentation has it, whole each time.

    Which of the two it is shows with the second piece.
    """

    def __init__(self) -> None:
        self._seen = ""
        self._whole: bool | None = None

    def __call__(self, text: str) -> str:
        if not text or not self._seen:
            self._seen = text or self._seen
            return text
        if self._whole is None:
            self._whole = len(text) > len(self._seen) and text.startswith(self._seen)
        if not self._whole:
            return text
        if not text.startswith(self._seen):  # A new text: the next piece of an answer that is told in parts.
            return text
        new, self._seen = text[len(self._seen) :], text
        return new

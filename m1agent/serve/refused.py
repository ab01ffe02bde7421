"""Why a request is not answered, in the shape that clients of OpenAI's API read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from m1agent.errors import ContextFull, ModelError, PromptError
from m1agent.models.base import Model

KINDS = {429: "rate_limit_error", 500: "server_error", 502: "server_error", 503: "server_error"}


class Refused(Exception):
    """A request that ends with an error; the message names the field and the remedy, and is for the client alone."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})
        super().__init__(message)

    @property
    def body(self) -> dict[str, Any]:
        """The error as the client gets it."""
        kind = KINDS.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def refusal(error: Exception, model: Model) -> Refused:
    """What a failure is to the client: its own mistake, the model's, or ours."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, ContextFull):
        return Refused(400, str(error), param="messages", code="context_length_exceeded")
    if isinstance(error, PromptError):
        return Refused(400, f"prompt: {error}", param="prompt", code="invalid_value")
    refusals: tuple[type[Exception], ...] = getattr(model, "refusals", ())
    if isinstance(error, refusals):
        # A budget below the shortest call, or a schema that leaves nothing to write.
        small = getattr(error, "minimum", None) is not None
        text = str(error).replace("max_new_tokens", "max_completion_tokens")
        return Refused(400, text, param="max_completion_tokens" if small else "tools", code="cannot_be_answered")
    if isinstance(error, ModelError):
        return Refused(502, str(error), code="model_failed")
    return Refused(500, "the server failed; its log says where", code="internal_error")

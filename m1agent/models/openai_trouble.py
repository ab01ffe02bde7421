"""What a server said went wrong, and what to do about it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from time import time
from typing import Any, cast

SHOWN = 400
PASSING = frozenset({408, 425, 429, 502, 503, 504, 529})
SPENT = re.compile(r"insufficient[_ ](quota|balance)|billing|credit balance", re.I)
TOO_LONG = re.compile(
    r"context[_ ]length|context[_ ]size|context window|maximum context|max_model_len|maximum model length"
    r"|prompt is too long|input is too long|too many (input )?tokens",
    re.I,
)
NO_MODEL = re.compile(
    r"model_not_found|model\b.{0,200}\b(not found|does not exist|not exist)|unknown model", re.I | re.S
)
NO_PARSER = re.compile(r"enable-auto-tool-choice|tool-call-parser|tools param requires --jinja", re.I)


@dataclass(eq=False)
class Trouble(Exception):
    """A request that failed.

    text: what the server said. status: of HTTP, 0 where there was no answer. passing: it may work a moment later.
    after: seconds the server asks to wait. begun: the reply had begun, and what it said was passed on.
    """

    text: str
    status: int = 0
    passing: bool = False
    after: float | None = None
    begun: bool = False

    def __str__(self) -> str:
        return self.text

    @property
    def too_long(self) -> bool:
        """The conversation does not fit into the model's context."""
        return self.status in (0, 200, 400, 413, 422, 500) and TOO_LONG.search(self.text) is not None

    @property
    def no_model(self) -> bool:
        """The server has no such model."""
        return self.status in (0, 200, 400, 404, 422) and NO_MODEL.search(self.text) is not None

    @property
    def no_parser(self) -> bool:
        """The server was started without what it needs for tools."""
        return NO_PARSER.search(self.text) is not None


def trouble_of(status: int, body: bytes, headers: Mapping[str, str]) -> Trouble:
    """The trouble that an answer with an error status tells of."""
    text = told(body) or "no reason given"
    passing = status in PASSING or (status == 500 and not TOO_LONG.search(text))
    passing = passing and not SPENT.search(text)
    return Trouble(text, status, passing, seconds(headers.get("retry-after")))


def told(body: bytes) -> str:
    """What an error body says, in whichever of the usual forms; of an HTML page its words."""
    text = body.decode("utf-8", "replace").strip()
    try:
        return one_line(message(json.loads(text)))
    except (ValueError, RecursionError):
        return one_line(re.sub(r"<(script|style).*?</\1>|<[^>]*>", " ", text, flags=re.S))


def message(value: Any) -> str:
    """The text in an error value: `{"error": {...}}`, `{"error": "..."}`, `{"detail": [...]}` or a message alone."""
    if isinstance(value, list):
        return "; ".join(filter(None, map(message, cast("list[Any]", value))))
    if not isinstance(value, dict):
        return value if isinstance(value, str) else json.dumps(value)
    part = cast("dict[str, Any]", value)
    for name in ("error", "detail", "errors"):
        if part.get(name):
            return message(part[name])
    text = part.get("message") or part.get("msg") or part.get("error_description")
    where = part.get("loc") or part.get("param")
    code = part.get("code") or part.get("type")
    if not text:
        return json.dumps(part, ensure_ascii=False)
    notes = [_path(where)] if where else []
    notes += [str(code)] if isinstance(code, str) and code not in str(text) else []
    return f"{text} ({', '.join(notes)})" if notes else str(text)


def is_error(chunk: Mapping[str, Any]) -> bool:
    """Whether an object that came with status 200 is an error all the same."""
    if chunk.get("choices"):
        return False
    return bool(chunk.get("error") or chunk.get("detail")) or chunk.get("object") == "error"


def seconds(header: str | None) -> float | None:
    """The wait a Retry-After header asks for: seconds, or a date."""
    if not header:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(header).timestamp() - time())
    except (ValueError, TypeError):
        return None


def one_line(text: str) -> str:
    """The beginning of a text, without line breaks."""
    line = " ".join(text.split())
    return line if len(line) <= SHOWN else line[: SHOWN - 3] + "..."


def _path(where: Any) -> str:
    return ".".join(map(str, cast("list[Any]", where))) if isinstance(where, list) else str(where)

"""Secrets of servers, kept out of what is told and logged."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable
from contextlib import contextmanager

HIDDEN = "***"
SHORTEST = 4
LOGGERS = (
    "httpx2",
    *(f"httpcore2.{part}" for part in ("connection", "http11", "http2", "proxy", "socks")),
    "mcp.client.streamable_http",
    "mcp.client.auth.oauth2",
    "mcp.client.auth.utils",
    "client",
)


class Redactor:
    """Replaces secrets by `***`: each as a whole and line by line. Shorter ones than `SHORTEST` would hide words."""

    def __init__(self, secrets: Iterable[str]) -> None:
        lines = {part.strip() for secret in secrets for part in (secret, *secret.splitlines())}
        self._parts = sorted((line for line in lines if len(line) >= SHORTEST), key=len, reverse=True)

    def __call__(self, text: str) -> str:
        for part in self._parts:
            text = text.replace(part, HIDDEN)
        return text


class _Filter(logging.Filter):
    """Redacts what libraries log of our connections: httpx2 logs whole URLs, with their queries, at INFO."""

    def __init__(self) -> None:
        super().__init__()
        self.active: list[Redactor] = []

    def filter(self, record: logging.LogRecord) -> bool:
        if not self.active:
            return True
        text = record.getMessage()
        hidden = self._hide(text)
        if hidden != text:
            record.msg, record.args = hidden, None
        if record.exc_info and not record.exc_text:
            record.exc_text = self._hide(logging.Formatter().formatException(record.exc_info))
        return True

    def _hide(self, text: str) -> str:
        for redactor in list(self.active):
            text = redactor(text)
        return text


_filter = _Filter()


@contextmanager
def hidden_in_logs(redactor: Redactor) -> Generator[None]:
    """While open, libraries' logs show none of these secrets. Any number may be open at a time."""
    for name in LOGGERS:
        logging.getLogger(name).addFilter(_filter)
    _filter.active.append(redactor)
    try:
        yield
    finally:
        _filter.active.remove(redactor)

"""What every request passes: its log line, its counters, the key, the rate. Nothing of its content is ever logged."""

from __future__ import annotations

import hashlib
import hmac
import logging
import traceback
from collections.abc import Sequence
from time import perf_counter

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from m1agent.serve.admission import Rate
from m1agent.serve.config import ServeConfig, is_loopback
from m1agent.serve.delivery import send_refused
from m1agent.serve.metrics import Metrics
from m1agent.serve.refused import Refused

log = logging.getLogger("m1agent.serve")
PUBLIC = ("/", "/health", "/openapi.json")
COUNTED = ("/v1/chat/completions", "/v1/completions")
KNOWN = (*PUBLIC, *COUNTED, "/v1/models", "/metrics")
NO_KEY = {"WWW-Authenticate": "Bearer"}


class Keys:
    """The keys that open the server. Comparing takes the same time whatever is shown."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = [_digest(key) for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def owner(self, shown: str) -> str | None:
        """Whose key it is, as a name that does not tell it; None where it is nobody's."""
        digest, found = _digest(shown), None
        for index, known in enumerate(self._digests):
            if hmac.compare_digest(digest, known):
                found = f"key {index}"
        return found


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "replace")).digest()


class Guard:
    """The outermost layer of the server."""

    def __init__(self, app: ASGIApp, config: ServeConfig, metrics: Metrics) -> None:
        self._app = app
        self._keys = Keys(config.keys)
        self._rate = Rate(config.rate)
        self._metrics = metrics
        # Without a key, a page of another site could reach a local server through a name of its own.
        self._only_local_names = config.local and not config.keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        began, status = perf_counter(), 0

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        scope["app"] = self  # A wrong method is raised then, and not answered in plain text.
        try:
            self._admit(scope)
            await self._app(scope, receive, noting)
        except Exception as error:
            refused = _refused(error)
            if refused.status == 500:
                log_failure(error)
            if not status:
                await send_refused(noting, refused)
        finally:
            self._ended(scope, status, perf_counter() - began)

    def _admit(self, scope: Scope) -> None:
        headers, path = Headers(scope=scope), scope["path"]
        if self._only_local_names and not is_loopback(_name(headers.get("host", ""))):
            raise Refused(403, "this server answers to 127.0.0.1 and localhost alone", code="wrong_host")
        client = scope["client"][0] if scope["client"] else ""
        if self._keys and path not in PUBLIC:
            client = self._owner(headers.get("authorization", ""))
        if path in COUNTED and scope["method"] == "POST":
            self._rate.count(client)

    def _owner(self, header: str) -> str:
        scheme, _, shown = header.partition(" ")
        owner = self._keys.owner(shown.strip())
        if scheme.lower() != "bearer" or not shown.strip():
            raise Refused(
                401,
                "there is no API key: send the header Authorization: Bearer KEY",
                code="invalid_api_key",
                headers=NO_KEY,
            )
        if owner is None:
            raise Refused(401, "the API key is not one of this server's", code="invalid_api_key", headers=NO_KEY)
        return owner

    def _ended(self, scope: Scope, status: int, seconds: float) -> None:
        path = scope["path"]
        path = path if path in KNOWN else "/v1/models/" if path.startswith("/v1/models/") else "other"
        # A client that left before the answer began got no status; proxies write 499.
        self._metrics.answered(path, status or 499, seconds)
        log.info("%s %s %d %.0f ms", scope["method"], path, status or 499, 1000 * seconds)


def log_failure(error: BaseException) -> None:
    """Where and what kind of error: its text may hold what was asked or answered, so that is for debugging alone."""
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    places = " < ".join(f"{frame.name} ({frame.filename}:{frame.lineno})" for frame in reversed(frames))
    log.error("a request failed: %s in %s", type(error).__name__, places)
    log.debug("the failure in full", exc_info=error)


def _refused(error: Exception) -> Refused:
    if isinstance(error, Refused):
        return error
    if isinstance(error, HTTPException):
        headers = dict(error.headers or {})
        if error.status_code == 405:
            return Refused(405, f"this path takes {headers.get('Allow', 'another method')}", headers=headers)
        return Refused(error.status_code, error.detail, headers=headers)
    return Refused(500, "the server failed; its log says where", code="internal_error")


def _name(host: str) -> str:
    """A Host header without its port."""
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdecimal() and not host.endswith("]") else host

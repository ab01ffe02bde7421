"""The HTTP side of a remote model: pooled connections, patience with what passes, and a key nobody sees."""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit
from weakref import WeakKeyDictionary

from m1agent.errors import ModelError
from m1agent.mcp.redaction import Redactor
from m1agent.models.openai_json import as_list, as_object
from m1agent.models.openai_sse import EventDecoder, TooLarge, objects
from m1agent.models.openai_trouble import Trouble, is_error, message, one_line, trouble_of

if TYPE_CHECKING:
    import httpx2

FIRST_WAIT, LONGEST_WAIT = 0.5, 20.0
CONNECT_SECONDS = 10.0
REFUSED_SECONDS = 5.0
"""How long a server that takes no connections is tried: one that restarts is soon back, an address that is wrong never
is."""
BROKEN_TRIES = 3
"""Tries where the server fails at the request itself (status 500)."""
ERROR_BYTES = 1 << 16
JSON_BYTES = 1 << 26

Check = Callable[[Mapping[str, Any]], None]


class Key:
    """An API key: given, or read from the environment when it is needed. Neither `repr` nor `str` shows it."""

    __slots__ = ("_given", "environment")

    def __init__(self, given: str | None, environment: str) -> None:
        self._given = given
        self.environment = environment

    def value(self) -> str | None:
        """The key; None where there is none."""
        return self._given or os.environ.get(self.environment, "").strip() or None

    def __repr__(self) -> str:
        return "Key(given)" if self._given else f"Key({self.environment})"


class Server:
    """One compatible server.

    Args:
        base_url: where `/chat/completions` is, with or without it; an address without a path gets `/v1`.
        key: sent as a bearer token where there is one.
        timeout: seconds of silence after which a request counts as lost.
        patience: seconds for which a request is tried again that failed in passing.
        headers: sent with every request.

    Raises ValueError for a base URL that is none.
    """

    def __init__(
        self, base_url: str, key: Key, *, timeout: float, patience: float, headers: Mapping[str, str] | None = None
    ) -> None:
        self.url = _base(base_url)
        self.key = key
        self._timeout = timeout
        self._patience = patience
        self._headers = dict(headers or {})
        self._open: WeakKeyDictionary[asyncio.AbstractEventLoop, _Connections] = WeakKeyDictionary()

    @property
    def shown(self) -> str:
        """The address as it may be told: without user names, passwords and queries."""
        parts = urlsplit(self.url)
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))

    async def aclose(self) -> None:
        """Close the connections of this event loop; those of loops that have ended are gone already."""
        connections = self._open.pop(asyncio.get_running_loop(), None)
        if connections is not None:
            await connections.lifetime.aclose()

    async def get(self, path: str, *, seconds: float) -> tuple[Any, Mapping[str, str]]:
        """The JSON at a path, and the headers it came with. Raises Trouble; nothing is tried again."""
        import httpx2

        try:
            response = await (await self._client()).get(self._at(path), headers=self._sent(), timeout=seconds)
        except httpx2.HTTPError as error:
            raise Trouble(_network(error)) from None
        if response.status_code >= 300:
            raise trouble_of(response.status_code, response.content, response.headers)
        try:
            return response.json(), response.headers
        except ValueError:
            raise Trouble("the answer is no JSON", response.status_code) from None

    async def stream(self, body: Mapping[str, Any], check: Check) -> AsyncGenerator[dict[str, Any]]:
        """The objects that the server answers a chat request with, as they come: the chunks of a stream, or the one
        object of an answer that is none. `check` raises Trouble for an object that is an error.

        What fails in passing before anything was said is tried again. Raises Trouble, which says whether the reply
        had begun.
        """
        waits = _Waits(self._patience)
        while True:
            begun = False
            try:
                async with aclosing(self._attempt(body)) as chunks:
                    async for chunk in chunks:
                        if is_error(chunk):
                            raise _in_reply(chunk)
                        check(chunk)
                        begun = begun or says_something(chunk)
                        yield chunk
                return
            except Trouble as trouble:
                trouble.begun = begun
                trouble.text = self._redacted(trouble.text)
                if begun or not trouble.passing:
                    raise
                await waits.after(trouble)

    async def _attempt(self, body: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any]]:
        import httpx2

        headers = {"content-type": "application/json", "accept": "text/event-stream", **self._sent()}
        content = json.dumps(body, ensure_ascii=False).encode()
        url = self._at("/chat/completions")
        try:
            client = await self._client()
            async with client.stream("POST", url, content=content, headers=headers) as response:
                if response.status_code >= 300:
                    raise trouble_of(response.status_code, await _start(response), response.headers)
                kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
                events = _whole(response) if kind == "application/json" else _events(response)
                async with aclosing(events):
                    async for one in events:
                        yield one
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            raise Trouble(_network(error), passing=True) from None
        except httpx2.InvalidURL as error:
            raise Trouble(f"the address is none: {error}") from None
        except httpx2.HTTPError as error:
            raise Trouble(_network(error), status=-1, passing=True) from None

    async def _client(self) -> httpx2.AsyncClient:
        """Connections belong to an event loop, and programs that are not async have one for each run."""
        loop = asyncio.get_running_loop()
        open = self._open.get(loop)
        if open is None:
            import httpx2

            timeout = httpx2.Timeout(self._timeout, connect=min(CONNECT_SECONDS, self._timeout), pool=None)
            limits = httpx2.Limits(max_connections=None, max_keepalive_connections=20)
            client = httpx2.AsyncClient(timeout=timeout, limits=limits)
            open = self._open[loop] = _Connections(client, _until_the_loop_ends(client))
            await anext(open.lifetime)
        return open.client

    def _at(self, path: str) -> str:
        parts = urlsplit(self.url)
        return urlunsplit(parts._replace(path=parts.path + path))

    def _sent(self) -> dict[str, str]:
        key = self.key.value()
        if key is not None and not (key.isascii() and key.isprintable()):
            raise ModelError(f"{self.key.environment} holds no API key: it has characters that no key has")
        return {**({"authorization": f"Bearer {key}"} if key else {}), **self._headers}

    def _redacted(self, text: str) -> str:
        return Redactor([*filter(None, [self.key.value()]), *self._headers.values()])(text)


@dataclass(frozen=True, slots=True)
class _Connections:
    """The connections of one event loop, open until their lifetime is closed."""

    client: httpx2.AsyncClient
    lifetime: AsyncGenerator[None]


async def _until_the_loop_ends(client: httpx2.AsyncClient) -> AsyncGenerator[None]:
    """asyncio closes generators that are still open before it closes their loop: nobody else tells of its end."""
    try:
        yield
    finally:
        await client.aclose()


class _Waits:
    """Waits between tries: longer each time, never two alike, within the patience."""

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._started = monotonic()
        self._tries = 0

    async def after(self, trouble: Trouble) -> None:
        """Wait for the next try. Raises the trouble where there is to be none."""
        self._tries += 1
        bound = min(self._patience, REFUSED_SECONDS) if trouble.status == 0 else self._patience
        backoff = min(LONGEST_WAIT, FIRST_WAIT * 2 ** (self._tries - 1))
        wait = backoff * random.uniform(0.5, 1.0)
        if trouble.after is not None:
            wait = trouble.after + random.uniform(0, min(0.1, trouble.after))
        late = monotonic() - self._started + wait > bound
        if late or (trouble.status == 500 and self._tries >= BROKEN_TRIES):
            raise trouble
        await asyncio.sleep(wait)


def says_something(chunk: Mapping[str, Any]) -> bool:
    """Whether a chunk has more than a role in it."""
    for choice in map(as_object, as_list(chunk.get("choices"))):
        part = as_object(choice.get("delta") or choice.get("message"))
        if any(value for name, value in part.items() if name not in ("role", "name")):
            return True
    return False


async def _events(response: httpx2.Response) -> AsyncGenerator[dict[str, Any]]:
    """Objects of the events. Raises Trouble where the stream ends before the reply does."""
    decoder, finished = EventDecoder(), False

    def read(payloads: Iterator[str]) -> Iterator[dict[str, Any] | None]:
        for payload in payloads:
            try:
                found = objects(payload)
            except ValueError:
                raise Trouble(f"the stream holds something that is no JSON: {one_line(payload)}", 200) from None
            yield from (None,) if found is None else found

    try:
        async for data in response.aiter_bytes():
            for one in read(decoder.feed(data)):
                if one is None:
                    return
                finished = finished or _finishes(one)
                yield one
        for one in read(decoder.finish()):
            if one is None:
                return
            finished = finished or _finishes(one)
            yield one
    except TooLarge:
        raise Trouble("one event of the stream is larger than this program reads", 200) from None
    if not finished:
        raise Trouble("the stream broke off before the reply was finished", status=-1, passing=True)


async def _whole(response: httpx2.Response) -> AsyncGenerator[dict[str, Any]]:
    """The one object of an answer that is no stream."""
    body = bytearray()
    async for data in response.aiter_bytes():
        body += data
        if len(body) > JSON_BYTES:
            raise Trouble("the answer is larger than this program reads", 200)
    try:
        value = json.loads(body)
    except ValueError:
        raise Trouble(f"the answer is no JSON: {one_line(body.decode('utf-8', 'replace'))}", 200) from None
    if not isinstance(value, dict):
        raise Trouble(f"the answer is no completion: {one_line(message(value))}", 200)
    yield as_object(value)


async def _start(response: httpx2.Response) -> bytes:
    """The beginning of an error's body."""
    body = bytearray()
    async for data in response.aiter_bytes():
        body += data
        if len(body) > ERROR_BYTES:
            break
    return bytes(body[:ERROR_BYTES])


def _finishes(chunk: Mapping[str, Any]) -> bool:
    return is_error(chunk) or any(as_object(one).get("finish_reason") for one in as_list(chunk.get("choices")))


def _in_reply(chunk: Mapping[str, Any]) -> Trouble:
    """An error that came with status 200."""
    code = as_object(chunk.get("error")).get("code") or chunk.get("code")
    status = code if isinstance(code, int) and 400 <= code < 600 else 200
    return trouble_of(status, json.dumps(chunk).encode(), {})


def _network(error: Exception) -> str:
    kind = type(error).__name__
    text = one_line(str(error))
    return f"{kind}: {text}" if text else kind


def _base(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"a base URL begins with http:// or https:// and a host, not {url!r}")
    path = parts.path.rstrip("/").removesuffix("/chat/completions").rstrip("/")
    return urlunsplit((parts.scheme, parts.netloc, path or "/v1", parts.query, ""))

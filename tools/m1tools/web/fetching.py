"""One address of the web, fetched within bounds."""

from __future__ import annotations

import functools
import ssl
import zlib
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields

import anyio
import httpx2

from m1agent import ToolError
from m1tools.web.addresses import CheckedTransport, Guard

LONGEST_URL = 2000
CHUNK = 1 << 16
REDIRECTS = (301, 302, 303, 307, 308)
WINDOWS = {"gzip": 16 + zlib.MAX_WBITS, "x-gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}


@dataclass(frozen=True, slots=True)
class Bounds:
    """Bounds on one fetch: `size` bytes of what is sent, unpacked; `seconds` in all; `redirects` followed.

    Raises:
        ValueError: a bound is not above 0.
    """

    size: int = 10 << 20
    seconds: float = 30.0
    redirects: int = 5

    def __post_init__(self) -> None:
        for field in fields(self):
            if not getattr(self, field.name) > 0:
                raise ValueError(f"Bounds.{field.name} must be above 0, not {getattr(self, field.name)!r}")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server sent: its status, where a redirect leads, and the body where there is none."""

    url: httpx2.URL
    status: int
    location: str
    media_type: str
    charset: str
    body: bytes


def parse_url(text: str) -> httpx2.URL:
    """An address that may be fetched.

    Raises:
        ToolError: it is none; the text says what to change.
    """
    if len(text) > LONGEST_URL:
        raise ToolError(f"url: expected at most {LONGEST_URL} characters, got {len(text)}.")
    try:
        url = httpx2.URL(text.strip())
    except (httpx2.InvalidURL, ValueError):
        raise ToolError(f"url: {text[:80]!r} is no address.") from None
    if url.scheme not in ("http", "https"):
        raise ToolError(f"url: expected http:// or https://, got {text[:80]!r}.")
    if url.userinfo:
        raise ToolError("url: names and passwords are not sent. Leave out what stands before the '@'.")
    if not url.host:
        raise ToolError(f"url: expected a host, got {text[:80]!r}.")
    return url.copy_with(fragment=None)


@functools.cache
def tls() -> ssl.SSLContext:
    """The certificates that are trusted; loading them takes a while."""
    return httpx2.create_ssl_context(trust_env=False)


class Fetcher:
    """Fetches without cookies, proxies or keys."""

    def __init__(self, guard: Guard, bounds: Bounds, agent: str) -> None:
        self._guard, self.bounds = guard, bounds
        self._headers = {"User-Agent": agent, "Accept-Encoding": "gzip, deflate", "Accept": "text/html, */*;q=0.5"}

    async def get(self, url: httpx2.URL, *, size: int | None = None) -> Answer:
        """What is at an address; redirects are told and not followed.

        Raises:
            ToolError: the address is private, the server does not answer, or the answer is over the bounds.
        """
        host = url.host
        try:
            with anyio.fail_after(self.bounds.seconds):
                async with self._opened(url) as response:
                    return await _answer(url, response, size or self.bounds.size)
        except TimeoutError:
            raise ToolError(f"{host}: it took more than {self.bounds.seconds:g} s.") from None
        except (httpx2.HTTPError, httpx2.InvalidURL, ssl.SSLError) as error:
            raise ToolError(f"{host}: it cannot be reached ({type(error).__name__}).") from None

    @asynccontextmanager
    async def _opened(self, url: httpx2.URL) -> AsyncGenerator[httpx2.Response]:
        async with CheckedTransport(self._guard, tls()) as transport:
            headers = {**self._headers, "Host": url.netloc.decode("ascii"), "Connection": "close"}
            timeout = httpx2.Timeout(self.bounds.seconds).as_dict()
            request = httpx2.Request("GET", url, headers=headers, extensions={"timeout": timeout})
            response = await transport.handle_async_request(request)
            try:
                yield response
            finally:
                await response.aclose()


async def _answer(url: httpx2.URL, response: httpx2.Response, size: int) -> Answer:
    kind, _, rest = response.headers.get("content-type", "").partition(";")
    charset = rest.partition("charset=")[2].partition(";")[0].strip(" \"'")[:40]
    location = response.headers.get("location", "") if response.status_code in REDIRECTS else ""
    body = b"" if location else await _body(url.host, response, size)
    return Answer(url, response.status_code, location, kind.strip().lower()[:80], charset, body)


async def _body(host: str, response: httpx2.Response, size: int) -> bytes:
    """The body, unpacked as it comes, so that what unpacks to a thousand times its size ends at the bound."""
    packed = response.headers.get("content-encoding", "").strip().lower()
    if packed not in ("", "identity", *WINDOWS):
        raise ToolError(f"{host}: it sent a body in an unknown encoding, {packed[:40]!r}.")
    unpack = zlib.decompressobj(WINDOWS[packed]) if packed in WINDOWS else None
    body = bytearray()
    stream = response.stream
    assert isinstance(stream, httpx2.AsyncByteStream)
    async for chunk in stream:
        try:
            body += unpack.decompress(chunk, size + 1 - len(body)) if unpack else chunk
        except zlib.error:
            raise ToolError(f"{host}: what it sent is damaged.") from None
        if len(body) > size:
            raise ToolError(f"{host}: it sent more than {size} bytes.")
    return bytes(body)

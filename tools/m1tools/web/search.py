"""Search engines, as functions of a query; any other may be given in their place."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import httpx2

from m1agent import ToolError

BRAVE = "https://api.search.brave.com/res/v1/web/search"
BRAVE_MOST = 20
SIZE = 4 << 20
SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Hit:
    """One result of a search."""

    title: str
    url: str
    text: str = ""


class Search(Protocol):
    """Any function that searches: an async one of a query and how many hits are wanted."""

    async def __call__(self, query: str, count: int, /) -> Sequence[Hit]: ...


@dataclass(frozen=True, slots=True)
class Searxng:
    """A SearXNG instance at `url`, with JSON among its `search.formats`."""

    url: str

    async def __call__(self, query: str, count: int, /) -> Sequence[Hit]:
        """Raises ToolError where it does not answer in JSON."""
        answer = await _ask(self.url.rstrip("/") + "/search", {"q": query, "format": "json"}, {})
        return _hits(answer.get("results"), count, "content")


@dataclass(frozen=True, slots=True)
class Brave:
    """Brave's search, by a key of its API, which no text shows.

    Raises:
        ValueError: there is no key.
    """

    key: str = field(default="", repr=False)
    url: str = BRAVE

    def __post_init__(self) -> None:
        if not self.key:
            raise ValueError("Brave: expected key, such as os.environ['BRAVE_API_KEY']")

    async def __call__(self, query: str, count: int, /) -> Sequence[Hit]:
        """Raises ToolError where it does not answer, or refuses the key."""
        asked = {"q": query, "count": str(min(count, BRAVE_MOST)), "text_decorations": "false"}
        answer = await _ask(self.url, asked, {"X-Subscription-Token": self.key})
        web: Any = answer.get("web")
        return _hits(
            cast("dict[str, Any]", web).get("results") if isinstance(web, dict) else None, count, "description"
        )


def from_environment() -> Search | None:
    """The engine that `BRAVE_API_KEY` or `SEARXNG_URL` names, or None."""
    if key := os.environ.get("BRAVE_API_KEY"):
        return Brave(key)
    if url := os.environ.get("SEARXNG_URL"):
        return Searxng(url)
    return None


async def _ask(url: str, asked: Mapping[str, str], headers: Mapping[str, str]) -> dict[str, Any]:
    try:
        async with (
            httpx2.AsyncClient(timeout=SECONDS, headers={"Accept": "application/json", **headers}) as client,
            client.stream("GET", url, params=asked) as response,
        ):
            body = bytearray()
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > SIZE:
                    raise ToolError("The search failed: its answer is too long.")
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:  # Their words may hold what was sent.
        raise ToolError(f"The search failed: {type(error).__name__}.") from None
    if response.status_code != 200:
        raise ToolError(f"The search failed: status {response.status_code}.")
    return _object(bytes(body))


def _object(body: bytes) -> dict[str, Any]:
    from pydantic_core import from_json

    try:
        value: Any = from_json(body)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ToolError("The search failed: its answer is no JSON object.")
    return cast("dict[str, Any]", value)


def _hits(rows: Any, count: int, text: str) -> list[Hit]:
    listed = cast("list[Any]", rows) if isinstance(rows, list) else []
    objects = [cast("dict[str, Any]", row) for row in listed if isinstance(row, dict)]
    return [
        Hit(str(row.get("title") or ""), str(row["url"]), str(row.get(text) or ""))
        for row in objects[:count]
        if row.get("url")
    ]

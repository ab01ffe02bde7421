"""The servers of one or two tools: time, fetch, sequential-thinking."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from m1agent.mcp.config import StdioServer

PAGE = "<html><head><title>Owls</title></head><body><h1>Owls</h1><p>They hunt at <b>night</b>.</p></body></html>"
PAGES = {
    "/owls": ("text/html", PAGE),
    "/data": ("application/json", '{"owls": 3}'),
    "/robots.txt": ("text/plain", "User-agent: *\nDisallow: /private\n"),
    "/private/nest": ("text/html", PAGE),
    "/long": ("text/plain", "abcdefghij" * 1000),
}


@pytest.fixture
def site(serve: Callable[..., Any]) -> Any:
    def respond(request: Any) -> tuple[int, str, bytes]:
        kind, text = PAGES.get(request.path, ("", ""))
        return (200, kind, text.encode()) if kind else (404, "text/plain", b"")

    return serve(respond)


def test_fetch_reads_pages(site: Any, fetch_server: StdioServer, ask: Callable[..., Any]) -> None:
    page, raw, data, part, gone = ask(
        fetch_server,
        ("fetch__fetch", {"url": f"{site.url}/owls"}),
        ("fetch__fetch", {"url": f"{site.url}/owls", "raw": True}),
        ("fetch__fetch", {"url": f"{site.url}/data"}),
        ("fetch__fetch", {"url": f"{site.url}/long", "start_index": 5000, "max_length": 10}),
        ("fetch__fetch", {"url": f"{site.url}/gone"}),
    )
    assert "# Owls\n\nThey hunt at night." in page.content and "<p>" not in page.content
    assert PAGE in raw.content and '{"owls": 3}' in data.content
    assert "abcdefghij" in part.content and "start_index of 5010" in part.content
    assert gone.is_error and "404" in gone.content
    assert {"/owls", "/data", "/long", "/gone", "/robots.txt"} == set(site.paths)


def test_fetch_keeps_to_robots_txt_and_to_public_addresses(
    site: Any, fetch_server: StdioServer, ask: Callable[..., Any]
) -> None:
    (private,) = ask(fetch_server, ("fetch__fetch", {"url": f"{site.url}/private/nest"}))
    assert private.is_error and "autonomous fetching of this page is not allowed" in private.content
    assert site.paths == ["/robots.txt"]
    public_only = StdioServer("fetch", fetch_server.command, fetch_server.args[:2], fetch_server.env)
    (refused,) = ask(public_only, ("fetch__fetch", {"url": f"{site.url}/owls"}))
    assert refused.is_error and "not a public address" in refused.content
    assert site.paths == ["/robots.txt"]


def test_time_converts(time_server: StdioServer, ask: Callable[..., Any]) -> None:
    given = {"source_timezone": "Asia/Tokyo", "time": "09:30", "target_timezone": "UTC"}
    converted, now, wrong = ask(
        time_server,
        ("time__convert_time", given),
        ("time__get_current_time", {"timezone": "America/New_York"}),
        ("time__get_current_time", {"timezone": "Moon/Crater"}),
    )
    assert json.loads(converted.content)["target"]["datetime"].endswith("T00:30:00+00:00")
    assert json.loads(now.content)["timezone"] == "America/New_York"
    assert wrong.is_error and "Moon/Crater" in wrong.content


def test_sequential_thinking_counts_thoughts(node_server: Callable[..., Any], ask: Callable[..., Any]) -> None:
    def thought(number: int, **more: Any) -> tuple[str, dict[str, Any]]:
        step = {"thought": f"Step {number}", "nextThoughtNeeded": number < 3, "thoughtNumber": number}
        return "sequential-thinking__sequentialthinking", {**step, "totalThoughts": 3, **more}

    branch = thought(3, branchFromThought=1, branchId="other")
    told = ask(node_server("sequential-thinking"), thought(1), thought(2, isRevision=True, revisesThought=1), branch)
    last = json.loads(told[-1].content)
    assert last["thoughtHistoryLength"] == 3 and last["branches"] == ["other"] and last["nextThoughtNeeded"] is False

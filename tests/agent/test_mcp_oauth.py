"""Logging in at a real authorization server, the test being the browser."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from m1agent.mcp.client_side import ClientSide
from m1agent.mcp.config import HttpServer, OAuth, load_servers
from m1agent.mcp.hub import McpHub
from m1agent.mcp.server import ServerStatus

GUARDED = Path(__file__).parent / "servers" / "guarded.py"
Start = Callable[..., str]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a guarded server, and returns its address."""
    with ExitStack() as stack:
        yield lambda *options: stack.enter_context(_running(*options))


@contextmanager
def _running(*options: str) -> Iterator[str]:
    port = _free_port()
    process = subprocess.Popen(
        [sys.executable, str(GUARDED), str(port), *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 120
        while not _listens(port):
            assert process.poll() is None and time.monotonic() < deadline, "the server did not start"
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}/mcp"
    finally:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Browser:
    """Opens pages as a browser does, redirects and all."""

    def __init__(self) -> None:
        self.visited: list[str] = []
        self.pages: list[str] = []

    def __call__(self, url: str) -> None:
        self.visited.append(url)
        with urllib.request.urlopen(url, timeout=30) as page:
            self.pages.append(page.read().decode())


def connect(config: HttpServer, browser: Callable[[str], object], *, times: int = 1) -> tuple[ServerStatus, Any]:
    """The status after connecting, and what the server counted."""

    async def go() -> tuple[ServerStatus, Any]:
        hub = McpHub([config], ClientSide(open_url=browser))
        await hub.connect()
        try:
            status, counted = hub.status[0], None
            for _ in range(times if status.state == "ready" else 0):
                counted = json.loads((await hub.servers[0].call("counts", {})).content)
            return status, counted
        finally:
            await hub.aclose()
            assert asyncio.all_tasks() == {asyncio.current_task()}

    return asyncio.run(go())


def test_a_person_logs_in_once(start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    storage, browser = tmp_path / "logins" / "guarded.json", Browser()
    config = HttpServer("guarded", start(), oauth=OAuth("tester", ("read",), storage=storage))
    status, counted = connect(config, browser, times=3)
    assert status.state == "ready", status
    assert counted == {"registered": 1, "authorized": 1}
    assert len(browser.visited) == 1 and "scope=read" in browser.visited[0] and "logged in" in browser.pages[0]
    assert stat.S_IMODE(storage.stat().st_mode) == 0o600 and [storage.name] == os.listdir(storage.parent)

    again, counted = connect(config, browser)
    assert again.state == "ready" and counted == {"registered": 1, "authorized": 1}
    assert f"asks for a login; open {browser.visited[0]}" in caplog.text
    tokens = json.loads(storage.read_text())["tokens"]
    assert not any(tokens[name] in caplog.text for name in ("access_token", "refresh_token"))


def test_an_old_login_is_refreshed_and_a_forgotten_one_made_anew(start: Start, tmp_path: Path) -> None:
    storage, browser = tmp_path / "guarded.json", Browser()
    config = HttpServer("guarded", start(), oauth=OAuth(storage=storage))
    connect(config, browser)
    stored = json.loads(storage.read_text())
    storage.write_text(json.dumps(stored | {"expires_at": time.time() - 1}))
    _, counted = connect(config, browser)
    assert counted == {"registered": 1, "authorized": 1, "refreshed": 1}
    fresh = json.loads(storage.read_text())
    assert fresh["tokens"]["access_token"] != stored["tokens"]["access_token"] and fresh["expires_at"] > time.time()
    tokens = fresh["tokens"] | {"access_token": "forgotten", "refresh_token": "forgotten"}
    storage.write_text(json.dumps(fresh | {"tokens": tokens}))
    _, counted = connect(config, browser)
    assert counted == {"registered": 1, "authorized": 2, "refreshed": 1} and len(browser.visited) == 2
    ports = {url.partition("redirect_uri=")[2].partition("callback")[0] for url in browser.visited}
    assert len(ports) == 1


def test_a_person_may_take_longer_than_connecting(start: Start, tmp_path: Path) -> None:
    browser = Browser()

    def slowly(url: str) -> None:
        time.sleep(2.5)  # It is the deadline itself that has to pass.
        browser(url)

    oauth = OAuth(storage=tmp_path / "guarded.json")
    status, _ = connect(HttpServer("guarded", start(), oauth=oauth, connect_seconds=2.0), slowly)
    assert status.state == "ready" and status.protocol.startswith("2026")


def test_refused_and_forgotten_logins_are_reported(start: Start, tmp_path: Path) -> None:
    config = HttpServer("guarded", start("refuse"), oauth=OAuth(storage=tmp_path / "a.json"))
    assert connect(config, Browser())[0].reason == "the login was refused: not you"
    config = HttpServer("guarded", start(), oauth=OAuth(storage=tmp_path / "b.json", seconds=0.2))
    assert connect(config, lambda url: None)[0].reason == "nobody logged in within 0.2 seconds"


def test_a_taken_port_and_a_broken_file_are_named(start: Start, tmp_path: Path) -> None:
    address = start()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        config = HttpServer("guarded", address, oauth=OAuth(redirect_port=port, storage=tmp_path / "a.json"))
        reason = connect(config, Browser())[0].reason
    assert reason.startswith(f"oauth: port {port} is taken") and "redirect_port" in reason
    (tmp_path / "b.json").write_text("{")
    config = HttpServer("guarded", address, oauth=OAuth(storage=tmp_path / "b.json"))
    assert connect(config, Browser())[0].reason.endswith(
        "b.json: the stored login cannot be read; remove the file to log in anew"
    )


def test_only_the_browser_that_comes_back_is_heard(start: Start, tmp_path: Path) -> None:
    """Another page's request to the same port ends no login, and one with another state fails it."""
    told: list[int] = []

    def meddle(url: str) -> None:
        port = int(url.partition("127.0.0.1%3A")[2].partition("%2F")[0])
        for path in ("/favicon.ico", "/callback/else?code=x"):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10)
            except urllib.error.HTTPError as error:
                told.append(error.code)
                error.close()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/callback?code=stolen&state=forged", timeout=10):
            pass

    config = HttpServer("guarded", start(), oauth=OAuth(storage=tmp_path / "a.json"))
    status, _ = connect(config, meddle)
    assert told == [404, 404] and status.state == "failed" and "State parameter mismatch" in status.reason


def test_from_a_configuration_and_with_the_default_place(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    (config,) = load_servers({"mcpServers": {"guarded": {"url": start(), "oauth": {"scopes": ["read"]}}}})
    assert isinstance(config, HttpServer)
    assert connect(config, Browser())[0].state == "ready"
    (stored,) = (tmp_path / "m1agent" / "oauth").iterdir()
    assert stat.S_IMODE(stored.stat().st_mode) == 0o600

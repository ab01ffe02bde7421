"""Who may ask, how much, and what happens to those who leave, dawdle or flood."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest

from m1agent.errors import ServeError
from m1agent.messages import UserMessage
from m1agent.models.local import LocalModel
from m1agent.models.scripted import ScriptedModel
from m1agent.serve import ServeConfig, read_keys

Serving = Callable[..., Any]
SECRET, PROMPT, RESULT = "sk-very-secret", "my private question", "a private answer"


def echo(messages: tuple[Any, ...]) -> str:
    assert isinstance(messages[-1], UserMessage)
    return f"You said {messages[-1].text}"


class Held:
    """Replies that wait until they are let go."""

    def __init__(self) -> None:
        self.begun = 0
        self.go = threading.Event()
        self.left = 0

    async def __call__(self, messages: tuple[Any, ...]) -> str:
        self.begun += 1
        try:
            while not self.go.is_set():  # noqa: ASYNC110 (set by another thread)
                await anyio.sleep(0.01)
        except BaseException:
            self.left += 1
            raise
        return echo(messages)

    def wait(self, count: int) -> None:
        eventually(lambda: self.begun >= count)


def eventually(holds: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.01)


def connect(served: Any) -> socket.socket:
    host, port = served.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def received(connection: socket.socket, end: bytes) -> bytes:
    """What comes until `end` is among it."""
    data = b""
    while end not in data:
        data += (part := connection.recv(65536))
        assert part, data
    return data


def request(body: dict[str, Any]) -> bytes:
    data = json.dumps({"model": "scripted", "messages": [{"role": "user", "content": "Hi"}], **body}).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data


# Keys


def test_only_those_with_a_key_may_ask(serving: Serving) -> None:
    served = serving(ScriptedModel(["Hi."] * 2), keys=("one", SECRET), key=SECRET)
    assert served.chat(model="scripted").status_code == 200
    paths = (("POST", "/v1/chat/completions"), ("GET", "/v1/models"), ("GET", "/metrics"), ("GET", "/x"))
    wrong: list[dict[str, str]] = [
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": f"Bearer {SECRET}x"},
        {"Authorization": f"Bearer {SECRET[:-1]}"},
        {"Authorization": SECRET},
        {"Authorization": f"Basic {SECRET}"},
        {"Authorization": "Bearer \xff"},
    ]
    body = {"model": "scripted", "messages": [{"role": "user", "content": "Hi"}]}
    for headers in wrong:
        raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
        for method, path in paths:
            answer = httpx2.request(method, served.url + path, headers=raw, json=body if method == "POST" else None)
            assert answer.status_code == 401, (headers, path)
            assert answer.json()["error"]["code"] == "invalid_api_key"
            assert answer.headers["www-authenticate"] == "Bearer" and SECRET not in answer.text
    for path in ("/", "/health", "/openapi.json"):
        assert httpx2.get(served.url + path).status_code == 200


def test_a_public_address_needs_a_key() -> None:
    for host in ("0.0.0.0", "::", "192.168.1.2", "example.org"):
        with pytest.raises(ServeError, match="M1AGENT_API_KEY"):
            ServeConfig(host=host)
        assert ServeConfig(host=host, keys=("k",)).keys == ("k",)
        assert ServeConfig(host=host, insecure=True).insecure
    for host in ("127.0.0.1", "::1", "localhost"):
        assert ServeConfig(host=host).local
    with pytest.raises(ServeError, match="running must be at least 1"):
        ServeConfig(running=0)
    with pytest.raises(ServeError, match="port must be at most 65535, not 99999"):
        ServeConfig(port=99_999)
    assert SECRET not in repr(ServeConfig(keys=(SECRET,)))


def test_keys_come_from_the_environment_and_a_file(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# the team\none\n\n two \n")
    assert read_keys(file, {"M1AGENT_API_KEY": "zero"}) == ("zero", "one", "two")
    assert read_keys(None, {}) == ()
    file.write_text("# nobody\n")
    with pytest.raises(ServeError, match="holds no API key"):
        read_keys(file, {})
    with pytest.raises(ServeError, match="cannot be read"):
        read_keys(tmp_path / "none", {})
    with pytest.raises(ServeError, match="printable ASCII"):
        read_keys(None, {"M1AGENT_API_KEY": "a b"})


def test_the_page_runs_its_own_script_alone(serving: Serving) -> None:
    answer = serving(ScriptedModel([])).client.get("/")
    policy = answer.headers["content-security-policy"]
    assert answer.headers["content-type"].startswith("text/html") and "<script>" in answer.text
    assert policy.startswith("default-src 'none'; script-src 'sha256-") and "connect-src 'self'" in policy


def test_another_sites_name_for_this_machine_is_refused(serving: Serving) -> None:
    served = serving(ScriptedModel([]))
    assert served.client.get("/v1/models", headers={"Host": "evil.example:80"}).status_code == 403
    for name in ("localhost:1", "127.0.0.1", "[::1]:8000"):
        assert served.client.get("/v1/models", headers={"Host": name}).status_code == 200


def test_nothing_of_a_request_or_an_answer_is_logged(serving: Serving, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    model = ScriptedModel([RESULT, RESULT, RuntimeError(RESULT), ValueError(PROMPT)])
    served = serving(model, keys=(SECRET,), key=SECRET)
    body: dict[str, Any] = {"model": "scripted", "messages": [{"role": "user", "content": PROMPT}]}
    assert served.chat(**body).status_code == served.chat(stream=True, **body).status_code == 200
    assert served.chat(**body).status_code == served.chat(stream=True, **body).status_code == 500
    served.chat(**body, temperature=SECRET)
    served.client.get(f"/{SECRET}?q={PROMPT}")
    httpx2.get(f"{served.url}/v1/models?key={SECRET}", headers={"Authorization": f"Bearer {SECRET}x"})
    served.stop()
    ours = [record for record in caplog.records if not record.name.startswith("http")]  # not those of this client
    logged = "\n".join(f"{record.getMessage()} {record.exc_text}" for record in ours)
    assert "POST /v1/chat/completions 500" in logged and "RuntimeError in" in logged
    for secret in (SECRET, PROMPT, RESULT):
        assert secret not in logged


# Bounds


def test_more_than_run_and_wait_are_told_to_come_back(serving: Serving) -> None:
    held = Held()
    served = serving(ScriptedModel([held] * 3), running=1, waiting=1)
    answers: list[Any] = []
    asking = [threading.Thread(target=lambda: answers.append(served.chat(model="scripted"))) for _ in range(2)]
    asking[0].start()
    held.wait(1)
    asking[1].start()
    eventually(lambda: served.client.get("/health").json()["waiting"] == 1)
    for stream in (False, True):
        refused = served.chat(model="scripted", stream=stream)
        assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["type"] == "rate_limit_error"
    held.go.set()
    for thread in asking:
        thread.join()
    assert [answer.status_code for answer in answers] == [200, 200] and held.begun == 2


def test_the_rate_of_a_key_is_its_own(serving: Serving) -> None:
    served = serving(ScriptedModel(["Hi."] * 9), rate=8, keys=("a", "b"), key="a")
    assert [served.chat(model="scripted").status_code for _ in range(3)] == [200, 200, 429]
    other = {"Authorization": "Bearer b"}
    body = {"model": "scripted", "messages": [{"role": "user", "content": "Hi"}]}
    assert served.client.post("/v1/chat/completions", json=body, headers=other).status_code == 200
    refused = served.chat(model="scripted")
    assert refused.json()["error"]["code"] == "rate_limit_exceeded" and 1 <= int(refused.headers["retry-after"]) <= 8
    assert served.client.get("/v1/models").status_code == 200


def test_a_client_that_leaves_ends_its_reply(serving: Serving) -> None:
    held = Held()
    model = ScriptedModel([held] * 4)
    served = serving(model)
    for stream in (False, True):
        with connect(served) as leaving:
            leaving.sendall(request({"stream": stream}))
            held.wait(1)
        eventually(lambda: held.left == 1 and model.open_threads == 0)
        held.begun = held.left = 0
    with connect(served) as several:
        several.sendall(request({"n": 2}))
        held.wait(2)
    eventually(lambda: held.left == 2 and model.open_threads == 0)
    assert served.client.get("/health").json()["running"] == 0
    assert "m1agent_disconnects_total 3.0" in served.client.get("/metrics").text


def test_a_client_that_leaves_stops_the_model(serving: Serving, folder: Path) -> None:
    model = LocalModel(folder, max_tokens=100_000)
    served = serving(model, sessions=0)
    engine, name = model.engine, served.name
    for _ in range(3):
        with connect(served) as leaving:
            leaving.sendall(request({"stream": True, "temperature": 0, "model": name}))
            received(leaving, b"data: ")
        eventually(lambda: engine.stats().sessions == 0)
    generated = engine.stats().tokens_generated
    time.sleep(0.3)
    assert engine.stats().tokens_generated == generated < 5000


def test_those_that_dawdle_are_cut_off(serving: Serving) -> None:
    served = serving(ScriptedModel(["Hi."] * 3), header_seconds=0.3)
    silent, slow, again = connect(served), connect(served), connect(served)
    again.sendall(request({}))
    assert received(again, b"}}}").startswith(b"HTTP/1.1 200")
    slow.sendall(b"POST /v1/chat/")
    again.sendall(b"GET /hea")
    for connection in (silent, slow, again):
        with connection:
            assert _ended(connection)
    assert served.chat(model="scripted").status_code == 200


def test_one_that_does_not_read_is_cut_off(serving: Serving) -> None:
    model = ScriptedModel(["word " * 2_000_000], chunk=1000)
    served = serving(model, write_seconds=0.3)
    with connect(served) as deaf:
        deaf.sendall(request({"stream": True}))
        eventually(lambda: model.open_threads == 1)
        eventually(lambda: model.open_threads == 0)
    assert served.client.get("/health").json()["running"] == 0


def _ended(connection: socket.socket) -> bool:
    try:
        return connection.recv(4096) == b""
    except ConnectionResetError:
        return True


def test_connections_are_bounded(serving: Serving) -> None:
    served = serving(ScriptedModel(["Hi."]), running=1, waiting=0)
    served.client.get("/health")
    crowd = [connect(served) for _ in range(300)]
    ended = sum(_ended(one) for one in crowd[257:])
    for one in crowd:
        one.close()
    assert ended == 43
    assert served.client.get("/health").status_code == 200


# Many at once


def test_replies_to_many_at_once_do_not_mix(serving: Serving) -> None:
    model = ScriptedModel([echo] * 256, chunk=2)
    served = serving(model, running=64, waiting=256)

    async def ask(client: httpx2.AsyncClient, number: int) -> None:
        body = {"model": "scripted", "stream": True, "messages": [{"role": "user", "content": f"<{number}>"}]}
        said = ""
        async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
            assert answer.status_code == 200
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    said += json.loads(line[6:])["choices"][0]["delta"].get("content") or ""
        assert said == f"You said <{number}>"

    async def all_of_them() -> None:
        limits = httpx2.Limits(max_connections=256)
        async with httpx2.AsyncClient(base_url=served.url, timeout=60, limits=limits) as client:
            await asyncio.gather(*(ask(client, number) for number in range(256)))

    asyncio.run(all_of_them())
    assert served.client.get("/health").json()["running"] == 0


def test_a_drain_lets_what_was_begun_end(serving: Serving) -> None:
    held = Held()
    served = serving(ScriptedModel([held] * 2))
    answers: list[Any] = []
    for stream in (False, True):
        threading.Thread(target=lambda s=stream: answers.append(served.chat(model="scripted", stream=s))).start()
    held.wait(2)
    served.server.stop()
    eventually(lambda: _refuses(served))
    held.go.set()
    eventually(lambda: len(answers) == 2)
    assert all(answer.status_code == 200 and "You said Hi" in answer.text.replace('"}', "") for answer in answers[:1])
    served.thread.join(10)
    assert not served.thread.is_alive()


def _refuses(served: Any) -> bool:
    try:
        connect(served).close()
    except ConnectionRefusedError:
        return True
    return False

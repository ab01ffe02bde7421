"""A server that is left again and again, and asked by many at once, holds in the end what it held before."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest

WORDS = ("Lima", "Oslo", "Rome", "Bonn", "Cork", "Bath", "Kiel", "Nice")
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the current weather for a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
MEBIBYTE = 1 << 20


def metric(url: str, name: str) -> float:
    found = re.search(rf"^{name} (\S+)$", httpx2.get(f"{url}/metrics").text, re.MULTILINE)
    assert found, name
    return float(found[1])


def quiet(url: str) -> tuple[float, float]:
    """Resident bytes and open files once nothing runs."""
    end = time.monotonic() + 60
    while (health := httpx2.get(f"{url}/health").json())["running"] or health["waiting"]:
        assert time.monotonic() < end, health
        time.sleep(0.1)
    return metric(url, "process_resident_memory_bytes"), metric(url, "process_open_fds")


def body(city: str) -> dict[str, Any]:
    question = [{"role": "user", "content": f"What is the weather in {city}?"}]
    return {"model": "m1-nano", "stream": True, "temperature": 0, "tools": [TOOL], "messages": question}


def ask(url: str, city: str) -> None:
    said = ""
    with httpx2.stream("POST", f"{url}/v1/chat/completions", json=body(city), timeout=120) as answer:
        assert answer.status_code == 200
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                for call in json.loads(line[6:])["choices"][0]["delta"].get("tool_calls", ()):
                    said += call["function"]["arguments"]
    assert json.loads(said) == {"city": city}


def leave(url: str, count: int) -> None:
    host, port = url.removeprefix("http://").split(":")
    data = json.dumps(body("Rome")).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    for number in range(count):
        with socket.create_connection((host, int(port)), timeout=60) as leaving:
            leaving.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
            if number % 10 == 0:
                leaving.recv(1024)


@pytest.mark.slow
def test_streams_do_not_mix_and_those_who_leave_cost_nothing() -> None:
    environment = {key: value for key, value in os.environ.items() if key != "M1AGENT_API_KEY"} | {
        "OMP_NUM_THREADS": "1"
    }
    command = [sys.executable, "-m", "m1agent.cli", "serve", "--port", "0", "--log-level", "warning", "--running", "16"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as server:
        try:
            assert server.stderr is not None
            found = re.search(r"http://\S+", server.stderr.readline())
            assert found
            url = found[0]
            with ThreadPoolExecutor(16) as crowd:
                for _ in range(2):
                    list(crowd.map(lambda city: ask(url, city), WORDS * 4))
                leave(url, 100)
                memory, files = quiet(url)
                leave(url, 1000)
                list(crowd.map(lambda city: ask(url, city), WORDS * 4))
            after, files_after = quiet(url)
        finally:
            server.kill()
    assert after - memory < 24 * MEBIBYTE and files_after <= files + 1

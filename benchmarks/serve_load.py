"""Many streams at once over HTTP: how long they take, whether any gets what is another's, and what is left afterwards.

    python -m benchmarks.serve_load
    python -m benchmarks.serve_load --transformers PYTHON

The peer is `transformers serve` with the same weights, by an interpreter that has `transformers[serving]`, torch and
accelerate. It cannot hold calls to a schema, so it is asked without tools; its replies have exactly the tokens asked
for, ours end when the model does. Times are those of a client on the same machine, in milliseconds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

import m1runtime
from benchmarks import report

NAMES = ("Lima Oslo Rome Bonn Cork Bath Kiel Nice Graz Bern Turin Porto Lyon Delhi Kyoto Quito Sofia Minsk").split()
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the current weather for a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
WARM_UP = 8
TIMEOUT = 600


@dataclass(frozen=True, slots=True)
class Told:
    """One stream: seconds to the first token and to the end, its events with text, and all it said."""

    first: float
    whole: float
    events: int
    text: str


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serve_load", description=__doc__)
    parser.add_argument("--streams", type=int, default=256, help="at once")
    parser.add_argument("--disconnects", type=int, default=1000)
    parser.add_argument("--tokens", type=int, default=24, help="of a reply at most")
    parser.add_argument("--transformers", metavar="PYTHON", help="the interpreter of the peer")
    options = parser.parse_args()
    figures: dict[str, Any] = {"streams at once": options.streams, "tokens at most": options.tokens}
    with _ours(options.streams) as url:
        asyncio.run(_streams(url, "m1-nano", WARM_UP, options.tokens, tools=True))
        told = asyncio.run(_streams(url, "m1-nano", options.streams, options.tokens, tools=True))
        figures["m1agent serve, with calls"] = {**_figures(told), "that named another's city": _mixed(told)}
        plain = asyncio.run(_streams(url, "m1-nano", options.streams, options.tokens, tools=False))
        figures["m1agent serve, plain"] = _figures(plain)
        # From here on all that is asked was asked before, so that the prefixes that are kept have grown.
        figures["before"] = _state(url)
        figures["disconnects"] = _disconnects(url, options.disconnects)
        asyncio.run(_streams(url, "m1-nano", options.streams, options.tokens, tools=True))
        figures["after disconnects and as many streams"] = _state(url)
    if options.transformers:
        with _theirs(options.transformers) as (url, name):
            asyncio.run(_streams(url, name, WARM_UP, options.tokens, tools=False))
            figures["transformers serve, plain"] = _figures(
                asyncio.run(_streams(url, name, options.streams, options.tokens, tools=False))
            )
    report.save("serve_load", figures)


# Servers


@contextmanager
def _ours(running: int) -> Iterator[str]:
    command = [sys.executable, "-m", "m1agent.cli", "serve", "--port", "0", "--log-level", "warning"]
    command += ["--running", str(running)]
    environment = {key: value for key, value in os.environ.items() if key != "M1AGENT_API_KEY"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as one:
        assert one.stderr is not None
        try:
            found = re.search(r"http://\S+", one.stderr.readline())
            assert found, one.stderr.read()
            yield found[0]
        finally:
            one.terminate()


@contextmanager
def _theirs(python: str) -> Iterator[tuple[str, str]]:
    from benchmarks.peers.transformers_serve import write

    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        write(Path(m1runtime.__file__).parent / "nano", Path(folder))
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        command = [python, "-m", "transformers.cli.transformers", "serve", folder, "--port", str(port)]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        with subprocess.Popen(command, env=environment, cwd=folder, **quiet) as one:  # type: ignore[call-overload]
            try:
                url = f"http://127.0.0.1:{port}"
                _wait(f"{url}/health")
                yield url, folder
            finally:
                one.terminate()


def _wait(url: str) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        try:
            if httpx2.get(url).status_code == 200:
                return
        except httpx2.TransportError:
            pass
        time.sleep(0.5)
    raise TimeoutError(f"{url} did not answer")


# Load


async def _streams(url: str, model: str, count: int, tokens: int, *, tools: bool) -> list[Told]:
    limits = httpx2.Limits(max_connections=count)
    async with httpx2.AsyncClient(base_url=url, timeout=TIMEOUT, limits=limits) as client:
        return await asyncio.gather(*(_stream(client, model, _city(n), tokens, tools=tools) for n in range(count)))


def _city(number: int) -> str:
    return f"{NAMES[number % len(NAMES)]}{NAMES[number // len(NAMES) % len(NAMES)].lower()}"


async def _stream(client: httpx2.AsyncClient, model: str, city: str, tokens: int, *, tools: bool) -> Told:
    question = f"What is the weather in {city}?"
    body = {"model": model, "stream": True, "max_tokens": tokens, "temperature": 0}
    body |= {"messages": [{"role": "user", "content": question}]} | ({"tools": [TOOL]} if tools else {})
    began, first, events, text = time.perf_counter(), 0.0, 0, ""
    async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if line.startswith("data: {") and (said := _said(json.loads(line[6:]))):
                first = first or time.perf_counter() - began
                events, text = events + 1, text + said
    return Told(first, time.perf_counter() - began, events, text)


def _said(chunk: dict[str, Any]) -> str:
    delta = chunk["choices"][0]["delta"] if chunk["choices"] else {}
    calls = "".join(call["function"].get("arguments", "") for call in delta.get("tool_calls") or ())
    return (delta.get("content") or "") + calls


def _mixed(told: list[Told]) -> int:
    """Streams that named the city of another's question; a name that nobody asked for is the model's own mistake."""
    asked = {_city(number) for number in range(len(told))}
    named = [set(re.findall(r"[A-Z][a-z]+", one.text)) & asked for one in told]
    return sum(bool(found - {_city(number)}) for number, found in enumerate(named))


def _disconnects(url: str, count: int) -> int:
    host, port = url.removeprefix("http://").split(":")
    body = json.dumps(
        {"model": "m1-nano", "stream": True, "messages": [{"role": "user", "content": "What is the weather in Rome?"}]}
    ).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    for number in range(count):
        with socket.create_connection((host, int(port)), timeout=60) as leaving:
            leaving.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            if number % 2:
                leaving.recv(1024)
    return count


def _state(url: str) -> dict[str, float]:
    """What the server holds once nothing runs."""
    end = time.monotonic() + 60
    while (health := httpx2.get(f"{url}/health").json())["running"] + health["waiting"] and time.monotonic() < end:
        time.sleep(0.2)
    page = httpx2.get(f"{url}/metrics").text
    wanted = {
        "resident MiB": ("process_resident_memory_bytes", 1 / (1 << 20)),
        "open files": ("process_open_fds", 1.0),
        "running": ("m1agent_running", 1.0),
        "sessions kept": ("m1agent_sessions", 1.0),
    }
    return {label: round(_metric(page, name) * scale, 1) for label, (name, scale) in wanted.items()}


def _metric(page: str, name: str) -> float:
    found = re.search(rf"^{name} (\S+)$", page, re.MULTILINE)
    assert found, name
    return float(found[1])


def _figures(told: list[Told]) -> dict[str, Any]:
    def quantile(values: list[float], share: float) -> float:
        return round(1000 * sorted(values)[min(len(values) - 1, int(share * len(values)))], 1)

    firsts, wholes = [one.first for one in told], [one.whole for one in told]
    between = [(one.whole - one.first) / (one.events - 1) for one in told if one.events > 1]
    return {
        "first token p50": quantile(firsts, 0.5),
        "first token p99": quantile(firsts, 0.99),
        "whole reply p50": quantile(wholes, 0.5),
        "whole reply p99": quantile(wholes, 0.99),
        "an event p50": quantile(between, 0.5),
        "an event p99": quantile(between, 0.99),
        "events a second, all streams": round(sum(one.events for one in told) / max(wholes)),
    }


if __name__ == "__main__":
    main()

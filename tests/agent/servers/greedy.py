"""A server of the older handshake that asks the client's model: while its tools are listed, and as often as told to."""

from __future__ import annotations

import json
import sys
from typing import Any

QUESTION = {"messages": [{"role": "user", "content": {"type": "text", "text": "More?"}}], "maxTokens": 5}
TOOLS = [{"name": name, "inputSchema": {"type": "object"}} for name in ("unasked", "ask")]


def send(message: Any) -> None:
    print(json.dumps({"jsonrpc": "2.0", **message}), flush=True)


def receive() -> Any:
    return json.loads(sys.stdin.readline() or sys.exit())


def ask(times: int) -> list[Any]:
    for number in range(times):
        send({"id": f"q{number}", "method": "sampling/createMessage", "params": QUESTION})
    return [receive() for _ in range(times)]


unasked: list[Any] = []
while True:
    message = receive()
    request, method, params = message.get("id"), message["method"], message.get("params") or {}
    if request is None:
        continue
    if method == "initialize":
        known = {"protocolVersion": "2025-06-18", "capabilities": {"tools": {}}}
        send({"id": request, "result": {**known, "serverInfo": {"name": "greedy", "version": "0"}}})
    elif method == "tools/list":
        unasked = ask(1)
        send({"id": request, "result": {"tools": TOOLS}})
    elif method == "tools/call":
        told = unasked if params["name"] == "unasked" else ask(params["arguments"]["times"])
        send({"id": request, "result": {"content": [{"type": "text", "text": json.dumps(told)}]}})
    else:
        send({"id": request, "error": {"code": -32601, "message": "unknown"}})

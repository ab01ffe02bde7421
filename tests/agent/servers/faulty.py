"""A server of the older handshake, written by hand, that does wrong what it is asked to do wrong."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

DEEP = 200
METHODS = (
    "notifications/message",
    "notifications/progress",
    "notifications/tools/list_changed",
    "notifications/unheard",
)


def deep(levels: int) -> Any:
    made: Any = {"type": "string"}
    for _ in range(levels):
        made = {"type": "object", "properties": {"a": made}}
    return made


def tool(name: str, schema: Any = None, **more: Any) -> dict[str, Any]:
    return {"name": name, "inputSchema": schema or {"type": "object"}, **more}


SLOW = {"type": "object", "properties": {"a": {"type": "string", "pattern": "^(?=(a|aa)+$)"}}}
NAMES = ("pid", "flood", "garbage", "no list", "refuse", "number", "torn", "big", "deep result", "hang", "ask", "asked")
NAMES += ("result", "answer")
READ_ONLY = {"annotations": {"readOnlyHint": True}}
TOOLS = [tool(name) for name in NAMES]
TOOLS += [tool("deep", deep(DEEP)), tool("abyss", deep(40)), tool("slow", SLOW), tool("hang safely", **READ_ONLY)]
answers: list[Any] = []


def send(message: Any) -> None:
    print(json.dumps(message), flush=True)


def notify(method: str, params: Any) -> None:
    send({"jsonrpc": "2.0", "method": method, "params": params})


def text(request: Any, said: str) -> None:
    send({"jsonrpc": "2.0", "id": request, "result": {"content": [{"type": "text", "text": said}]}})


def call(request: Any, name: str, given: Any) -> None:  # noqa: C901 (one case a fault)
    match name:
        case "pid":
            text(request, str(os.getpid()))
        case "flood":
            for count in range(10_000):
                params = {"level": "info", "data": f"line {count}", "progressToken": count, "progress": count}
                notify(METHODS[count % len(METHODS)], params)
            text(request, "flooded")
        case "garbage":
            sys.stdout.buffer.write(b"\xff\xfe\x00\n\n{\n[]\n42\nnull\n" + b"[" * 100_000 + b"\n")
            for odd in (
                {"jsonrpc": "1.0", "id": request, "result": {}},
                {"jsonrpc": "2.0"},
                {"jsonrpc": "2.0", "id": 7},
            ):
                send(odd)
            send({"jsonrpc": "2.0", "id": 987_654, "result": {}})
            send({"jsonrpc": "2.0", "id": None, "error": {"code": -32700, "message": "parse error"}})
            send({"jsonrpc": "2.0", "id": "q1", "method": "nonsense/do", "params": {}})
            notify("notifications/progress", "nothing")
            notify("notifications/message", {"level": "loud"})
            text(request, "after the garbage")
        case "no list":
            send({"jsonrpc": "2.0", "id": request, "result": {"content": "no list"}})
        case "refuse":
            send({"jsonrpc": "2.0", "id": request, "error": {"code": -32000, "message": "the disk is full"}})
        case "number":
            send({"jsonrpc": "2.0", "id": request, "result": 7})
        case "torn":
            print(f'{{"jsonrpc": "2.0", "id": {request}, "result": {{"content"', flush=True)
        case "big":
            text(request, "x" * 5_000_000)
        case "deep result":
            result = {"content": [], "structuredContent": deep(DEEP)}
            send({"jsonrpc": "2.0", "id": request, "result": result})
        case "result":
            send({"jsonrpc": "2.0", "id": request, "result": given})
        case "answer":
            send({"jsonrpc": "2.0", "id": request, **given})
        case "ask":
            for method in ("sampling/createMessage", "elicitation/create", "roots/list", "ping"):
                send({"jsonrpc": "2.0", "id": f"ask {method}", "method": method, "params": {}})
            text(request, "asked")
        case "asked":
            text(request, json.dumps(answers))
        case _:
            pass


for line in sys.stdin:
    message = json.loads(line)
    method = message.get("method")
    if method == "initialize":
        known = {"protocolVersion": "2025-06-18", "capabilities": {"tools": {"listChanged": True}}}
        known["serverInfo"] = {"name": "faulty", "version": "0"}
        send({"jsonrpc": "2.0", "id": message["id"], "result": known})
    elif method == "tools/list":
        send({"jsonrpc": "2.0", "id": message["id"], "result": {"tools": TOOLS}})
    elif method == "tools/call":
        call(message["id"], message["params"]["name"], message["params"].get("arguments"))
    elif method is None:
        answers.append(message)
    elif "id" in message:
        send({"jsonrpc": "2.0", "id": message["id"], "error": {"code": -32601, "message": "unknown"}})

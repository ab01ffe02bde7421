"""A server of the older handshake whose list of tools changes and cannot be had: the answers are told by the calls."""

from __future__ import annotations

import json
import sys
from typing import Any

known = {"protocolVersion": "2025-06-18", "capabilities": {"tools": {"listChanged": True}}}
known["serverInfo"] = {"name": "sulking", "version": "0"}
names = ["change"]
mood = "answer"


def send(message: Any) -> None:
    print(json.dumps({"jsonrpc": "2.0", **message}), flush=True)


for line in sys.stdin:
    message = json.loads(line)
    request, method = message.get("id"), message["method"]
    if request is None:
        continue
    if method == "initialize":
        send({"id": request, "result": known})
    elif method == "tools/list" and mood == "answer":
        send({"id": request, "result": {"tools": [{"name": name, "inputSchema": {}} for name in names]}})
    elif method == "tools/call":
        mood = message["params"]["arguments"].get("mood", mood)
        names.append(f"tool {len(names)}")
        send({"method": "notifications/tools/list_changed"})
        send({"id": request, "result": {"content": []}})
    elif mood != "silent":
        send({"id": request, "error": {"code": -32603, "message": "no list today"}})

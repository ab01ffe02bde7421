"""A server that starts in some 20 ms, without the mcp SDK. It ends when its stdin does.

`hang` writes its process id to a file (a named pipe, say) and then never answers; other calls are answered meanwhile.
"""

import json
import os
import subprocess
import sys

TEXT = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
FILE = {"type": "object", "properties": {"file": {"type": "string"}}, "required": ["file"]}
NOTHING = {"type": "object", "properties": {}}
TOOLS = {"pid": NOTHING, "spawn": NOTHING, "hang": FILE, "echo": TEXT}


def answer(method: str, params: dict) -> dict | None:
    if method == "initialize":
        server = {"name": "small", "version": "1"}
        return {"protocolVersion": "2025-06-18", "capabilities": {"tools": {}}, "serverInfo": server}
    if method == "tools/list":
        return {"tools": [{"name": name, "inputSchema": schema} for name, schema in TOOLS.items()]}
    text = call(params["name"], params.get("arguments", {}))
    return None if text is None else {"content": [{"type": "text", "text": text}]}


def call(name: str, arguments: dict) -> str | None:
    if name == "spawn":
        # A grandchild that holds this process's pipes open, as servers started through a shell or npx do.
        return str(subprocess.Popen([sys.executable, "-ISc", "import signal; signal.pause()"]).pid)
    if name == "hang":
        with open(arguments["file"], "w") as file:
            file.write(str(os.getpid()))
        return None
    return arguments["text"] if name == "echo" else str(os.getpid())


for line in sys.stdin:
    message = json.loads(line)
    if "id" not in message:
        continue
    reply = {"jsonrpc": "2.0", "id": message["id"]}
    if message["method"] in ("initialize", "tools/list", "tools/call"):
        result = answer(message["method"], message.get("params", {}))
        if result is None:
            continue
        reply["result"] = result
    else:
        reply["error"] = {"code": -32601, "message": "no such method"}
    print(json.dumps(reply), flush=True)

"""A server that starts in some 20 ms, without the mcp SDK. It ends when its stdin does.

`hang` writes its process id to a file (a named pipe, say) and then never answers.
"""

import json
import os
import subprocess
import sys

FILE = {"type": "object", "properties": {"file": {"type": "string"}}, "required": ["file"]}
NOTHING = {"type": "object", "properties": {}}
TOOLS = {"pid": NOTHING, "spawn": NOTHING, "hang": FILE}


def answer(method: str, params: dict) -> dict:
    if method == "initialize":
        server = {"name": "small", "version": "1"}
        return {"protocolVersion": "2025-06-18", "capabilities": {"tools": {}}, "serverInfo": server}
    if method == "tools/list":
        return {"tools": [{"name": name, "inputSchema": schema} for name, schema in TOOLS.items()]}
    return {"content": [{"type": "text", "text": call(params["name"], params.get("arguments", {}))}]}


def call(name: str, arguments: dict) -> str:
    if name == "spawn":
        # A grandchild that holds this process's pipes open, as servers started through a shell or npx do.
        return str(subprocess.Popen([sys.executable, "-ISc", "import signal; signal.pause()"]).pid)
    if name == "hang":
        with open(arguments["file"], "w") as file:
            file.write(str(os.getpid()))
        sys.stdin.read()
        os._exit(0)
    return str(os.getpid())


for line in sys.stdin:
    message = json.loads(line)
    if "id" not in message:
        continue
    reply = {"jsonrpc": "2.0", "id": message["id"]}
    if message["method"] in ("initialize", "tools/list", "tools/call", "ping"):
        reply["result"] = answer(message["method"], message.get("params", {}))
    else:
        reply["error"] = {"code": -32601, "message": "no such method"}
    print(json.dumps(reply), flush=True)

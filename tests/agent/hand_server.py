"""A hand-written MCP server of 2024 with most of what goes wrong in the wild: `hand_server.py LOG`.

It ignores methods it does not know, offers odd schemas and names, and dies when `die` is called. What it is asked is
written to LOG, a line each.
"""

import json
import sys

TEXT = {"type": "string"}
TREE = {"type": "object", "properties": {"value": {}, "next": {"$ref": "#/$defs/tree"}}}
TOOLS = [
    {"name": "empty", "inputSchema": {}},
    {"name": "bad name! é", "inputSchema": {"type": "object", "properties": {"from": TEXT}}},
    {
        "name": "odd",
        "inputSchema": {
            "type": "object",
            "$defs": {"tree": TREE},
            "properties": {"tree": {"$ref": "#/$defs/tree"}, "many": {"type": ["integer", "null"]}, "any": True},
        },
    },
    {
        "name": "strict",
        "inputSchema": {
            "type": "object",
            "properties": {"n": {"type": "integer"}, "who": TEXT},
            "required": ["n", "who"],
        },
    },
    {"name": "big", "inputSchema": {"type": "object"}},
    {"name": "die", "inputSchema": {"type": "object"}},
]


def call(name, arguments):
    with open(sys.argv[1], "a") as log:
        log.write(json.dumps([name, arguments]) + "\n")
    if name == "die":
        sys.exit(1)
    if name == "big":
        return [{"type": "text", "text": "begin " + "x" * 5_000_000 + " end"}]
    return [{"type": "text", "text": f"{name} got"}, {"type": "text", "text": json.dumps(arguments)}]


for line in sys.stdin:
    message = json.loads(line)
    method = message.get("method")
    if method == "initialize":
        information = {"name": "hand", "version": "0"}
        result = {"protocolVersion": "2024-11-05", "capabilities": {"tools": {}}, "serverInfo": information}
    elif method == "tools/list":
        result = {"tools": TOOLS}
    elif method == "tools/call":
        result = {"content": call(message["params"]["name"], message["params"].get("arguments"))}
    else:
        continue
    print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}), flush=True)

"""Names of MCP tools as the model sees them: `<server>__<tool>`, the same in every run, at most 64 characters."""

from __future__ import annotations

import hashlib
import re

LONGEST = 64
UNSAFE = re.compile(r"[^A-Za-z0-9_-]|-(?=x)")
UNSAFE_IN_SERVER = re.compile(r"[^A-Za-z0-9_-]|-(?=x)|_(?=_|$)")
ESCAPE = re.compile(r"-x([0-9a-f]{1,6})-")


def tool_name(server: str, tool: str) -> str:
    """The name of a server's tool. Only a name that would be too long gets its end replaced by a hash of the whole."""
    name = f"{server_prefix(server)}{encode(tool)}"
    if len(name) <= LONGEST:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{name[: LONGEST - 9]}_{digest}"


def server_prefix(server: str) -> str:
    """What the names of all tools of a server begin with."""
    return f"{encode(server, UNSAFE_IN_SERVER)}__"


def encode(text: str, unsafe: re.Pattern[str] = UNSAFE) -> str:
    """`text` in letters, digits, `_` and `-`; any other character is `-x<hex>-`, so that no two names become one."""
    return unsafe.sub(lambda match: f"-x{ord(match[0]):x}-", text)


def decode(name: str) -> str:
    """The inverse of `encode`."""
    return ESCAPE.sub(lambda match: chr(int(match[1], 16)), name)

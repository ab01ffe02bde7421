"""A server made with the official SDK, whose arguments are checked by more than its schema says."""

from typing import Annotated

from mcp.server import MCPServer
from pydantic import AfterValidator

server = MCPServer("official", log_level="ERROR")


def even(value: int) -> int:
    if value % 2:
        raise ValueError("must be even")
    return value


@server.tool()
def half(n: Annotated[int, AfterValidator(even)]) -> str:
    """Half of an even number."""
    return str(n // 2)


@server.tool()
def several() -> list[str]:
    """More than one block."""
    return ["one", "two"]


server.run()

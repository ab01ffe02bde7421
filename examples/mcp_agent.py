"""Any file with "mcpServers", as other programs use them, as an agent: one question, or a chat.

python examples/mcp_agent.py servers.json "What time is it in Tokyo now?"
python examples/mcp_agent.py servers.json --model path/to/a/checkpoint

{"mcpServers": {"time": {"command": "python", "args": ["-m", "mcp_server_time"]}}}
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from typing import TextIO

from m1agent import Agent, ApprovalRequest, Limits, M1AgentError
from m1agent.chat import Chat
from m1agent.chat.terminal import reader
from m1agent.events import RunFinished
from m1agent.mcp.terminal import Terminal
from m1agent.result import RunResult
from m1agent.schema import canonical_json
from m1agent.show import Printer, plain


def approve(request: ApprovalRequest) -> bool:
    """Ask at the terminal about calls that may destroy something; where there is none, the answer is no."""
    if not sys.stdin.isatty():
        return False
    call = plain(f"{request.call.name} {canonical_json(request.call.arguments)}")
    return input(f"\nRun {call}? [y/N] ").strip().lower() in ("y", "yes")


def describe(agent: Agent) -> list[str]:
    """A line for each server: its tools, or why it is left out. Others work all the same."""
    return [
        f"{server.name}: {server.state}, {', '.join(server.tools) if server.state == 'ready' else server.reason}"
        for server in agent.servers
    ]


async def answer(agent: Agent, question: str, out: TextIO) -> RunResult:
    """Ask, and show everything that happens."""
    printer = Printer(out)
    async for event in agent.stream(question):
        printer.show(event)
        if isinstance(event, RunFinished):
            return event.result
    raise AssertionError("a run ends with RunFinished")


async def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("servers", help='a JSON file with "mcpServers"')
    parser.add_argument("question", nargs="?", help="without it, a chat begins")
    parser.add_argument("--model", default="m1-nano", help="a bundled model, a checkpoint folder, hf:..., openai:...")
    parser.add_argument("--instructions", default="", help="what outranks the question")
    parser.add_argument("--max-steps", type=int, default=20, metavar="N", help="replies at most")
    given = parser.parse_args()
    logging.getLogger("m1agent.mcp").addHandler(logging.NullHandler())  # What it would say is printed below.
    agent = Agent(
        given.model,
        instructions=given.instructions,
        mcp=given.servers,
        limits=Limits(steps=given.max_steps),
        approval=approve if given.question else None,  # A chat asks by itself.
        elicit=Terminal(),
    )
    async with agent:
        print("\n".join(describe(agent)), file=sys.stderr)
        if given.question is None:
            await Chat(agent, reader(), sys.stdout).run()
            return 0
        result = await answer(agent, given.question, sys.stdout)
        return 0 if result.stop == "done" else 1


if __name__ == "__main__":
    try:
        sys.exit(asyncio.run(main()))
    except (M1AgentError, ValueError) as error:
        sys.exit(f"mcp_agent: {error}")

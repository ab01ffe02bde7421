"""The main job, shown step by step: a typed tool, a local model, calls valid by construction; then a real MCP server.

python examples/maths_agent.py
python examples/maths_agent.py --question "Integrate 2 sin x" --model path/to/a/checkpoint
"""

from __future__ import annotations

import argparse
import asyncio
import sys

from m1agent import Agent
from m1agent.events import RunFinished
from m1agent.mcp.config import StdioServer
from m1agent.result import RunResult
from m1agent.show import Printer, prompt_of
from m1tools.maths import calculate_math

TIME = StdioServer("time", sys.executable, ("-m", "mcp_server_time", "--local-timezone", "UTC"))


async def show(title: str, agent: Agent, question: str) -> RunResult:
    """Ask, and print everything that happens."""
    print(f"\n=== {title}\n")
    printer = Printer(sys.stdout)
    async with agent:
        for server in agent.servers:
            print(f"MCP server '{server.name}' is {server.state} {server.reason or ', '.join(server.tools)}")
        printer.prompt(prompt_of(agent, question))
        print()
        async for event in agent.stream(question):
            printer.show(event)
            if isinstance(event, RunFinished):
                return event.result
    raise AssertionError("a run ends with RunFinished")


async def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="m1-nano", help="a bundled model or a checkpoint folder")
    parser.add_argument("--question", default="What is the derivative of 3x^2 + 2x - 1?")
    parser.add_argument("--time-question", default="What time is it in Tokyo now?")
    given = parser.parse_args()

    # 1. A Python function is the tool: its signature and docstring become the schema in the prompt, the grammar that
    #    masks the model's tokens inside a call, and the check of the arguments before the function runs.
    maths = await show("A Python function as a tool", Agent(given.model, tools=[calculate_math]), given.question)

    # 2. The same agent with the tools of an MCP server, a program of its own that speaks over stdin and stdout.
    clock = await show("An MCP server's tools", Agent(given.model, mcp=[TIME]), given.time_question)

    return 0 if maths.stop == clock.stop == "done" and maths.calls and clock.calls else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))

"""A program whose agent books a table, on a server that asks at the terminal for how many."""

from __future__ import annotations

import sys
from pathlib import Path

from m1agent.agent import Agent
from m1agent.mcp.config import StdioServer
from m1agent.mcp.terminal import Terminal
from m1agent.messages import AssistantMessage, ToolCall
from m1agent.models.scripted import ScriptedModel

server = StdioServer("full", sys.executable, (str(Path(__file__).with_name("full.py")),))
model = ScriptedModel([AssistantMessage(calls=(ToolCall("x", "full__book", {"day": "Mon\x1b[2Jday"}),)), "done"])
result = Agent(model, mcp=[server], elicit=Terminal()).run_sync("Book a table.")
print(result.calls[0].result.content)

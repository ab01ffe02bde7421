"""A tool loop of pydantic-ai over a server: `python pydantic_ai_client.py URL KEY`. Prints what it came to, as JSON."""

from __future__ import annotations

import asyncio
import json
import sys

from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

called: list[str] = []


def get_weather(city: str) -> str:
    """Get the current weather for a city.

    Args:
        city: The city.
    """
    called.append(city)
    return "21 degrees and sunny"


async def main(url: str, key: str) -> None:
    model = OpenAIChatModel("m1-nano", provider=OpenAIProvider(base_url=f"{url}/v1", api_key=key))
    agent = Agent(model, tools=[get_weather])
    whole = await agent.run("What is the weather in Lisbon?")
    async with agent.run_stream("What is the weather in Oslo?") as stream:
        streamed = [text async for text in stream.stream_text(delta=True)]
    usage = whole.usage
    figures = {
        "output": whole.output,
        "streamed": "".join(streamed),
        "called": called,
        "cached": usage.cache_read_tokens,
    }
    print(json.dumps(figures))


asyncio.run(main(*sys.argv[1:]))

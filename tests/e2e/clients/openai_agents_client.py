"""A tool loop of openai-agents over a server: `python openai_agents_client.py URL KEY`. Prints JSON.

Its default is the Responses API; any server of chat completions is used through `OpenAIChatCompletionsModel`, or with
`set_default_openai_api("chat_completions")`, as its documentation says.
"""

from __future__ import annotations

import asyncio
import json
import sys

from agents import (
    Agent,
    Runner,
    function_tool,
    set_default_openai_api,
    set_default_openai_client,
    set_tracing_disabled,
)
from openai import AsyncOpenAI

called: list[str] = []


@function_tool
def get_weather(city: str) -> str:
    """Get the current weather for a city.

    Args:
        city: The city.
    """
    called.append(city)
    return "21 degrees and sunny"


async def main(url: str, key: str) -> None:
    set_tracing_disabled(True)
    set_default_openai_client(AsyncOpenAI(base_url=f"{url}/v1", api_key=key))
    set_default_openai_api("chat_completions")
    agent = Agent(name="weather", model="m1-nano", tools=[get_weather])
    whole = await Runner.run(agent, "What is the weather in Lisbon?")
    streamed = Runner.run_streamed(agent, "What is the weather in Oslo?")
    deltas = [
        event.data.delta
        async for event in streamed.stream_events()
        if event.type == "raw_response_event" and event.data.type == "response.output_text.delta"
    ]
    cached = whole.context_wrapper.usage.input_tokens_details.cached_tokens
    figures = {"output": whole.final_output, "streamed": "".join(deltas), "called": called, "cached": cached}
    print(json.dumps(figures))


asyncio.run(main(*sys.argv[1:]))

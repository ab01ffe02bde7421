"""Clients that others maintain, unmodified, run tool loops with m1-nano behind `m1agent serve`."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import openai
import pytest
from openai.lib._tools import pydantic_function_tool
from pydantic import BaseModel

from m1agent import Agent, tool
from m1agent.models.openai import OpenAIModel

ROOT = Path(__file__).parents[2]
PEERS = ROOT / ".venv-peers" / "bin" / "python"
INSPECT = Path(__file__).parent / ".venv-inspect" / "bin" / "inspect"
KEY = "sk-local-test"
QUESTION = "What is the weather in Lisbon?"
WEATHER: Any = {
    "name": "get_weather",
    "description": "Get the current weather for a city.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "description": "The city."}},
        "required": ["city"],
    },
}
TOOLS: Any = [{"type": "function", "function": WEATHER}]
RESULT = "21 degrees and sunny"


@contextmanager
def served(*arguments: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """`m1agent serve` as a process of its own; its address once it can be used."""
    program = [sys.executable, "-m", "m1agent.cli", "serve", "--port", "0", *arguments]
    environment = {**os.environ, "M1AGENT_API_KEY": KEY, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(program, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment) as process:
        try:
            assert process.stderr is not None
            first = process.stderr.readline()
            found = re.fullmatch(r"serving (http://127\.0\.0\.1:\d+)\n", first)
            assert found, first + process.stderr.read()
            yield found[1], process
        finally:
            process.kill()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served("--log-level", "warning") as (url, _):
        yield url


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0, timeout=60) as client:
        yield client


def answers(text: str | None) -> bool:
    return text is not None and "Lisbon" in text and RESULT in text


def test_openai_whole_replies(client: openai.OpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": QUESTION}]
    reply = client.chat.completions.create(model="m1-nano", messages=messages, tools=TOOLS, temperature=0)
    message = reply.choices[0].message
    assert reply.choices[0].finish_reason == "tool_calls" and message.tool_calls
    (call,) = message.tool_calls
    assert call.type == "function" and json.loads(call.function.arguments) == {"city": "Lisbon"}
    messages += [message, {"role": "tool", "tool_call_id": call.id, "content": RESULT}]
    last = client.chat.completions.create(model="m1-nano", messages=messages, tools=TOOLS, temperature=0)
    assert answers(last.choices[0].message.content) and last.choices[0].finish_reason == "stop"
    assert last.usage and last.usage.prompt_tokens_details and reply.usage
    assert last.usage.prompt_tokens_details.cached_tokens == reply.usage.total_tokens + 1


def test_openai_streams(client: openai.OpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": QUESTION}]
    given: Any = {"model": "m1-nano", "tools": TOOLS, "temperature": 0}
    with client.chat.completions.stream(messages=messages, **given) as stream:
        kinds = [event.type for event in stream]
        reply = stream.get_final_completion()
    assert "tool_calls.function.arguments.delta" in kinds and "tool_calls.function.arguments.done" in kinds
    message = reply.choices[0].message
    assert message.tool_calls and json.loads(message.tool_calls[0].function.arguments) == {"city": "Lisbon"}
    messages += [message, {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": RESULT}]
    told, usage = "", None
    for chunk in client.chat.completions.create(
        messages=messages, stream=True, stream_options={"include_usage": True}, **given
    ):
        told += (chunk.choices[0].delta.content or "") if chunk.choices else ""
        usage = chunk.usage or usage
    assert answers(told) and usage is not None and usage.prompt_tokens_details is not None
    assert (usage.prompt_tokens_details.cached_tokens or 0) > 64


def test_openai_parsed_outputs(client: openai.OpenAI) -> None:
    class Answer(BaseModel):
        city: str
        sky: Literal["sunny", "grey"]

    class GetWeather(BaseModel):
        """Get the current weather for a city."""

        city: str

    messages: Any = [{"role": "user", "content": QUESTION}]
    answer = client.chat.completions.parse(model="m1-nano", messages=messages, response_format=Answer, temperature=0)
    assert isinstance(answer.choices[0].message.parsed, Answer)
    tools: Any = [pydantic_function_tool(GetWeather, name="get_weather")]
    reply = client.chat.completions.parse(model="m1-nano", messages=messages, tools=tools, temperature=0)
    calls = reply.choices[0].message.tool_calls
    assert calls and calls[0].function.parsed_arguments == GetWeather(city="Lisbon")


def test_openai_older_functions_choices_and_bare_texts(client: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": QUESTION}]
    reply = client.chat.completions.create(model="m1-nano", messages=messages, functions=[WEATHER], temperature=0)
    call = reply.choices[0].message.function_call
    assert call and call.name == "get_weather" and json.loads(call.arguments) == {"city": "Lisbon"}
    several = client.chat.completions.create(model="m1-nano", messages=messages, n=2, seed=1, tools=TOOLS)
    assert len(several.choices) == 2
    assert client.completions.create(model="m1-nano", prompt="What is", max_tokens=4).choices[0].text
    assert [model.id for model in client.models.list()] == ["m1-nano"]


def test_openai_meets_errors_it_knows(client: openai.OpenAI, url: str) -> None:
    messages: Any = [{"role": "user", "content": QUESTION}]
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(model="m1-nano", messages=messages, temperature=9)
    assert wrong.value.param == "temperature" and wrong.value.code == "invalid_value"
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="gpt-4", messages=messages)
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="sk-wrong").models.list()


def test_curl(url: str) -> None:
    if shutil.which("curl") is None:
        pytest.skip("there is no curl here")

    def ask(messages: list[Any], *more: str) -> str:
        given = {"model": "m1-nano", "messages": messages, "tools": TOOLS, "temperature": 0, "stream": bool(more)}
        headers = ["-H", "Content-Type: application/json", "-H", f"Authorization: Bearer {KEY}"]
        command = ["curl", "-sS", "--fail", *more, *headers, "-d", json.dumps(given), f"{url}/v1/chat/completions"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout

    messages: list[Any] = [{"role": "user", "content": QUESTION}]
    message = json.loads(ask(messages))["choices"][0]["message"]
    messages += [message, {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": RESULT}]
    assert answers(json.loads(ask(messages))["choices"][0]["message"]["content"])
    events = [line[6:] for line in ask(messages, "-N").split("\n\n") if line]
    assert events[-1] == "[DONE]"
    assert answers("".join(json.loads(event)["choices"][0]["delta"].get("content", "") for event in events[:-1]))


@pytest.mark.parametrize("name", ["pydantic_ai", "openai_agents"])
def test_agents_of_others(url: str, name: str) -> None:
    if not PEERS.exists():
        pytest.skip("make bench-peers installs the agents of others")
    program = Path(__file__).parent / "clients" / f"{name}_client.py"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [str(PEERS), "-W", "ignore", str(program), url, KEY],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["called"] == ["Lisbon", "Oslo"]
    assert answers(figures["output"]) and RESULT in figures["streamed"]
    assert figures["cached"] > 64


def test_an_evaluation_of_inspect(url: str, tmp_path: Path) -> None:
    """inspect_ai's provider for servers like OpenAI's runs its own tool loop, and scores it."""
    if not INSPECT.exists():
        pytest.skip("make servers installs inspect_ai")
    command = [str(INSPECT), "eval", "inspect_sums.py", "--model", "openai-api/m1/m1-nano", "--temperature", "0"]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [*command, "--display", "none", "--log-format", "json", "--log-dir", str(tmp_path / "logs")],
        env={**environment, "HOME": str(tmp_path), "M1_BASE_URL": f"{url}/v1", "M1_API_KEY": KEY},
        cwd=Path(__file__).parent / "clients",
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    (log,) = (tmp_path / "logs").glob("*.json")
    told = json.loads(log.read_text())
    assert told["status"] == "success" and told["results"]["scores"][0]["metrics"]["accuracy"]["value"] == 1.0
    for sample in told["samples"]:
        _, call, result, answer = sample["messages"]
        assert call["tool_calls"][0]["function"] == "calculate_math"
        assert result["content"] == sample["target"] and sample["target"] in answer["content"]


@tool
def get_weather(city: str) -> str:
    """Get the current weather for a city.

    Args:
        city: The city.
    """
    return RESULT


def test_our_own_agent_and_a_server_before_a_server(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Agent(OpenAIModel("m1-nano", f"{url}/v1", api_key=KEY), tools=[get_weather]) as agent:
        direct = agent.run_sync(QUESTION)
    assert answers(direct.output) and [record.call.arguments for record in direct.calls] == [{"city": "Lisbon"}]
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with served(f"openai:m1-nano@{url}/v1", "--name", "proxied") as (front, _):
        with Agent(OpenAIModel("proxied", f"{front}/v1", api_key=KEY), tools=[get_weather]) as agent:
            through = agent.run_sync(QUESTION)
        assert answers(through.output) and [one.call.arguments for one in through.calls] == [{"city": "Lisbon"}]


def test_sigterm_drains(url: str) -> None:
    with served() as (address, process):
        with openai.OpenAI(base_url=f"{address}/v1", api_key=KEY, max_retries=0, timeout=60) as client:
            messages: Any = [{"role": "user", "content": "Tell me of rain."}]
            stream = client.chat.completions.create(
                model="m1-nano", messages=messages, stream=True, max_tokens=400, temperature=1.5, seed=1
            )
            first = next(iter(stream))
            process.send_signal(signal.SIGTERM)
            chunks = [first, *stream]
            assert chunks[-1].choices[0].finish_reason in ("stop", "length")
        assert process.wait(20) == 0
        assert process.stderr is not None
        log = process.stderr.read()
    assert "rain" not in log and KEY not in log and "Traceback" not in log


def test_what_cannot_be_started_is_told(tmp_path: Path) -> None:
    def told(*arguments: str, **environment: str) -> str:
        program = [sys.executable, "-m", "m1agent.cli", "serve", *arguments]
        bare = {key: value for key, value in os.environ.items() if key != "M1AGENT_API_KEY"}
        done = subprocess.run(
            program, capture_output=True, text=True, cwd=ROOT, env={**bare, **environment}, timeout=60
        )
        assert done.returncode == 2, done.stderr
        return done.stderr

    assert "--insecure" in told("--host", "0.0.0.0")
    assert "holds no API key" in told("--api-key-file", "/dev/null")
    assert "there is no model" in told("nowhere")
    assert "running must be at least 1" in told("--running", "0")

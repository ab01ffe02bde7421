"""The bundled model's weights served by `transformers serve`, another implementation, and called as `openai:`."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from m1agent import Agent, Conversation, Settings, load_model
from m1agent.models.openai import OpenAIModel
from m1agent.prompt.template import TOOLS_INTRO, TOOLS_OUTRO
from m1tools.maths import calculate_math

NEEDED = ("fastapi", "openai", "uvicorn", "accelerate")
PROGRAM = """
import sys
import torch
from m1runtime.transformers import register
from transformers.cli.transformers import main

torch.set_num_threads(1)
register()
sys.argv = ["transformers", "serve", *sys.argv[1:]]
main()
"""
BEGIN, END = "<beginning_of_sentence>", "<end_of_sentence>\n"
# M1's format, from messages in OpenAI's. transformers drops a line break after a block, so each is an expression.
TEMPLATE = "".join(
    (
        "<begin_of_document>",
        "{% for m in messages if m.role == 'system' %}",
        f"{BEGIN}system ai_setting=assistant\n{{{{ m.content + '{END}' }}}}",
        "{% endfor %}{% if tools %}",
        f"{BEGIN}system tool_setting=tools\n{TOOLS_INTRO}",
        "{% for t in tools %}{{ t.function | tojson + '\n' }}{% endfor %}",
        f"{TOOLS_OUTRO}{{{{ '{END}' }}}}",
        "{% endif %}{% for m in messages %}{% if m.role == 'user' %}",
        f"{BEGIN}user name=user\n{{{{ m.content + '{END}' }}}}",
        "{% elif m.role == 'assistant' %}",
        f"{BEGIN}ai name=assistant\n{{{{ m.content or '' }}}}",
        "{% if m.tool_calls %}{{ '<tool_calls>\n' }}{% for c in m.tool_calls %}",
        '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}{{ "}\n" }}',
        f"{{% endfor %}}</tool_calls>{{% endif %}}{{{{ '{END}' }}}}",
        "{% elif m.role == 'tool' %}",
        f"{BEGIN}tool name=tools\ntool name: calculate_math\ntool result: {{{{ m.content + '\n\n{END}' }}}}",
        "{% endif %}{% endfor %}{% if add_generation_prompt %}",
        f"{BEGIN}ai name=assistant\n",
        "{% endif %}",
    )
)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    from m1runtime import Tokenizer
    from m1runtime.engine import BUNDLED

    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        pytest.skip(f"`transformers serve` needs {', '.join(missing)}")
    folder = tmp_path_factory.mktemp("served") / "nano"
    shutil.copytree(BUNDLED["m1-nano"], folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    # M1's configs name no end of a reply; `generate` has to be told.
    end = Tokenizer.from_file(folder).special_ids["<end_of_sentence>"]
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": False, "eos_token_id": end}))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", PROGRAM, str(folder), "--host", "127.0.0.1", "--port", str(port)]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen([*command, "--device", "cpu", "--dtype", "float32"], stdout=log, stderr=log)
        try:
            _wait(server, f"http://127.0.0.1:{port}/health", folder / "log")
            yield f"http://127.0.0.1:{port}/v1", folder
        finally:
            server.terminate()
            server.wait(20)


def _wait(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    for _ in range(600):
        if server.poll() is not None:
            pytest.fail(f"`transformers serve` ended: {log.read_text()[-2000:]}")
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            pass
        time.sleep(0.2)
    pytest.fail(f"`transformers serve` does not answer: {log.read_text()[-2000:]}")


def test_a_tool_loop(served: tuple[str, Path]) -> None:
    url, folder = served
    model = load_model(f"openai:{folder}@{url}")
    assert isinstance(model, OpenAIModel)
    settings = Settings(temperature=0, max_tokens=128)
    asked = ["What is 12 times 11?", "Factor x^2 - 16."]
    with Agent(model, tools=[calculate_math], settings=settings) as agent:
        talk = Conversation()
        results = [agent.run_sync(text, conversation=talk) for text in asked]
    with Agent("m1-nano", tools=[calculate_math], settings=settings) as agent:
        talk = Conversation()
        expected = [agent.run_sync(text, conversation=talk) for text in asked]
    for ours, theirs in zip(expected, results, strict=True):
        assert theirs.stop == "done", theirs.error
        assert theirs.calls and not theirs.calls[0].result.is_error
        assert [one.call.arguments for one in theirs.calls] == [one.call.arguments for one in ours.calls]
        assert theirs.output == ours.output

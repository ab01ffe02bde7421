"""The description that the server gives of itself, and schemathesis against it."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from m1agent.models.local import LocalModel
from m1agent.models.scripted import ScriptedModel

Serving = Callable[..., Any]
CALL = '<tool_calls>\n{"name": "go", "arguments": {}}\n</tool_calls>'


def test_answers_are_as_they_are_described(serving: Serving) -> None:
    served = serving(ScriptedModel([f"<think>\nHm.\n</think>\nOn. {CALL}"] * 3))
    described = served.client.get("/openapi.json").json()
    tool = {"name": "go", "parameters": {"type": "object"}}
    answers = {
        "ModelList": served.client.get("/v1/models").json(),
        "Health": served.client.get("/health").json(),
        "Failure": served.chat(n=0).json(),
        "ChatCompletion": served.chat(functions=[tool]).json(),
    }
    checked = [*answers.items(), ("ChatCompletion", served.chat(tools=[{"type": "function", "function": tool}]).json())]
    checked += [("ChatChunk", chunk) for chunk in served.chunks(tools=[{"type": "function", "function": tool}])]
    for name, answer in checked:
        jsonschema.validate(answer, {"$ref": f"#/components/schemas/{name}", **described})
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({}, {"$ref": "#/components/schemas/ChatCompletion", **described})


@pytest.mark.slow
def test_schemathesis_finds_no_failure_and_no_hang(serving: Serving, tmp_path: Path) -> None:
    served = serving(LocalModel("m1-nano"), tokens=16, keys=("k",), key="k")
    program = [str(Path(sys.executable).parent / "st"), "run", f"{served.url}/openapi.json"]
    # Not among them: that whatever fits the schema is accepted. That calls have results, no schema can say.
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    options = ["--checks", f"{checks},negative_data_rejection", "--phases", "examples,fuzzing,stateful"]
    options += ["--max-examples", "10", "--request-timeout", "30", "--seed", "1", "-H", "Authorization: Bearer k"]
    options += ["--suppress-health-check", "all", "--no-color"]
    done = subprocess.run([*program, *options], capture_output=True, text=True, cwd=tmp_path, timeout=170)
    assert done.returncode == 0, done.stdout[-6000:]
    generated = re.search(r"(\d+) generated", done.stdout)
    assert generated and int(generated[1]) > 50
    assert served.client.get("/health").json()["running"] == 0

"""`m1agent doctor`: the machine, and what a model needs of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from m1agent.cli import main
from m1agent.models import load_model


def test_the_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    machine = json.loads(capsys.readouterr().out)["machine"]
    assert 1 <= machine["cores"]["usable"] <= machine["cores"]["present"]
    assert machine["memory"] > 2**28 and machine["versions"]["torch"]
    assert main(["doctor"]) == 0
    assert "cores" in capsys.readouterr().out


def test_a_model_that_fits(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A config.json alone is enough."""
    shutil.copy(folder / "config.json", tmp_path)
    command = ["doctor", "--model", str(tmp_path), "--device", "cpu", "--sessions", "3", "--context", "2,000"]
    assert main(command) == 0
    assert "It fits: up to " in capsys.readouterr().out
    assert main([*command, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["plan"]["fits"] and data["plan"]["asked"]["sessions"] == 3
    assert {row["card"] for row in data["cards"]} == {"80 GB", "96 GB", "141 GB"}
    assert all(row["plan"]["asked"]["devices"] == 1 for row in data["cards"])


def test_a_model_that_does_not_fit(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = json.loads((folder / "config.json").read_text())
    experts = {"hidden_size": 6144, "intermediate_size": 9216, "num_local_experts": 1024}
    (tmp_path / "config.json").write_text(json.dumps(config | experts))
    assert main(["doctor", "--model", str(tmp_path), "--device", "cpu"]) == 1
    out = capsys.readouterr().out
    assert "It does not fit" in out and "141 GB  int4 " in out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--model", "no/such/folder"], "no such file"),
        (["--model", "m1-nano", "--devices", "7"], "tensor_parallel=7 does not divide"),
        (["--model", "m1-nano", "--quantization", "int3"], "'int3' is not supported"),
        (["--model", "m1-nano", "--dtype", "int8"], "'int8' is not supported"),
    ],
)
def test_wrong_usage(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", *arguments, "--device", "cpu"] if "--device" not in arguments else arguments) == 2
    assert told in capsys.readouterr().err


def test_a_server_is_asked(serving: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    served = serving(load_model("m1-nano"))
    model = f"openai:{served.name}@{served.url}/v1"
    assert main(["doctor", "--server", model]) == 0
    assert "m1agent" in capsys.readouterr().out
    assert main(["doctor", "--server", model, "--json"]) == 0
    profile = json.loads(capsys.readouterr().out)
    assert (profile["kind"], profile["reachable"], profile["listed"]) == ("m1agent", True, True)


def test_a_server_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--server", "openai:any@http://127.0.0.1:9/v1"]) == 1
    assert "127.0.0.1:9" in capsys.readouterr().out
    assert main(["doctor", "--server", "m1-nano"]) == 2
    assert "not 'm1-nano'" in capsys.readouterr().err

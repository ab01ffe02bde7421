"""`m1agent bench bfcl`: scoring by the leaderboard's rules, reading its data, asking, and going on after a kill."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from m1agent.bench import report
from m1agent.bench.bfcl.data import Data, Item, find_data
from m1agent.bench.bfcl.dialect import tools_of
from m1agent.bench.bfcl.run import AGAIN, ask_all
from m1agent.bench.bfcl.scoring import Call, judge
from m1agent.bench.figures import table, wilson
from m1agent.bench.record import Record
from m1agent.bench.tasks.world import World
from m1agent.cli import main
from m1agent.errors import BenchError, ContextFull, ModelError
from m1agent.messages import AssistantMessage, SystemMessage, ToolCall
from m1agent.models.base import Settings
from m1agent.models.scripted import Reply, ScriptedModel

HERE = Path(__file__).parents[1] / "data"
SAMPLE = HERE / "bfcl"
PAIRS = [json.loads(line) for line in (HERE / "bfcl-pairs.jsonl").read_text().splitlines()]
RIGHT: list[Reply] = [
    AssistantMessage(calls=(ToolCall("1", "maths_evaluate", {"expression": "2+2"}),)),
    AssistantMessage(calls=(ToolCall("1", "set_light", {"room": "Hall", "level": 0.5}),)),
    AssistantMessage(text="Goethe did."),
    AssistantMessage(
        calls=(ToolCall("1", "set_light", {"room": "attic"}), ToolCall("2", "set_light", {"room": "hall"}))
    ),
]


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair["reason"])
def test_scoring_follows_the_published_rules(pair: dict[str, Any]) -> None:
    failure = judge(pair["category"], pair["functions"], pair["answers"], [Call(**call) for call in pair["calls"]])
    assert (failure is None) == pair["accepted"]
    assert (failure.kind if failure else "") == pair["kind"]


def test_the_pairs_are_enough_and_differ() -> None:
    accepted = [pair for pair in PAIRS if pair["accepted"]]
    assert len(PAIRS) >= 60 and len({pair["reason"] for pair in PAIRS}) == len(PAIRS)
    assert len(accepted) >= 25 and len(PAIRS) - len(accepted) >= 25


def sample(*patterns: str) -> tuple[Data, list[Item]]:
    data = find_data(SAMPLE)
    return data, [item for name in data.chosen(patterns) for item in data.items(name)]


def asked(model: ScriptedModel, items: Sequence[Item], record: Record, **options: Any) -> list[dict[str, Any]]:
    asyncio.run(ask_all(model, items, record, Settings(temperature=0), concurrency=1, **options))
    return [record.results[item.id] for item in items]


def record(path: Path | None = None, *, resume: bool = False) -> Record:
    return Record({"benchmark": "test"}, path, resume=resume, again=AGAIN)


def test_data_is_found_from_any_folder_above_it(tmp_path: Path) -> None:
    data, items = sample()
    assert list(data.files) == ["irrelevance", "simple_python", "live_parallel"] and data.version == "v4"
    assert "source code" in data.left_out["simple_java"]
    assert [item.id for item in items][:2] == ["irrelevance_0", "simple_python_0"]
    assert items[0].answers == () and isinstance(items[-1].messages[0], SystemMessage)
    inside = tmp_path / "berkeley-function-call-leaderboard" / "bfcl_eval"
    inside.mkdir(parents=True)
    (inside / "data").symlink_to(SAMPLE)
    assert list(find_data(tmp_path).files) == list(data.files)


def test_categories_are_chosen_by_patterns() -> None:
    data, _ = sample()
    assert data.chosen(["live_*", "simple"]) == ["simple_python", "live_parallel"]
    with pytest.raises(BenchError, match=r"no category 'multiple'.*there are irrelevance"):
        data.chosen(["multiple"])
    with pytest.raises(BenchError, match="'simple_java' is not scored here: its values are source code"):
        data.chosen(["simple_java"])


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda line: "{", "line 1, is no JSON"),
        (lambda line: line.replace("simple_python_0", "simple_python_7"), "simple_python_7 has no accepted answer"),
        (lambda line: line.replace('"role"', '"rule"'), "simple_python_0 is not as the leaderboard writes items"),
        (lambda line: line.replace('"type": "string", ', ""), "simple_python_0 is not as the leaderboard writes items"),
        (lambda line: line.replace('"user"', '"assistant"'), "the last message is not the user's"),
    ],
)
def test_a_broken_item_is_named(tmp_path: Path, change: Any, text: str) -> None:
    name = "BFCL_v4_simple_python.json"
    (tmp_path / "possible_answer").mkdir()
    (tmp_path / "possible_answer" / name).write_text((SAMPLE / "possible_answer" / name).read_text())
    first, *rest = (SAMPLE / name).read_text().splitlines()
    (tmp_path / name).write_text("\n".join([change(first), *rest]))
    with pytest.raises(BenchError, match=text):
        find_data(tmp_path).items("simple_python")


def test_names_and_types_become_those_of_tools() -> None:
    parameters = {
        "type": "dict",
        "properties": {
            "ratio": {"type": "float", "optional": True},
            "point": {"type": "tuple", "items": {"type": "float"}},
            "what": {"type": "any", "description": "anything"},
            "where": {"type": "dict", "properties": {"x": {"type": "integer"}}, "required": ["x"]},
            "free": {"type": "dict"},
        },
        "required": ["ratio"],
    }
    functions = [{"name": name, "description": "", "parameters": parameters} for name in ("a.b", "a_b", "c" * 70)]
    tools = tools_of(functions)
    assert [spec.name for spec in tools.values()] == ["a_b", "a_b_2", "c" * 64]
    schema = tools["a.b"].parameters
    good = {"ratio": 1, "point": [1.5, 2], "what": [1], "where": {"x": 1}, "free": {"any": "thing"}}
    assert jsonschema.Draft202012Validator(schema).is_valid(good)
    jsonschema.Draft202012Validator.check_schema(schema)
    for bad in ({}, {"ratio": "1"}, {"ratio": 1, "more": 1}, {**good, "where": {"x": 1, "y": 2}}, {**good, "point": 1}):
        assert not jsonschema.Draft202012Validator(schema).is_valid(bad), bad


def test_a_model_is_asked_and_judged() -> None:
    _, items = sample("simple", "irrelevance", "live_*")
    model = ScriptedModel([RIGHT[2], RIGHT[0], RIGHT[1], RIGHT[3]])
    results = asked(model, items, record())
    assert [result["kind"] for result in results] == [""] * 4 and all(result["passed"] for result in results)
    assert results[1]["calls"] == [{"name": "maths.evaluate", "arguments": {"expression": "2+2"}}]
    # The system's words stand in the instructions, and are not said twice.
    assert [len(request.messages) for request in model.requests] == [1, 1, 1, 1] and model.open_threads == 0
    assert all(result["usage"]["output_tokens"] > 0 for result in results)


def test_failures_are_counted_by_kind() -> None:
    _, items = sample("simple", "irrelevance", "live_*")
    broken = '<tool_calls>\n{"name": "maths_evaluate", "arguments": {"expr\n</tool_calls>'
    wrong = [AssistantMessage(calls=(ToolCall("1", "set_light", {"room": "hall"}),)), broken, ContextFull("too long")]
    results = asked(ScriptedModel([*wrong, ModelError("gone")]), items, record())
    assert [result["kind"] for result in results] == ["called", "unreadable", "context_full", "model_error"]
    figures = report.figures(results, ["simple_python", "irrelevance", "live_parallel"])
    assert figures["all"]["right"] == 0 and figures["failures"]["called"] == 1
    assert "model_error: live_parallel_0-0-0: gone" in report.text(results, list(figures["categories"]))


def test_a_model_that_goes_on_failing_ends_the_run() -> None:
    _, items = sample("simple")
    many = [Item(f"{item.id}-{n}", item.category, item.messages, item.functions, item.answers)
            for n in range(10) for item in items]  # fmt: skip
    model = ScriptedModel([ModelError("connection refused")] * 20)
    with record() as kept, pytest.raises(BenchError, match="failed 5 times in a row: connection refused"):
        asyncio.run(ask_all(model, many, kept, Settings(), concurrency=2))
    assert len(model.requests) <= 6


def test_a_reply_that_takes_too_long_is_a_failure() -> None:
    async def slow(messages: Any) -> str:
        await asyncio.sleep(30)
        return ""

    _, items = sample("irrelevance")
    (result,) = asked(ScriptedModel([slow]), items, record(), seconds=0.05)
    assert result["kind"] == "out_of_time"


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    _, items = sample("simple", "irrelevance")
    with record(path) as kept:
        asked(ScriptedModel([RIGHT[2], ModelError("gone"), RIGHT[1]]), items, kept)
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])  # The last line was being written.
    with pytest.raises(BenchError, match="holds results already"):
        record(path)
    with record(path, resume=True) as kept:
        assert set(kept.results) == {"irrelevance_0"}
        model = ScriptedModel([RIGHT[0], RIGHT[1]])
        asked(model, items, kept)
        model.assert_complete()
    with record(path, resume=True) as kept:
        assert all(result["passed"] for result in kept.results.values()) and len(kept.results) == 3
    assert path.read_bytes().endswith(b"}\n")
    with pytest.raises(BenchError, match="about another run: benchmark was 'test' and is 'other'"):
        Record({"benchmark": "other"}, path, resume=True, again=AGAIN)
    path.write_text("[1]\n")
    with pytest.raises(BenchError, match="no file of results"):
        record(path, resume=True)


def test_the_interval_is_wilsons() -> None:
    # Wilson (1927), as statsmodels' proportion_confint(method="wilson") gives it.
    for right, total, low, high in ((0, 10, 0.0, 0.2775), (8, 10, 0.4902, 0.9433), (10, 10, 0.7225, 1.0)):
        assert wilson(right, total) == pytest.approx((low, high), abs=1e-4)
    with pytest.raises(ValueError, match="at least 1"):
        wilson(0, 0)
    assert table(["a", "bb"], [["long", "1"]]) == "a     bb\nlong   1"


def test_the_command_measures_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "results.jsonl"
    command = ["bench", "bfcl", "--data", str(SAMPLE), "--categories", "simple,irrelevance", "--out", str(out)]
    assert main([*command, "--max-tokens", "64"]) == 0
    said = capsys.readouterr()
    assert "simple_python" in said.out and "all items" in said.out and "3/3" in said.err
    assert main([*command, "--max-tokens", "64", "--resume", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["all"]["items"] == 3 and figures["model"] == "m1-nano" and len(figures["all"]["interval"]) == 2
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(lines) == 4 and {"calls", "usage", "seconds"} <= lines[1].keys()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--data", "/no/such/folder"], "no questions of BFCL in '/no/such/folder'"),
        (["--data", str(SAMPLE), "--categories", "sql"], "no category 'sql'"),
        (["--data", str(SAMPLE), "--resume"], "--resume needs the file to go on with"),
        (["--data", str(SAMPLE), "--model", "nowhere"], "no model 'nowhere'"),
        (["--data", str(SAMPLE), "--temperature", "-1"], "Settings.temperature must be"),
        (["--data", str(SAMPLE), "--out", "/no/such/folder/file"], "cannot be written"),
    ],
)
def test_mistakes_are_told(arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "bfcl", *arguments]) == 2
    assert text in capsys.readouterr().err


def test_ctrl_c_tells_what_was_found(tmp_path: Path) -> None:
    out = tmp_path / "results.jsonl"
    program = (
        "import sys, asyncio, m1agent.models as models\n"
        "from m1agent.models.scripted import ScriptedModel\n"
        "async def stuck(messages): print('asked', flush=True); await asyncio.sleep(60)\n"
        "models.load_model = lambda name: ScriptedModel(['Goethe.', stuck])\n"
        "from m1agent.cli import main\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", program, "bench", "bfcl", "--data", str(SAMPLE), "--concurrency", "1"]
    process = subprocess.Popen([*command, "--out", str(out)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "asked\n"
    process.send_signal(signal.SIGINT)
    said, error = process.communicate(timeout=30)
    assert process.returncode == 130 and "Traceback" not in error
    assert "irrelevance" in said and "100.0 %" in said
    assert [json.loads(line).get("id") for line in out.read_text().splitlines()] == [None, "irrelevance_0"]


def test_a_world_is_a_repository_of_its_own_within_a_hook_of_git(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Git tells its hooks which repository they are about, and everything they start hears it."""
    mine = tmp_path / "mine"
    subprocess.run(["git", "init", "--quiet", str(mine)], check=True)
    monkeypatch.setenv("GIT_DIR", str(mine / ".git"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(mine / ".git" / "index"))
    (tmp_path / "work").mkdir()
    world = World(tmp_path / "work", tmp_path / "memory.jsonl")
    world.make([{"write": {"a.txt": "a"}, "commit": "First"}])
    assert world.state()["git"]["branches"] == {"main": ["First"]}
    assert not any((mine / ".git" / "refs" / "heads").iterdir()) and not (mine / ".git" / "index").exists()

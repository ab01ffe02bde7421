"""Results too long for a prompt: cut, written to a file, read from there and from nowhere else."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from m1agent.agent import Agent
from m1agent.budget import ResultBudget, Spill
from m1agent.errors import ToolError
from m1agent.limits import Limits
from m1agent.messages import AssistantMessage, ToolCall, ToolMessage, ToolResult
from m1agent.models.scripted import ScriptedModel
from m1agent.result import RunResult
from m1agent.tools import Tool, tool

WHOLE = "".join(f"{n:07}\n" for n in range(5_000_000 // 8))


@tool
def everything() -> str:
    """Return 5 MB."""
    return WHOLE


def call(name: str, **arguments: Any) -> AssistantMessage:
    return AssistantMessage(calls=(ToolCall("c", name, arguments),))


def run(budget: ResultBudget, *script: Any, tools: Any = (everything,), **options: Any) -> RunResult[str]:
    return Agent(ScriptedModel(script), tools=tools, results=budget, **options).run_sync("Go.")


def path_in(text: str) -> Path:
    found = re.search(r"the whole text is in (.+) \.\.\.\]", text)
    assert found is not None
    return Path(found[1])


def test_a_prompt_is_bounded_and_the_file_has_the_whole(tmp_path: Path) -> None:
    result = run(ResultBudget(5000, folder=tmp_path), call("everything"), "ok")
    text = result.calls[0].result.content
    assert len(text) < 5000 + 300 and text.startswith("0000000\n") and text.endswith(WHOLE[-500:])
    assert f"{len(WHOLE) - 5000} of {len(WHOLE)} characters left out" in text
    file = path_in(text)
    assert file.read_text() == WHOLE and file.parent == tmp_path
    assert isinstance(result.messages[2], ToolMessage) and result.messages[2].results[0].content == text
    assert len(result.conversation.ids or ()) < 8000


def test_by_default_results_are_bounded_and_written_where_only_their_user_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    text = run(ResultBudget(), call("everything"), "ok").calls[0].result.content
    assert len(text) < 21_000
    file = path_in(text)
    assert file.read_text() == WHOLE and file.parent.parent == tmp_path
    assert sys.platform == "win32" or file.parent.stat().st_mode & 0o077 == 0
    again = run(ResultBudget(), call("everything"), "ok").calls[0].result.content
    assert again == text  # A prompt is the same in every run.


def test_a_result_within_the_budget_is_left_alone(tmp_path: Path) -> None:
    whole = ToolResult("1", "x", "y" * 1000)
    assert Spill(ResultBudget(1000, folder=tmp_path / "new")).fit(whole) is whole and not (tmp_path / "new").exists()


def test_the_reader_tool_reads_on(tmp_path: Path) -> None:
    budget = ResultBudget(5000, folder=tmp_path, reader=True)
    model = ScriptedModel([call("everything")])
    agent = Agent(model, tools=[everything], results=budget)
    assert [made.name for made in agent.tools] == ["everything", "read_result"]
    first = agent.run_sync("Go.", limits=Limits(steps=1))
    path = str(path_in(first.calls[0].result.content))
    reads = [{"path": path, "start": 80_000, "length": 16}, {"path": path, "start": 4_999_999}]
    reads += [{"path": path, "start": 9_000_000}, {"path": path, "start": 0, "length": 900_000}]
    model.extend([*(call("read_result", **read) for read in reads), "ok"])
    told = [record.result.content for record in agent.run_sync(None, conversation=first.conversation).calls]
    assert told[:3] == ["0010000\n0010001\n", "\n", "The text ends before 9000000: it has 5000000 characters."]
    assert told[3] == WHOLE[:5000]


def test_another_process_can_read_what_this_one_wrote(tmp_path: Path) -> None:
    text = Spill(ResultBudget(1000, folder=tmp_path)).fit(ToolResult("1", "x", WHOLE)).content
    assert read(Spill(ResultBudget(1000, folder=tmp_path)).reader(), str(path_in(text)), length=8) == "0000000\n"


def read(reader: Tool, path: str, **more: Any) -> str:
    checked = reader.validate({"path": path, **more})
    return reader.handler(**checked.kwargs)


def test_the_reader_reads_nothing_else(tmp_path: Path) -> None:
    folder, beside = tmp_path / "results", tmp_path / "secret.txt"
    beside.write_text("secret")
    spill = Spill(ResultBudget(1000, folder=folder))
    known = path_in(spill.fit(ToolResult("1", "x", WHOLE)).content)
    (folder / "own.txt").write_text("secret")
    (folder / "inner").mkdir()
    linked = folder / f"m1agent-result-{'0' * 32}.txt"
    linked.symlink_to(beside)
    reader = spill.reader()
    assert read(reader, str(known), length=7) == "0000000"
    for path in (
        str(beside),
        f"{folder}/../secret.txt",
        f"{folder}/inner/../../secret.txt",
        f"{folder}/own.txt",
        f"{folder}/inner/../{known.name}",
        known.name,
        str(linked),
        str(folder),
        "",
        "/etc/passwd",
        f"{known}\0",
        str(known).replace("m1agent-result-", "m1agent-result-é"),
    ):
        with pytest.raises(ToolError, match="There is no saved result") as raised:
            read(reader, path)
        assert "secret\n" not in str(raised.value)


def test_the_reader_has_nothing_before_the_first_long_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(ToolError, match="There is no saved result"):
        read(Spill(ResultBudget()).reader(), "/etc/passwd")


@pytest.mark.skipif(sys.platform == "win32", reason="paths of another kind")
def test_a_folder_that_cannot_be_written_is_told_and_the_run_goes_on(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = run(ResultBudget(1000, folder=tmp_path / "file" / "results"), call("everything"), "ok")
    assert result.output == "ok"
    assert "the whole text is in no file (Not a directory)" in result.calls[0].result.content


def test_a_folder_that_was_removed_is_made_again(tmp_path: Path) -> None:
    spill = Spill(ResultBudget(1000, folder=tmp_path / "results"))
    first = path_in(spill.fit(ToolResult("1", "x", WHOLE)).content)
    first.unlink()
    first.parent.rmdir()
    assert path_in(spill.fit(ToolResult("1", "x", WHOLE)).content).read_text() == WHOLE


def test_errors_and_text_no_file_can_hold_are_bounded_too(tmp_path: Path) -> None:
    @tool
    def fails() -> str:
        """Fail at length."""
        raise ToolError("x" * 50_000 + "\ud800")

    result = run(ResultBudget(1000, folder=tmp_path), call("fails"), "ok", tools=[fails]).calls[0].result
    assert result.is_error and len(result.content) < 1300
    assert path_in(result.content).read_text(encoding="utf-8") == "x" * 50_000 + "\ufffd"


def test_the_same_long_result_over_and_over_is_a_loop(tmp_path: Path) -> None:
    result = run(ResultBudget(1000, folder=tmp_path), *[call("everything")] * 9)
    assert result.stop == "loop" and len(os.listdir(tmp_path)) == 1


def test_a_budget_that_shows_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"ResultBudget\.characters must be at least 1000, not 10"):
        ResultBudget(10)

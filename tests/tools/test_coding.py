"""`m1tools.coding`: everything a coding agent needs in one folder, in a run of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

import m1tools
from m1agent import Agent, Approval, load_toolset
from m1agent.messages import AssistantMessage, ToolCall
from m1agent.models.scripted import ScriptedModel
from m1agent.toolset import ready_toolsets
from m1tools.sandbox import isolation

CHANGES = {"write_file", "edit_file", "patch_files", "move_file", "undo_change"}


def asking(tools: object) -> set[str]:
    return {tool.name for tool in tools if tool.needs_approval({"code": "1", "command": "ls"})}  # type: ignore[attr-defined]


def test_found_through_its_entry_point() -> None:
    assert "edit_file" in load_toolset("coding")


def test_who_asks(repository: Path) -> None:
    unsafe = set[str]() if isolation().complete else {"run_python"}
    assert asking(m1tools.coding(repository)) == CHANGES | {"git_commit", "git_apply"} | unsafe
    assert asking(m1tools.coding(repository, ask="commits")) == {"git_commit", "git_apply"} | unsafe
    assert "run_command" in asking(m1tools.coding(repository, ask="commits", commands=True))
    with pytest.raises(ValueError, match="ask must be"):
        m1tools.coding(repository, ask="never")  # type: ignore[arg-type]


def test_a_folder_without_a_repository(tmp_path: Path) -> None:
    names = {tool.name for tool in m1tools.coding(tmp_path)}
    assert "read_file" in names and "git_status" not in names


@pytest.mark.slow
@pytest.mark.skipif(not isolation().complete, reason="Python would ask here")
def test_a_bug_is_found_fixed_tested_and_committed(repository: Path) -> None:
    (repository / "sums.py").write_text("def total(numbers):\n    return sum(numbers[1:])\n")
    (repository / "test_sums.py").write_text(
        "from sums import total\n\n\ndef test_total():\n    assert total([1, 2]) == 3\n"
    )
    test = {"code": "import pytest\npytest.main(['-q', '-p', 'no:cacheprovider'])"}
    steps = [
        ("search_files", {"pattern": "def total"}),
        ("run_python", test),
        ("edit_file", {"path": "sums.py", "old_text": "numbers[1:]", "new_text": "numbers"}),
        ("run_python", test),
        ("git_diff", {}),
        ("git_commit", {"message": "Sum all numbers"}),
        ("git_status", {}),
    ]
    replies = [AssistantMessage(calls=(ToolCall(str(n), *step),)) for n, step in enumerate(steps)]
    asked: list[str] = []

    def ask(request: object) -> bool:
        asked.append(request.call.name)  # type: ignore[attr-defined]
        return True

    tools = m1tools.coding(repository, ask="commits")
    agent = Agent(ScriptedModel([*replies, "Fixed."]), tools=[tools], approval=Approval(ask=ask))
    told = [record.result.content for record in agent.run_sync("Fix the sums.").calls]
    assert told[0] == "sums.py:1:def total(numbers):"
    assert "1 failed" in told[1] and "1 passed" in told[3]
    assert "Sum all numbers" in told[5] and told[6] == "## main"
    assert asked == ["git_commit"]


def test_importing_it_is_cheap() -> None:
    import subprocess
    import sys

    code = "import sys, m1tools; print(sorted(set(sys.modules) & {'m1agent', 'sympy', 'm1tools.files'}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_toolsets_that_reach_something_are_for_those_who_name_them() -> None:
    """What a program is given without asking computes and does nothing else."""
    assert "maths" in ready_toolsets()
    assert not {"files", "git", "python", "shell", "coding"} & set(ready_toolsets())

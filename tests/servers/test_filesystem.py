"""The filesystem server on a real folder, which is read directly afterwards."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from m1agent import Agent
from m1agent.messages import AssistantMessage, ToolCall
from m1agent.models.scripted import ScriptedModel

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


def test_all_tools_on_a_folder(tmp_path: Path, node_server: Callable[..., Any], ask: Callable[..., Any]) -> None:
    (tmp_path / "pixel.png").write_bytes(PIXEL)
    poem, plan, moved = (str(tmp_path / name) for name in ("poem.txt", "plan.txt", "deep/er/poem.txt"))
    edit = {"oldText": "blue", "newText": "green"}
    told = ask(
        node_server("filesystem", str(tmp_path)),
        ("filesystem__write_file", {"path": poem, "content": "Roses are red,\nviolets are blue.\n"}),
        ("filesystem__write_file", {"path": plan, "content": "ünïcode ☂\n"}),
        ("filesystem__edit_file", {"path": poem, "edits": [edit], "dryRun": False}),
        ("filesystem__read_text_file", {"path": poem, "head": 1}),
        ("filesystem__read_file", {"path": plan}),
        ("filesystem__read_multiple_files", {"paths": [poem, plan, str(tmp_path / "absent")]}),
        ("filesystem__create_directory", {"path": str(tmp_path / "deep" / "er")}),
        ("filesystem__move_file", {"source": poem, "destination": moved}),
        ("filesystem__list_directory", {"path": str(tmp_path)}),
        ("filesystem__list_directory_with_sizes", {"path": str(tmp_path), "sortBy": "size"}),
        ("filesystem__directory_tree", {"path": str(tmp_path), "excludePatterns": ["*.png"]}),
        ("filesystem__search_files", {"path": str(tmp_path), "pattern": "**/*.txt"}),
        ("filesystem__get_file_info", {"path": moved}),
        ("filesystem__list_allowed_directories", {}),
        ("filesystem__read_media_file", {"path": str(tmp_path / "pixel.png")}),
    )
    assert [result.content for result in told if result.is_error] == []
    assert Path(moved).read_text() == "Roses are red,\nviolets are green.\n" and not Path(poem).exists()
    assert Path(plan).read_text(encoding="utf-8") == "ünïcode ☂\n"
    _, _, diff, head, read, several, _, _, listed, sized, tree, found, info, allowed, media = (r.content for r in told)
    assert "+violets are green." in diff
    assert json.loads(head) == {"content": "Roses are red,"} and json.loads(read) == {"content": "ünïcode ☂\n"}
    assert "violets are green" in several and "ünïcode ☂" in several and "absent" in several
    assert "[DIR] deep" in listed and "[FILE] plan.txt" in listed and "pixel.png" in sized
    assert "poem.txt" in tree and "pixel.png" not in tree
    assert moved in found and plan in found
    assert f"size: {Path(moved).stat().st_size}" in info
    assert str(tmp_path) in allowed
    assert "image/png" in media


def test_a_path_outside_is_refused_and_told(
    tmp_path: Path, node_server: Callable[..., Any], ask: Callable[..., Any]
) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside.txt"
    inside.mkdir()
    outside.write_text("untouched")
    config = node_server("filesystem", str(inside))
    written, absent = ask(
        config,
        ("filesystem__write_file", {"path": str(outside), "content": "taken"}),
        ("filesystem__read_text_file", {"path": str(inside / "absent")}),
    )
    assert written.is_error and "outside allowed directories" in written.content
    assert absent.is_error and "ENOENT" in absent.content
    assert outside.read_text() == "untouched"


def test_a_destructive_tool_waits_for_a_human(tmp_path: Path, node_server: Callable[..., Any]) -> None:
    file = tmp_path / "file.txt"
    write = ToolCall("x", "filesystem__write_file", {"path": str(file), "content": "written"})
    look = ToolCall("x", "filesystem__list_directory", {"path": str(tmp_path)})
    model = ScriptedModel([AssistantMessage(calls=(write, look)), "Done."])
    agent = Agent(model, mcp=[node_server("filesystem", str(tmp_path))])
    waiting = agent.run_sync("Go.")
    assert waiting.stop == "approval" and [call.name for call in waiting.pending] == [write.name]
    assert not file.exists()
    answers = {call.id: True for call in waiting.pending}
    assert agent.run_sync(conversation=waiting.conversation, approvals=answers).output == "Done."
    assert file.read_text() == "written"

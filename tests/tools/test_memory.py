"""The memory toolset: what is kept, found, bounded and forgotten."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import anyio
import pytest

from m1agent import ToolError, Toolset
from m1tools.memory import Bounds, memory


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "kept/memory.db"


@pytest.fixture
def tools(path: Path) -> Toolset:
    return memory(path)


def call(tools: Toolset, name: str, **arguments: object) -> str:
    return anyio.run(tools[name].call, arguments)


def refused(tools: Toolset, name: str, **arguments: object) -> str:
    with pytest.raises(ToolError) as caught:
        call(tools, name, **arguments)
    return str(caught.value)


def test_notes_outlive_the_program(path: Path, tools: Toolset) -> None:
    assert call(tools, "remember", text="Ada takes her tea without milk.") == "Kept as note 1."
    assert call(memory(path), "recall", query="does ada take milk").endswith("Ada takes her tea without milk.")
    assert os.stat(path).st_mode & 0o777 == 0o600


def test_the_best_come_first_and_stems_count(tools: Toolset) -> None:
    for text in ("The cat sleeps.", "Tea is hot. Tea again: teas.", "A pot of tea and a long story about ships"):
        call(tools, "remember", text=text)
    found = call(tools, "recall", query="tea", limit=2).split("\n")
    assert [line.partition(" ")[0] for line in found] == ["2", "3"]
    assert call(tools, "recall", query="zebra") == "No note has these words."
    assert "sleeps" in call(tools, "recall", query="zebra sleeping")


def test_the_same_note_is_kept_once(tools: Toolset) -> None:
    call(tools, "remember", text="one")
    assert call(tools, "remember", text=" one ") == "This is note 1 already."


def test_what_is_forgotten_is_gone(path: Path, tools: Toolset) -> None:
    call(tools, "remember", text="the word is swordfish")
    assert tools["forget_note"].needs_approval({"number": 1})
    assert call(tools, "forget_note", number=1) == "Note 1 is forgotten."
    assert call(tools, "recall", query="swordfish") == "No note has these words."
    assert call(tools, "list_notes") == "There are no notes."
    assert "There is no note of" in refused(tools, "forget_note", number=1)
    assert "Kept as note 2." == call(tools, "remember", text="another")


def test_notes_are_listed_by_page(tools: Toolset) -> None:
    for number in range(40):
        call(tools, "remember", text=f"fact {number}")
    first = call(tools, "list_notes").split("\n")
    assert first[0].startswith("40 (20") and first[-1].startswith("... and more: those before 11")
    assert len(call(tools, "list_notes", before=11).split("\n")) == 10


def test_long_notes_do_not_fill_a_reply(path: Path) -> None:
    tools = memory(path)
    for number in range(10):
        call(tools, "remember", text=f"{number} " + "tea " * 990)
    assert len(call(tools, "recall", query="tea", limit=50)) < 13_000
    assert "and more" in call(tools, "list_notes")


def test_bounds(path: Path) -> None:
    tools = memory(path, bounds=Bounds(notes=2, characters=10))
    assert "at most 10 characters, got 11" in refused(tools, "remember", text="x" * 11)
    assert "got nothing" in refused(tools, "remember", text=" \0 ")
    call(tools, "remember", text="a")
    call(tools, "remember", text="b")
    assert "no room for more" in refused(tools, "remember", text="c")
    call(tools, "forget_note", number=1)
    assert "Kept" in call(tools, "remember", text="c")
    with pytest.raises(ValueError, match=r"Bounds.notes must be above 0"):
        Bounds(notes=0)


@pytest.mark.parametrize("query", ['"', "a OR", "NEAR(a b)", "*", "text:x", "'; DROP TABLE notes; --", "\ud800", "((("])
def test_no_query_is_an_operator(tools: Toolset, query: str) -> None:
    call(tools, "remember", text="kept")
    try:
        assert "kept" not in call(tools, "recall", query=query)
    except ToolError as error:
        assert "expected words" in str(error)
    assert "kept" in call(tools, "recall", query="kept")


def test_lone_surrogates_and_huge_numbers(tools: Toolset) -> None:
    call(tools, "remember", text="odd \ud800 letter")
    assert "odd ? letter" in call(tools, "recall", query="odd")
    assert "odd" in call(tools, "list_notes", before=10**30)
    assert "There is no note" in refused(tools, "forget_note", number=10**30)


def test_writing_without_spaces(tools: Toolset) -> None:
    call(tools, "remember", text="用户喜欢绿茶")
    assert "绿茶" in call(tools, "recall", query="绿茶")


def test_programs_write_at_the_same_time(path: Path) -> None:
    def write(name: int) -> None:
        tools = memory(path)
        for number in range(10):
            call(tools, "remember", text=f"writer {name} note {number}")

    threads = [threading.Thread(target=write, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert call(memory(path), "remember", text="last") == "Kept as note 41."


def test_a_file_of_another_program_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "x.db").write_bytes(b"not a database at all, but long enough to be one" * 20)
    before = (tmp_path / "x.db").read_bytes()
    with pytest.raises(ValueError, match="cannot be used as a database"):
        memory(tmp_path / "x.db")
    assert (tmp_path / "x.db").read_bytes() == before


def test_the_usual_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    tools = memory()
    assert list(tmp_path.iterdir()) == []  # Listing the toolsets leaves no file behind.
    call(tools, "remember", text="here")
    assert (tmp_path / "m1agent/memory.db").is_file()

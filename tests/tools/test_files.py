"""The files toolset in everyday use, and the words a model is told."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import anyio
import pytest

from m1agent import Agent, Approval, ToolError, Toolset, load_toolset
from m1agent.messages import AssistantMessage, ToolCall
from m1agent.models.scripted import ScriptedModel
from m1tools.files import files
from m1tools.files import search as searching

POEM = "one\ntwo\nthree\nfour\nfive\n"


@pytest.fixture
def tools(tmp_path: Path) -> Toolset:
    (tmp_path / "src").mkdir()
    (tmp_path / "src/app.py").write_text("import os\n\n\ndef main():\n    return os.getcwd()\n")
    (tmp_path / "poem.txt").write_text(POEM)
    return files(tmp_path)


def call(tools: Toolset, name: str, **arguments: object) -> str:
    return anyio.run(tools[name].call, arguments)


def refused(tools: Toolset, name: str, **arguments: object) -> str:
    with pytest.raises(ToolError) as caught:
        call(tools, name, **arguments)
    return str(caught.value)


def test_found_through_its_entry_point() -> None:
    assert "read_file" in load_toolset("files")


def test_only_what_changes_files_asks(tools: Toolset) -> None:
    assert {tool.name for tool in tools if not tool.needs_approval({})} == {"list_files", "read_file", "search_files"}
    assert [tool.name for tool in files(".", write=False)] == ["list_files", "read_file", "search_files"]


def test_a_change_waits_for_a_yes(tools: Toolset, tmp_path: Path) -> None:
    def agent(yes: bool) -> Agent:
        reply = AssistantMessage(calls=(ToolCall("1", "write_file", {"path": "new.txt", "content": "x"}),))
        return Agent(ScriptedModel([reply, "Done."]), tools=[tools], approval=Approval(ask=lambda request: yes))

    agent(False).run_sync("Write.")
    assert not (tmp_path / "new.txt").exists()
    agent(True).run_sync("Write.")
    assert (tmp_path / "new.txt").read_text() == "x"


# Reading


def test_list(tools: Toolset, tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / "link").symlink_to("poem.txt")
    os.mkfifo(tmp_path / "pipe")
    assert call(tools, "list_files").splitlines() == [
        "src/",
        "link -> poem.txt",
        "pipe (a pipe)",
        "poem.txt (24 bytes)",
    ]
    assert call(tools, "list_files", pattern="*.py") == "src/app.py"
    assert call(tools, "list_files", pattern="*.rs") == "Nothing is there."


def test_many_entries_are_cut(tools: Toolset, tmp_path: Path) -> None:
    for number in range(320):
        (tmp_path / f"f{number:03}").touch()
    assert call(tools, "list_files").endswith("... and 22 more. Narrow it.")


def test_read(tools: Toolset) -> None:
    assert call(tools, "read_file", path="poem.txt") == "1\tone\n2\ttwo\n3\tthree\n4\tfour\n5\tfive"
    part = call(tools, "read_file", path="poem.txt", start=2, lines=2)
    assert part == "2\ttwo\n3\tthree\n[5 lines in all; go on with start=4]"
    assert refused(tools, "read_file", path="poem.txt", start=9) == (
        "start: expected at most 5, the lines of poem.txt, got 9."
    )


def test_read_long_lines_and_long_files(tools: Toolset, tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("x" * 5000 + "\n" + "y\n" * 20_000)
    told = call(tools, "read_file", path="long.txt", lines=100_000)
    assert "[... 4000 characters more]" in told and len(told) < 17_000 and "go on with start=" in told


def test_absolute_paths_inside_are_understood(tools: Toolset, tmp_path: Path) -> None:
    assert call(tools, "read_file", path=str(tmp_path / "poem.txt"), lines=1).startswith("1\tone")


def test_links_inside_are_followed(tools: Toolset, tmp_path: Path) -> None:
    (tmp_path / "here").symlink_to("src")
    (tmp_path / "src/up").symlink_to("../poem.txt")
    assert "import os" in call(tools, "read_file", path="here/app.py")
    assert "three" in call(tools, "read_file", path="here/up")
    call(tools, "edit_file", path="here/up", old_text="three", new_text="3")
    assert (tmp_path / "poem.txt").read_text() == POEM.replace("three", "3")
    assert (tmp_path / "src/up").is_symlink()


def test_nothing_there(tools: Toolset) -> None:
    assert refused(tools, "read_file", path="src/ap.py").startswith("src/ap.py: there is no such file")
    assert refused(tools, "read_file", path="src").startswith("src: expected a file, got a folder.")
    assert refused(tools, "list_files", path="poem.txt") == "poem.txt: a part of it is no folder."


@pytest.mark.parametrize("name", ["ripgrep", "python"])
def test_search(tools: Toolset, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "python":
        monkeypatch.setattr("m1tools.files.ripgrep", lambda: None)
    elif searching.ripgrep() is None:
        pytest.skip("ripgrep is not here, or nothing to hold it")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git/config").write_text("import os")
    (tmp_path / "binary").write_bytes(b"import os\0\0")
    assert call(tools, "search_files", pattern=r"import \w+") == "src/app.py:1:import os"
    assert call(tools, "search_files", pattern="IMPORT", ignore_case=True) == "src/app.py:1:import os"
    assert call(tools, "search_files", pattern="getcwd()", literal=True, glob="*.py").endswith("return os.getcwd()")
    assert call(tools, "search_files", pattern="t", path=".", glob="*.txt") == "poem.txt:2:two\npoem.txt:3:three"
    assert call(tools, "search_files", pattern="nowhere") == "No line matches."
    assert "expected a regular expression" in refused(tools, "search_files", pattern="(")
    assert "outside" in refused(tools, "search_files", pattern="x", path="..")
    (tmp_path / "many.txt").write_text("needle\n" * 1000)
    (tmp_path / "more.txt").write_text("needle\n" * 1000)
    (tmp_path / "most.txt").write_text("needle\n" * 1000)
    told = call(tools, "search_files", pattern="needle")
    assert told.endswith("... and more. Narrow it with path or glob.") and len(told.splitlines()) == 101


# Writing


def test_write(tools: Toolset, tmp_path: Path) -> None:
    assert call(tools, "write_file", path="a/b/c.txt", content="hé\n") == "a/b/c.txt: made, 1 lines."
    assert (tmp_path / "a/b/c.txt").read_text(encoding="utf-8") == "hé\n"
    assert call(tools, "write_file", path="a/b/c.txt", content="") == "a/b/c.txt: replaced, 0 lines."
    assert "at most" in refused(tools, "write_file", path="big", content="x" * (2 << 20))


def test_modes_are_kept(tools: Toolset, tmp_path: Path) -> None:
    script = tmp_path / "run.sh"
    script.write_text("echo a\n")
    script.chmod(0o755)
    call(tools, "edit_file", path="run.sh", old_text="a", new_text="b")
    assert script.stat().st_mode & 0o777 == 0o755
    script.chmod(0o444)
    assert refused(tools, "write_file", path="run.sh", content="") == "run.sh: it is read-only."


def test_edit(tools: Toolset, tmp_path: Path) -> None:
    assert call(tools, "edit_file", path="poem.txt", old_text="two\nthree", new_text="2\n3") == (
        "poem.txt: edited at line 2."
    )
    assert (tmp_path / "poem.txt").read_text() == "one\n2\n3\nfour\nfive\n"


def test_an_edit_that_does_not_fit(tools: Toolset) -> None:
    assert refused(tools, "edit_file", path="poem.txt", old_text="f", new_text="") == (
        "poem.txt: expected old_text once, got it 2 times (lines 4, 5). Add lines around it."
    )
    told = refused(tools, "edit_file", path="src/app.py", old_text="return  os.getcwd()", new_text="")
    assert told == (
        'src/app.py: old_text is not in it. Line 5 is like it: "    return os.getcwd()". Copy it exactly, spaces too.'
    )
    assert "got nothing" in refused(tools, "edit_file", path="poem.txt", old_text="", new_text="x")
    call(tools, "edit_file", path="poem.txt", old_text="f", new_text="F", everywhere=True)


def test_line_ends_and_encodings_are_kept(tools: Toolset, tmp_path: Path) -> None:
    (tmp_path / "dos.txt").write_bytes(b"a\r\nb\r\n")
    call(tools, "edit_file", path="dos.txt", old_text="a\nb", new_text="c\nd")
    assert (tmp_path / "dos.txt").read_bytes() == b"c\r\nd\r\n"
    (tmp_path / "wide.txt").write_bytes("ab".encode("utf-16"))
    call(tools, "edit_file", path="wide.txt", old_text="ab", new_text="ü")
    assert (tmp_path / "wide.txt").read_bytes().decode("utf-16") == "ü"
    (tmp_path / "old.txt").write_bytes(b"caf\xe9")
    call(tools, "edit_file", path="old.txt", old_text="café", new_text="thé")
    assert (tmp_path / "old.txt").read_bytes() == b"th\xe9"
    assert "has no '雪'" in refused(tools, "edit_file", path="old.txt", old_text="thé", new_text="雪")


DIFF = """\
--- a/poem.txt
+++ b/poem.txt
@@ -1,3 +1,3 @@
 one
-two
+2
 three
"""


def test_patch(tools: Toolset, tmp_path: Path) -> None:
    assert call(tools, "patch_files", diff=DIFF) == "poem.txt: patched."
    assert (tmp_path / "poem.txt").read_text() == POEM.replace("two", "2")


@pytest.mark.parametrize("header", ["@@ -1,9 +1,9 @@", "@@ -1 +1 @@", "@@ -40,3 +41,3 @@ def f():", "@@ -0,0 +0,0 @@"])
def test_wrong_numbers_in_a_header_do_not_matter(tools: Toolset, tmp_path: Path, header: str) -> None:
    call(tools, "patch_files", diff=DIFF.replace("@@ -1,3 +1,3 @@", header))
    assert (tmp_path / "poem.txt").read_text() == POEM.replace("two", "2")


def test_the_nearest_place_is_taken(tools: Toolset, tmp_path: Path) -> None:
    (tmp_path / "twice.txt").write_text("a\nx\n" * 10)
    call(tools, "patch_files", diff="--- twice.txt\n+++ twice.txt\n@@ -11,2 +11,2 @@\n a\n-x\n+y\n")
    assert (tmp_path / "twice.txt").read_text().splitlines().index("y") == 11


def test_a_patch_of_many_files_is_all_or_nothing(tools: Toolset, tmp_path: Path) -> None:
    many = (
        DIFF
        + "--- /dev/null\n+++ b/new/file.txt\n@@ -0,0 +1,2 @@\n+a\n+b\n"
        + "--- a/src/app.py\n+++ /dev/null\n@@ -1,5 +0,0 @@\n-import os\n-\n-\n-def main():\n-    return os.getcwd()\n"
    )
    assert call(tools, "patch_files", diff=many).splitlines() == [
        "poem.txt: patched.",
        "new/file.txt: patched.",
        "src/app.py: removed.",
    ]
    assert (tmp_path / "new/file.txt").read_text() == "a\nb\n" and not (tmp_path / "src/app.py").exists()
    assert call(tools, "undo_change") == "Taken back: the patch."
    assert (tmp_path / "poem.txt").read_text() == POEM and (tmp_path / "src/app.py").exists()
    assert not (tmp_path / "new/file.txt").exists()
    wrong = DIFF + "--- a/src/app.py\n+++ b/src/app.py\n@@ -1,1 +1,1 @@\n-import sys\n+import re\n"
    assert refused(tools, "patch_files", diff=wrong) == (
        'src/app.py: hunk 1 does not fit. Line 1: expected "import sys", got "import os". Read the file again.'
    )
    assert (tmp_path / "poem.txt").read_text() == POEM


def test_a_patch_with_a_missing_end_of_line(tools: Toolset, tmp_path: Path) -> None:
    (tmp_path / "bare.txt").write_text("a\nb")
    bare = "\n\\ No newline at end of file\n"
    text = f"--- bare.txt\n+++ bare.txt\n@@ -1,2 +1,2 @@\n a\n-b{bare}+c{bare}"
    call(tools, "patch_files", diff=text)
    assert (tmp_path / "bare.txt").read_text() == "a\nc"


def test_a_file_can_be_renamed_by_a_patch(tools: Toolset, tmp_path: Path) -> None:
    call(tools, "patch_files", diff=DIFF.replace("+++ b/poem.txt", "+++ b/verse.txt"))
    assert (tmp_path / "verse.txt").read_text() == POEM.replace("two", "2")
    assert not (tmp_path / "poem.txt").exists()


@pytest.mark.parametrize("diff", ["", "nothing", "--- a\n+++ b\n", "@@ -1 +1 @@\n-a\n+b\n", DIFF + DIFF])
def test_what_is_no_diff(tools: Toolset, tmp_path: Path, diff: str) -> None:
    assert refused(tools, "patch_files", diff=diff).startswith(("diff: ", "a: "))
    assert (tmp_path / "poem.txt").read_text() == POEM


def test_move(tools: Toolset, tmp_path: Path) -> None:
    assert call(tools, "move_file", source="src", target="lib/code") == "src is now lib/code."
    assert (tmp_path / "lib/code/app.py").exists()
    assert refused(tools, "move_file", source="poem.txt", target="lib/code/app.py") == (
        "lib/code/app.py: expected a free name, got a file. Choose another."
    )
    assert refused(tools, "move_file", source="pome.txt", target="x") == (
        'pome.txt: there is no such file. Did you mean "poem.txt"?'
    )
    call(tools, "undo_change")
    assert (tmp_path / "src/app.py").exists()


def test_undo_goes_back_step_by_step(tools: Toolset, tmp_path: Path) -> None:
    call(tools, "write_file", path="new.txt", content="1")
    call(tools, "edit_file", path="poem.txt", old_text="one", new_text="1")
    call(tools, "write_file", path="new.txt", content="2")
    assert call(tools, "undo_change") == "Taken back: write new.txt."
    assert (tmp_path / "new.txt").read_text() == "1"
    call(tools, "undo_change")
    assert (tmp_path / "poem.txt").read_text() == POEM
    call(tools, "undo_change")
    assert not (tmp_path / "new.txt").exists()
    assert refused(tools, "undo_change") == "There is no change to take back."


def test_what_others_changed_since_is_not_undone(tools: Toolset, tmp_path: Path) -> None:
    call(tools, "edit_file", path="poem.txt", old_text="one", new_text="1")
    (tmp_path / "poem.txt").write_text("mine")
    assert "it has changed since" in refused(tools, "undo_change")
    assert (tmp_path / "poem.txt").read_text() == "mine"


def test_a_root_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(NotADirectoryError):
        files(tmp_path / "missing")


def test_a_root_that_vanishes(tools: Toolset, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path)
    assert "there is no such file or folder" in refused(tools, "read_file", path="poem.txt")

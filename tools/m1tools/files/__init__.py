"""The files toolset: look at, search in and change the files of one folder, which no path, link or race leads out of.

Changes wait for a human's yes unless the program says otherwise, are made whole or not at all, and can be taken back.
"""

from __future__ import annotations

import os
from typing import Annotated

from pydantic import Field

from m1agent import ToolError, Toolset, tool
from m1agent.tools import Hints, Needs
from m1tools.files.beneath import Root
from m1tools.files.edit import FilePatch, apply_hunks, parse_patch, replace_once
from m1tools.files.journal import Journal
from m1tools.files.listing import ENTRIES, find, list_folder
from m1tools.files.search import HITS, Query, by_python, by_ripgrep, ripgrep
from m1tools.files.text import read_text

READ_BYTES = 10 << 20
WRITE_BYTES = 1 << 20
SHOWN = 16_000
LINE = 1000
READS = Hints(read_only=True, open_world=False)
WRITES = Hints(read_only=False, destructive=True, open_world=False)

__all__ = ["files"]


def files(
    root: str | os.PathLike[str] = ".", *, approval: Needs = True, read_bytes: int = READ_BYTES, write: bool = True
) -> Toolset:
    """The toolset of the files in `root`.

    Args:
        root: the folder; nothing outside of it is read or changed, and nothing under a `.git`.
        approval: whether calls that change files wait for a yes: always, never, or by their arguments.
        read_bytes: the largest file that is read.
        write: whether there are tools that change files at all.
    """
    tools = _Files(Root(root), read_bytes, approval)
    return Toolset("files", [*tools.reading(), *(tools.writing() if write else ())])


class _Files:
    def __init__(self, root: Root, read_bytes: int, approval: Needs) -> None:
        self._root, self._limit, self._approval = root, read_bytes, approval
        self._journal = Journal(root, read_bytes)

    def reading(self):
        root, limit = self._root, self._limit

        @tool(hints=READS)
        def list_files(path: str = ".", pattern: str = "") -> str:
            """List a folder, or find files by name in it and below.

            Args:
                path: The folder.
                pattern: Such as *.py or tests/*; without it the folder itself is listed.
            """
            lines = find(root, path, pattern) if pattern else list_folder(root, path)
            more = f"\n... and {len(lines) - ENTRIES} more. Narrow it." if len(lines) > ENTRIES else ""
            return "\n".join(lines[:ENTRIES]) + more or "Nothing is there."

        @tool(hints=READS)
        def read_file(
            path: str, start: Annotated[int, Field(ge=1)] = 1, lines: Annotated[int, Field(ge=1)] = 500
        ) -> str:
            """Read a text file; each line is shown after its number and a tab.

            Args:
                path: The file.
                start: The first line.
                lines: How many lines.
            """
            text = read_text(path, root.read(path, limit)).text
            return _numbered(path, text, start, lines)

        @tool(hints=READS)
        async def search_files(
            pattern: str, path: str = ".", glob: str = "", literal: bool = False, ignore_case: bool = False
        ) -> str:
            """Search in files for lines that match a regular expression.

            Args:
                pattern: The expression.
                path: The folder to search in.
                glob: Only files with such names, as *.py.
                literal: Take the pattern as plain text.
                ignore_case: Do not tell capitals from small letters.
            """
            query = Query(pattern, path, glob, literal, ignore_case)
            program = ripgrep()
            found = None if program is None else await by_ripgrep(root, query, program)
            lines = await _in_thread(root, query) if found is None else found
            more = "\n... and more. Narrow it with path or glob." if len(lines) > HITS else ""
            return "\n".join(lines[:HITS]) + more or "No line matches."

        return [list_files, read_file, search_files]

    def writing(self):
        root, limit, journal, approval = self._root, self._limit, self._journal, self._approval

        @tool(hints=WRITES, approval=approval)
        def write_file(path: str, content: str) -> str:
            """Write a whole file; folders are made as needed. For small changes use edit_file.

            Args:
                path: The file.
                content: All of its text.
            """
            with journal.lock:
                new = not root.exists(path)
                journal.apply(f"write {path}", {path: _sized(path, content.encode("utf-8", "replace"))})
            return f"{path}: {'made' if new else 'replaced'}, {len(content.splitlines())} lines."

        @tool(hints=WRITES, approval=approval)
        def edit_file(path: str, old_text: str, new_text: str, everywhere: bool = False) -> str:
            """Replace a piece of a file's text, copied from it exactly.

            Args:
                path: The file.
                old_text: What is there now; once in the file, without line numbers.
                new_text: What is to stand there.
                everywhere: Replace it wherever it is.
            """
            with journal.lock:
                text = read_text(path, root.read(path, limit))
                after = replace_once(path, text.text, old_text, new_text, everywhere=everywhere)
                journal.apply(f"edit {path}", {path: _sized(path, text.encode(after), limit)})
            first = text.text.find(old_text)
            return f"{path}: edited at line {text.text.count(chr(10), 0, first) + 1}."

        @tool(hints=WRITES, approval=approval)
        def patch_files(diff: str) -> str:
            """Apply a unified diff to files: all of it, or nothing.

            Args:
                diff: Headers '--- a/file' and '+++ b/file', hunks '@@ -1,3 +1,4 @@'; /dev/null for no file.
            """
            patches = parse_patch(diff)
            with journal.lock:
                after: dict[str, bytes | None] = {}
                for patch in patches:
                    parts = _patched(root, limit, patch)
                    if twice := after.keys() & parts.keys():
                        raise ToolError(f"diff: {min(twice)} is in it twice. Put its hunks together.")
                    after |= parts
                journal.apply("the patch", after)
            return "\n".join(f"{path}: {'removed' if data is None else 'patched'}." for path, data in after.items())

        @tool(hints=WRITES, approval=approval)
        def move_file(source: str, target: str) -> str:
            """Move or rename a file or a folder. Nothing is overwritten.

            Args:
                source: What to move.
                target: Its new name, with its folder.
            """
            with journal.lock:
                journal.move(source, target)
            return f"{source} is now {target}."

        @tool(hints=WRITES, approval=approval)
        def undo_change() -> str:
            """Take back the last change that these tools made to files."""
            with journal.lock:
                return f"Taken back: {journal.undo()}."

        return [write_file, edit_file, patch_files, move_file, undo_change]


async def _in_thread(root: Root, query: Query) -> list[str]:
    from m1agent.threads import in_thread

    return await in_thread(lambda: by_python(root, query))


def _numbered(path: str, text: str, start: int, count: int) -> str:
    lines = text.splitlines()
    if start > max(1, len(lines)):
        raise ToolError(f"start: expected at most {len(lines)}, the lines of {path}, got {start}.")
    shown: list[str] = []
    size = 0
    for number, line in enumerate(lines[start - 1 : start - 1 + count], start):
        cut = line if len(line) <= LINE else f"{line[:LINE]}[... {len(line) - LINE} characters more]"
        size += len(cut) + 8
        if size > SHOWN:
            break
        shown.append(f"{number}\t{cut}")
    last = start + len(shown) - 1
    more = f"\n[{len(lines)} lines in all; go on with start={last + 1}]" if last < len(lines) else ""
    return "\n".join(shown) + more or "The file is empty."


def _sized(path: str, data: bytes, limit: int = WRITE_BYTES) -> bytes:
    if len(data) > limit:
        raise ToolError(f"{path}: expected at most {limit} bytes, got {len(data)}.")
    return data


def _patched(root: Root, limit: int, patch: FilePatch) -> dict[str, bytes | None]:
    """What one file's part of a diff leaves: by path, None for a file that is gone."""
    if patch.source is None:
        assert patch.target is not None
        if root.exists(patch.target):
            raise ToolError(f"{patch.target}: the diff makes it anew, but it is there. Diff against it.")
        return {patch.target: _sized(patch.target, apply_hunks(patch.target, "", patch.hunks).encode())}
    text = read_text(patch.source, root.read(patch.source, limit))
    after = apply_hunks(patch.source, text.text, patch.hunks)
    if patch.target is None:
        return {patch.source: None}
    gone = {patch.source: None} if patch.target != patch.source else {}
    return {**gone, patch.target: _sized(patch.target, text.encode(after), limit)}

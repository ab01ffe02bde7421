"""Changes to a text: one exact match replaced, or a unified diff applied."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from unidiff.errors import UnidiffParseError
from unidiff.patch import Hunk, PatchedFile, PatchSet

from m1agent import ToolError
from m1agent.problems import shown

HEADER = re.compile(r"^@@ -(\d+)(?:,\d+)? \+(\d+)(?:,\d+)? @@(.*)$")
LINE = 80
DEV_NULL = "/dev/null"


def replace_once(path: str, text: str, old: str, new: str, *, everywhere: bool) -> str:
    """The text with `old` replaced, which must be there exactly once, or anywhere with `everywhere`.

    Raises:
        ToolError: it is not there, or more than once; the text says where something like it is.
    """
    if not old:
        raise ToolError("old_text: expected the text to replace, got nothing. Use write_file for a new file.")
    count = text.count(old)
    if count == 0:
        raise ToolError(f"{path}: old_text is not in it.{_nearest(text, old)}")
    if count > 1 and not everywhere:
        lines = ", ".join(str(number) for number in list(_lines_of(text, old))[:5])
        raise ToolError(f"{path}: expected old_text once, got it {count} times (lines {lines}). Add lines around it.")
    return text.replace(old, new)


def _lines_of(text: str, old: str) -> Iterator[int]:
    at = text.find(old)
    while at >= 0:
        yield text.count("\n", 0, at) + 1
        at = text.find(old, at + 1)


def _nearest(text: str, old: str) -> str:
    """Where the first telling line of `old` nearly is, and how it reads there."""
    wanted = next((line.strip() for line in old.splitlines() if line.strip()), "")
    lines = text.splitlines()
    stripped = [line.strip() for line in lines]
    near = difflib.get_close_matches(wanted[:200], [line[:200] for line in stripped[:20_000]], n=1, cutoff=0.7)
    if not near:
        return " Read the file and copy the text from it."
    number = next(index for index, line in enumerate(stripped) if line[:200] == near[0])
    return f" Line {number + 1} is like it: {shown(lines[number], LINE)}. Copy it exactly, spaces too."


@dataclass(frozen=True, slots=True)
class FilePatch:
    """What a diff does to one file: `source` is None for a new file, `target` None for a removed one."""

    source: str | None
    target: str | None
    hunks: tuple[Hunk, ...]


def parse_patch(diff: str) -> list[FilePatch]:
    """A unified diff, file by file. Wrong counts in hunk headers are put right: models rarely count well.

    Raises:
        ToolError: it is none.
    """
    try:
        files = PatchSet("\n".join(_recount(diff.splitlines())) + "\n")
    except (UnidiffParseError, ValueError) as error:
        raise ToolError(f"diff: expected a unified diff, got something else ({error}). {EXAMPLE}") from None
    if not files:
        raise ToolError(f"diff: expected a unified diff, got no file in it. {EXAMPLE}")
    return [_file_patch(file) for file in files]


EXAMPLE = "It begins '--- a/file', '+++ b/file', '@@ -1,3 +1,4 @@'."


def _file_patch(file: PatchedFile) -> FilePatch:
    if file.is_binary_file:
        raise ToolError("diff: a binary file cannot be patched. Write it anew.")
    source, target = _stripped(file.source_file), _stripped(file.target_file)
    return FilePatch(source, target, tuple(file))


def _stripped(name: str) -> str | None:
    name = name.split("\t")[0]
    return None if name == DEV_NULL else re.sub(r"^[ab]/", "", name)


def _recount(lines: Sequence[str]) -> Iterator[str]:
    """The diff with each hunk's header telling the hunk's own numbers of lines."""
    index = 0
    while index < len(lines):
        header = HEADER.match(lines[index])
        if header is None:
            yield lines[index]
            index += 1
            continue
        end = index + 1
        while end < len(lines) and not _ends_hunk(lines, end):
            end += 1
        body = [line or " " for line in lines[index + 1 : end]]
        while body and not body[-1].strip() and end == len(lines):
            body.pop()  # Empty lines after the diff are none of its own.
        old = sum(line[0] in " -" for line in body)
        new = sum(line[0] in " +" for line in body)
        yield f"@@ -{header[1]},{old} +{header[2]},{new} @@{header[3]}"
        yield from body
        index = end


def _ends_hunk(lines: Sequence[str], index: int) -> bool:
    line = lines[index]
    if line.startswith("--- ") and index + 1 < len(lines) and lines[index + 1].startswith("+++ "):
        return True
    return bool(line) and line[0] not in " +-\\"


def apply_hunks(path: str, text: str, hunks: Sequence[Hunk]) -> str:
    """The text with all hunks applied. A hunk is placed where its lines are, nearest to where it says it belongs.

    Raises:
        ToolError: the lines of a hunk are nowhere; the text says which line differs.
    """
    lines = text.splitlines(keepends=True)
    moved = 0
    for number, hunk in enumerate(hunks, 1):
        old = [line.value for line in hunk if line.is_context or line.is_removed]
        new = list(_after(hunk))
        wanted = max(0, hunk.source_start - (1 if old else 0)) + moved
        at = _place(lines, old, wanted)
        if at is None:
            raise ToolError(f"{path}: hunk {number} does not fit. {_difference(lines, old, wanted)}")
        moved += len(new) - len(old) + (at - wanted)
        lines[at : at + len(old)] = new
        if at + len(new) < len(lines) and lines[at : at + len(new)] and not lines[at + len(new) - 1].endswith("\n"):
            lines[at + len(new) - 1] += "\n"
    return "".join(lines)


def _after(hunk: Hunk) -> Iterator[str]:
    """The lines that a hunk leaves; one that `\\ No newline at end of file` follows is without its end."""
    for line, following in zip_longest(hunk, list(hunk)[1:]):
        if line.is_context or line.is_added:
            bare = following is not None and following.line_type == "\\"
            yield line.value.removesuffix("\n") if bare else line.value


def _place(lines: Sequence[str], old: Sequence[str], wanted: int) -> int | None:
    if not old:
        return min(wanted, len(lines))
    bare = [line.rstrip("\n") for line in lines]
    sought = [line.rstrip("\n") for line in old]
    places = (at for at in range(len(bare) - len(sought) + 1) if bare[at] == sought[0])
    fitting = [at for at in places if bare[at : at + len(sought)] == sought]
    return min(fitting, key=lambda at: abs(at - wanted), default=None)


def _difference(lines: Sequence[str], old: Sequence[str], wanted: int) -> str:
    for offset, line in enumerate(old):
        at = wanted + offset
        got = lines[at].rstrip("\n") if at < len(lines) else None
        if got != line.rstrip("\n"):
            found = "the end of the file" if got is None else shown(got, LINE)
            return f"Line {at + 1}: expected {shown(line.rstrip(chr(10)), LINE)}, got {found}. Read the file again."
    return "Read the file again."

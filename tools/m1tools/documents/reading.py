"""A file read into a library: which format it is, and the sandbox that parses it."""

from __future__ import annotations

from m1agent import ToolError
from m1agent.threads import in_thread
from m1tools.documents.library import Entry, Library
from m1tools.files.beneath import Root, read_spot
from m1tools.files.text import is_binary, read_text
from m1tools.formats.extract import Kind, extract
from m1tools.formats.markup import read_plain
from m1tools.formats.section import Extracted, Limits, bounded

OLD_WORD = b"\xd0\xcf\x11\xe0"
ENDINGS: dict[str, Kind] = {"html": "html", "htm": "html", "xhtml": "html", "md": "markdown", "markdown": "markdown"}
NAMES = {"pdf": "PDF", "docx": "DOCX", "html": "HTML", "markdown": "Markdown", "": "text"}


class Reader:
    """Reads the documents under `root`, each once in each state of its file."""

    def __init__(self, root: Root, library: Library, limits: Limits) -> None:
        self._root, self.library, self._limits = root, library, limits

    async def entry(self, path: str) -> Entry:
        """The document at a path, read if it is new or has changed."""
        where, state, data = await in_thread(lambda: self._look(path))
        if isinstance(data, Entry):
            return data
        kind = _kind(where, data)
        found = await self._extract(where, data, kind)
        return await in_thread(lambda: self.library.add(where, state, NAMES[kind or ""], found))

    def _look(self, path: str) -> tuple[str, str, bytes | Entry]:
        with self._root.spot(path) as spot:
            found = spot.stat()
            if found is None:
                raise ToolError(f"{path}: there is no such file.{self._root.nearest(path)}")
            state = f"{found.st_ino} {found.st_size} {found.st_mtime_ns} {self._limits}"
            known = self.library.known(spot.path, state)
            return spot.path, state, known or read_spot(spot, self._limits.size)

    async def _extract(self, path: str, data: bytes, kind: Kind | None) -> Extracted:
        if kind in ("pdf", "docx", "html"):
            return await extract(path, data, kind, self._limits)
        text = read_text(path, data).text
        if kind is None:
            return bounded(read_plain(text, self._limits), self._limits)
        return await extract(path, text.encode("utf-8", "replace"), kind, self._limits)


def _kind(path: str, data: bytes) -> Kind | None:
    """What a file is, by its first bytes and then by its name; None is plain text.

    Raises:
        ToolError: nothing that can be read.
    """
    if b"%PDF-" in data[:1024]:
        return "pdf"
    if data.startswith(b"PK\x03\x04"):
        return "docx"
    if data.startswith(OLD_WORD):
        raise ToolError(f"{path}: expected DOCX, got an old or encrypted Office file. Save it as DOCX.")
    if is_binary(data):
        raise ToolError(f"{path}: expected PDF, DOCX, HTML, Markdown or text, got something else.")
    if data[:1024].lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "html"
    return ENDINGS.get(path.rpartition(".")[2].lower())

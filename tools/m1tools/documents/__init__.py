"""The documents toolset: PDF, DOCX, HTML, Markdown and text files, read by page and section and searched.

A document is read once, in a sandbox, into an index; what a model is shown is an outline, a few pages, or what a search
finds, each with the anchor (`p12`, `s3.2`) to quote it by. So it may be much larger than the model's context.
"""

from __future__ import annotations

import os
from typing import Annotated

from pydantic import Field

from m1agent import ToolError, Toolset, tool
from m1agent.threads import in_thread
from m1agent.tools import Hints
from m1tools.documents.library import Entry, Library
from m1tools.files.beneath import Root, read_spot
from m1tools.files.text import is_binary, read_text
from m1tools.formats.extract import Kind, extract
from m1tools.formats.markup import read_plain
from m1tools.formats.section import Extracted, Limits, bounded

READS = Hints(read_only=True, open_world=False)
OLD_WORD = b"\xd0\xcf\x11\xe0"
ENDINGS: dict[str, Kind] = {"html": "html", "htm": "html", "xhtml": "html", "md": "markdown", "markdown": "markdown"}
NAMES = {"pdf": "PDF", "docx": "DOCX", "html": "HTML", "markdown": "Markdown", "": "text"}

__all__ = ["Limits", "documents"]


def documents(
    root: str | os.PathLike[str] = ".",
    *,
    index: str | os.PathLike[str] | None = None,
    limits: Limits | None = None,
) -> Toolset:
    """The toolset of the documents in `root`.

    Args:
        root: the folder; nothing outside of it is read.
        index: a file that keeps what was read for the next time; without it, memory does.
        limits: bounds on one document.

    Raises:
        NotADirectoryError: there is no such folder.
        ValueError: `index` is a file of another kind.
    """
    folder = Root(root)
    reader = _Reader(folder, Library(str(folder.path), index), limits or Limits())

    @tool(hints=READS)
    async def open_document(path: str) -> str:
        """Open a PDF, DOCX, HTML, Markdown or text file: its size, its parts and how it begins.

        Args:
            path: The file.
        """
        entry = await reader.entry(path)
        head, *lines = reader.library.outline(entry, "").split("\n")
        shown = lines if len(lines) <= 30 else [*lines[:30], "... outline_document shows all."]
        return "\n".join([head, *shown])

    @tool(hints=READS)
    async def outline_document(path: str, start: str = "") -> str:
        """List a document's pages or sections: anchor, title, length in characters.

        Args:
            path: The file.
            start: The anchor to begin at.
        """
        return reader.library.outline(await reader.entry(path), start)

    @tool(hints=READS)
    async def read_document(path: str, anchor: str = "", until: str = "") -> str:
        """Read a page or section, or several. Quote what you use by its anchor.

        Args:
            path: The file.
            anchor: Such as p12, s3 or s3.2; without it, from the beginning.
            until: The last anchor to read; without it, only the one page or section.
        """
        return reader.library.read(await reader.entry(path), anchor, until)

    @tool(hints=READS)
    async def search_documents(query: str, path: str = "", limit: Annotated[int, Field(ge=1, le=30)] = 8) -> str:
        """Find the places in documents that fit some words best, each with its anchor.

        Args:
            query: Words, or "phrases" in quotes.
            path: The document; without it, all that were opened.
            limit: How many places.
        """
        entry = await reader.entry(path) if path else None
        if entry is None and not reader.library.entries():
            raise ToolError("No document was opened yet. Give a path.")
        return await in_thread(lambda: reader.library.search(query, entry, limit))

    return Toolset("documents", [open_document, outline_document, read_document, search_documents])


class _Reader:
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

"""The documents toolset: PDF, DOCX, HTML, Markdown and text files, read by page and section and searched.

A document is read once, in a sandbox, into an index; what a model is shown is an outline, a few pages, or what a search
finds, each with the anchor (`p12`, `s3.2`) to quote it by. So it may be much larger than the model's context. Programs
have a `Document` for the same, and `m1tools.documents.analyst` has a model read all of one.
"""

from __future__ import annotations

import os
from typing import Annotated

from pydantic import Field

from m1agent import ToolError, Toolset, tool
from m1agent.threads import in_thread
from m1agent.tools import Hints
from m1tools.documents.claims import Claim
from m1tools.documents.document import Document
from m1tools.documents.library import Library
from m1tools.documents.reading import Reader
from m1tools.files.beneath import Root
from m1tools.formats.section import Limits

READS = Hints(read_only=True, open_world=False)

__all__ = ["Claim", "Document", "Limits", "documents"]


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
    reader = Reader(folder, Library(str(folder.path), index), limits or Limits())

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

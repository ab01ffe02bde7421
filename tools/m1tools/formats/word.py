"""DOCX: sections by headings; lists and tables as Markdown."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator
from typing import Any

from m1tools.formats.markup import sections_of
from m1tools.formats.section import Extracted, Limits, Refused

ENTRIES = 10_000
HEADING = re.compile(r"heading ([1-6])", re.IGNORECASE)


def read_word(data: bytes, limits: Limits) -> Extracted:
    """The text of the body; headers, footers, comments and footnotes are left out.

    Raises:
        Refused: what is packed in it is too much.
        Exception: it is damaged, in python-docx's or zipfile's words.
    """
    _check_size(data, limits)
    from docx import Document

    document: Any = Document(io.BytesIO(data))
    parts = _read(document, limits)
    sections = sections_of(list(parts))
    return Extracted(str(document.core_properties.title or "").strip() or _first_title(sections), sections)


def _check_size(data: bytes, limits: Limits) -> None:
    """Look at the declared sizes before anything is unpacked; zipfile never gives out more than was declared."""
    with zipfile.ZipFile(io.BytesIO(data)) as packed:
        entries = packed.infolist()
    total = sum(entry.file_size for entry in entries)
    if len(entries) > ENTRIES:
        raise Refused(f"it holds {len(entries)} files, more than {ENTRIES}. It may be meant to do harm.")
    if total > limits.inflated:
        raise Refused(f"it unpacks to {total} bytes, more than {limits.inflated}. It may be meant to do harm.")
    if any(entry.flag_bits & 1 for entry in entries):
        raise Refused("it is encrypted with a password. Ask for a copy without one.")


def _read(document: Any, limits: Limits) -> Iterator[tuple[int, str]]:
    """Its blocks: the level of a heading, or 0, and the text."""
    from docx.table import Table

    left = limits.characters
    for block in document.iter_inner_content():
        level, text = (0, _table(block)) if isinstance(block, Table) else _paragraph(block)
        if text.strip():
            yield level, text
        left -= len(text)
        if left <= 0:
            return


def _paragraph(block: Any) -> tuple[int, str]:
    style = str(getattr(block.style, "name", "") or "")
    if match := HEADING.fullmatch(style):
        return int(match[1]), block.text.strip()
    if style == "Title":
        return 1, block.text.strip()
    mark = "- " if style.startswith("List Bullet") else "1. " if style.startswith("List Number") else ""
    return 0, mark + block.text


def _table(block: Any) -> str:
    rows = ["| " + " | ".join(_cells(row)) + " |" for row in block.rows]
    rows[1:1] = ["|" + " --- |" * len(block.columns)] if rows else []
    return "\n".join(rows)


def _cells(row: Any) -> Iterator[str]:
    before = None
    for cell in row.cells:
        merged = cell._tc is before  # python-docx gives a merged cell once for each column it covers.
        yield "" if merged else " ".join(cell.text.split()).replace("|", "\\|")
        before = cell._tc


def _first_title(sections: Any) -> str:
    return next((one.title for one in sections if one.title), "")

"""PDF: a section a page, titled by its bookmark or its first line."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

from m1tools.formats.section import Extracted, Limits, Refused, Section

BOOKMARKS = 5000


def read_pdf(data: bytes, limits: Limits) -> Extracted:
    """Pages with their text.

    Raises:
        Refused: it needs a password.
        Exception: it is damaged, in pypdf's words.
    """
    from pypdf import PasswordType, PdfReader
    from pypdf.errors import DependencyError

    reader = PdfReader(io.BytesIO(data), strict=False)
    try:
        if reader.is_encrypted and reader.decrypt("") == PasswordType.NOT_DECRYPTED:
            raise Refused("it is encrypted with a password. Ask for a copy without one.")
    except DependencyError:
        raise Refused("it is encrypted. Ask for a copy that is not.") from None
    total = len(reader.pages)
    names = _bookmarks(reader)
    sections = list(_pages(reader, names, limits))
    title = _title(reader) or next((one.title for one in sections if one.title), "")
    notes = list(_notes(sections, total))
    return Extracted(title, tuple(sections), tuple(notes))


def _pages(reader: Any, names: dict[int, tuple[int, str]], limits: Limits) -> Iterator[Section]:
    left = limits.characters
    for number in range(min(len(reader.pages), limits.pages)):
        if left <= 0:
            return
        text = _text(reader.pages[number])[:left]
        left -= len(text)
        level, title = names.get(number, (1, _first_line(text)))
        yield Section(f"p{number + 1}", title, level, text)


def _text(page: Any) -> str:
    from pypdf.errors import PyPdfError

    try:
        return page.extract_text()
    except (PyPdfError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        return f"[This page cannot be read: {type(error).__name__}]"


def _notes(sections: list[Section], total: int) -> Iterator[str]:
    if len(sections) < total:
        yield f"Only its first {len(sections)} of {total} pages were read: it is over the limits."
    empty = [one.anchor for one in sections if not one.text.strip()]
    if empty:
        shown = ", ".join(empty[:10]) + (", ..." if len(empty) > 10 else "")
        yield f"{len(empty)} of {len(sections)} pages hold no text, perhaps images of it: {shown}."


def _title(reader: Any) -> str:
    try:
        return str(reader.metadata.title or "").strip() if reader.metadata else ""
    except Exception:  # Metadata is often broken where the pages are not.
        return ""


def _bookmarks(reader: Any) -> dict[int, tuple[int, str]]:
    """The first bookmark of each page: its depth and its words."""
    found: dict[int, tuple[int, str]] = {}
    try:
        for count, (level, entry) in enumerate(_walk(reader.outline, 1)):
            if count >= BOOKMARKS:
                break
            page = reader.get_destination_page_number(entry)
            if page is not None:
                found.setdefault(page, (level, str(entry.title).strip()))
    except Exception:  # As above: a broken table of contents is none.
        pass
    return found


def _walk(entries: Any, level: int) -> Iterator[tuple[int, Any]]:
    for entry in entries:
        if isinstance(entry, list):
            yield from _walk(entry, level + 1)
        else:
            yield level, entry


def _first_line(text: str) -> str:
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return line if len(line) <= 80 else line[:77] + "..."

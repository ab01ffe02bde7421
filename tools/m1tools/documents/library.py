"""The documents that were read, in pieces that can be searched and pointed to."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from m1agent import ToolError
from m1tools.documents.chunks import chunks
from m1tools.formats.section import Extracted, Section
from m1tools.fulltext import TOKENIZE, Database, excerpt, expressions, spaced

APPLICATION = 0x6D316478
MOST = 500
SHOWN = 12_000
LINES = 150
FRAME = 20  # Characters that a piece costs beside its text.
TABLES = f"""
CREATE TABLE IF NOT EXISTS documents (
    key INTEGER PRIMARY KEY AUTOINCREMENT, root TEXT NOT NULL, path TEXT NOT NULL, state TEXT NOT NULL,
    kind TEXT NOT NULL, title TEXT NOT NULL, sections INTEGER NOT NULL, characters INTEGER NOT NULL,
    notes TEXT NOT NULL, UNIQUE (root, path));
CREATE TABLE IF NOT EXISTS pieces (
    key INTEGER PRIMARY KEY, document INTEGER NOT NULL REFERENCES documents (key), section TEXT NOT NULL,
    anchor TEXT NOT NULL, level INTEGER NOT NULL, title TEXT NOT NULL, text TEXT NOT NULL, first INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS pieces_of ON pieces (document, section);
CREATE INDEX IF NOT EXISTS anchors_of ON pieces (document, anchor);
CREATE TABLE IF NOT EXISTS kept (
    document INTEGER NOT NULL, name TEXT NOT NULL, body TEXT NOT NULL, PRIMARY KEY (document, name)) WITHOUT ROWID;
CREATE VIRTUAL TABLE IF NOT EXISTS words USING fts5 (title, text, {TOKENIZE})
"""


@dataclass(frozen=True, slots=True)
class Entry:
    """A document that was read; `notes` say what of it was not."""

    key: int
    path: str
    kind: str
    title: str
    sections: int
    characters: int
    notes: str

    @property
    def told(self) -> str:
        """It in a few lines."""
        unit = "pages" if self.kind == "PDF" else "sections"
        title = f" {self.title!r}" if self.title else ""
        head = f"{self.path}:{title} {self.kind}, {self.sections} {unit}, {self.characters} characters."
        return f"{head}\n{self.notes}".strip()


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a section that a search can point to; `first` of its section or not."""

    anchor: str
    title: str
    text: str
    first: bool

    def __str__(self) -> str:
        return f"[{self.anchor}]{f' {self.title}' if self.first and self.title else ''}\n{self.text.strip()}".rstrip()


class Library:
    """Documents of one folder, by path; a file may hold those of several folders.

    Raises:
        ValueError: `index` is no file of this kind.
    """

    def __init__(self, root: str, index: str | os.PathLike[str] | None) -> None:
        self._root = root
        self._data = Database(index, APPLICATION, TABLES)

    def known(self, path: str, state: str) -> Entry | None:
        """The document at a path, if it was read in this state of the file."""
        with self._data.turn() as sql:
            return _entry(sql, "root = ? AND path = ? AND state = ?", self._root, path, state)

    def add(self, path: str, state: str, kind: str, found: Extracted) -> Entry:
        """Put a document in place of what was read of it before. The oldest goes where there are more than `MOST`."""
        count = sum(len(one.text) for one in found.sections)
        row = (
            self._root,
            path,
            state,
            kind,
            found.title,
            len(found.sections),
            count,
            "\n".join(found.notes),
        )
        with self._data.turn() as sql:
            self._forget(sql, path)
            key = sql.execute(
                "INSERT INTO documents (root, path, state, kind, title, sections, characters, notes)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                row,
            ).lastrowid
            for section in found.sections:
                _add_section(sql, key, section)
            entry = _entry(sql, "key = ?", key)
        assert entry is not None
        return entry

    def _forget(self, sql: sqlite3.Connection, path: str) -> None:
        keys = [
            *sql.execute("SELECT key FROM documents WHERE root = ? AND path = ?", (self._root, path)),
            *sql.execute("SELECT key FROM documents ORDER BY key DESC LIMIT -1 OFFSET ?", (MOST - 1,)),
        ]
        for key in keys:
            sql.execute("DELETE FROM words WHERE rowid IN (SELECT key FROM pieces WHERE document = ?)", key)
            sql.execute("DELETE FROM pieces WHERE document = ?", key)
            sql.execute("DELETE FROM kept WHERE document = ?", key)
            sql.execute("DELETE FROM documents WHERE key = ?", key)

    def outline(self, entry: Entry, start: str, lines: int = LINES) -> str:
        """Its sections, a line each, from the anchor `start` on."""
        with self._data.turn() as sql:
            begin = _find(sql, entry, start)[0] if start else 0
            rows = sql.execute(
                "SELECT section, min(level), min(title), sum(length(text)) FROM pieces WHERE document = ? AND key >= ?"
                " GROUP BY section ORDER BY min(key) LIMIT ?",
                (entry.key, begin, lines + 1),
            ).fetchall()
        shown = [
            f"{'  ' * (level - 1)}{anchor} {title or '(no title)'} ({size})"
            for anchor, level, title, size in rows[:lines]
        ]
        if len(rows) > lines:
            shown.append(f"... goes on: start={rows[lines][0]}")
        return "\n".join([entry.told, *shown])

    def read(self, entry: Entry, anchor: str, until: str, most: int = SHOWN, size: Callable[[str], int] = len) -> str:
        """Text from one anchor to another, each piece after its own anchor: as much as is of size `most`, and a piece
        at least."""
        with self._data.turn() as sql:
            begin, end = _find(sql, entry, anchor) if anchor else (0, _last(sql, entry))
            end = _find(sql, entry, until)[1] if until else end
            if end < begin:
                raise ToolError(f"until: expected an anchor after {anchor}, got {until}.")
            rows = sql.execute(
                "SELECT key, anchor, title, text, first FROM pieces"
                " WHERE document = ? AND key >= ? ORDER BY key LIMIT ?",
                (entry.key, begin, most // FRAME + 2),
            ).fetchall()
            return "\n\n".join(_shown(rows, end, most, size)) or "There is no text in it."

    def search(self, query: str, entry: Entry | None, limit: int) -> str:
        """The pieces that fit a query best: those with all its terms, or else with any."""
        where, key = ("d.key = ?", entry.key) if entry else ("d.root = ?", self._root)
        with self._data.turn() as sql:
            for number, match in enumerate(expressions(query)):
                rows = sql.execute(
                    "SELECT d.path, p.anchor, p.title, p.text FROM words JOIN pieces p ON p.key = words.rowid"
                    f" JOIN documents d ON d.key = p.document WHERE words MATCH ? AND {where}"
                    " ORDER BY bm25(words, 3.0, 1.0) LIMIT ?",
                    (match, key, limit),
                ).fetchall()
                if rows:
                    note = ["No piece has all of these words; these have some."] if number else []
                    return "\n".join([*note, *(_hit(row, query, entry) for row in rows)])
        return "Nothing matches. Try other words, or read the outline."

    def pieces(self, entry: Entry, anchor: str = "") -> list[Piece]:
        """All of a document in order, or what is at an anchor and the piece after it. Raises ToolError."""
        with self._data.turn() as sql:
            begin, end = _find(sql, entry, anchor) if anchor else (0, _last(sql, entry))
            rows = sql.execute(
                "SELECT anchor, title, text, first FROM pieces WHERE document = ? AND key BETWEEN ? AND ? ORDER BY key",
                (entry.key, begin, end + bool(anchor)),
            ).fetchall()
        return [Piece(anchor, title, text, bool(first)) for anchor, title, text, first in rows]

    def count(self, entry: Entry, anchor: str) -> int:
        """How many pieces are at an anchor. Raises ToolError where there is none."""
        with self._data.turn() as sql:
            begin, end = _find(sql, entry, anchor)
        return end - begin + 1

    def matching(self, query: str, entry: Entry, limit: int) -> list[str]:
        """The anchors of the pieces that fit a query best: those with all its terms, or else with any."""
        with self._data.turn() as sql:
            for match in expressions(query):
                rows = sql.execute(
                    "SELECT p.anchor FROM words JOIN pieces p ON p.key = words.rowid"
                    " WHERE words MATCH ? AND p.document = ? ORDER BY bm25(words, 3.0, 1.0) LIMIT ?",
                    (match, entry.key, limit),
                ).fetchall()
                if rows:
                    return [anchor for (anchor,) in rows]
        return []

    def kept(self, entry: Entry, name: str) -> str | None:
        """What `keep` was given."""
        with self._data.turn() as sql:
            row = sql.execute("SELECT body FROM kept WHERE document = ? AND name = ?", (entry.key, name)).fetchone()
        return row[0] if row else None

    def keep(self, entry: Entry, name: str, body: str) -> None:
        """Keep a text with a document, for as long as it stays as it is."""
        with self._data.turn() as sql:
            sql.execute("INSERT OR REPLACE INTO kept VALUES (?, ?, ?)", (entry.key, name, body))

    def entries(self) -> list[Entry]:
        """All that were read, the latest first."""
        with self._data.turn() as sql:
            rows = sql.execute("SELECT key FROM documents WHERE root = ? ORDER BY key DESC LIMIT 50", (self._root,))
            found = [_entry(sql, "key = ?", key) for (key,) in rows.fetchall()]
        return [one for one in found if one]


def _entry(sql: sqlite3.Connection, where: str, *values: object) -> Entry | None:
    row = sql.execute(
        f"SELECT key, path, kind, title, sections, characters, notes FROM documents WHERE {where}", values
    ).fetchone()
    return Entry(*row) if row else None


def _add_section(sql: sqlite3.Connection, document: int | None, section: Section) -> None:
    parts = list(chunks(section.text)) or [""]
    for number, text in enumerate(parts, 1):
        anchor = section.anchor if len(parts) == 1 else f"{section.anchor}.{number}"
        key = sql.execute(
            "INSERT INTO pieces (document, section, anchor, level, title, text, first) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (document, section.anchor, anchor, section.level, section.title, text, number == 1),
        ).lastrowid
        sql.execute(
            "INSERT INTO words (rowid, title, text) VALUES (?, ?, ?)", (key, spaced(section.title), spaced(text))
        )


def _find(sql: sqlite3.Connection, entry: Entry, anchor: str) -> tuple[int, int]:
    """The first and the last piece at an anchor. Raises ToolError where there is none."""
    wanted = anchor.strip().lower().strip("[]#")
    row = sql.execute(
        "SELECT min(key), max(key) FROM pieces WHERE document = ? AND (section = ? OR anchor = ?)",
        (entry.key, wanted, wanted),
    ).fetchone()
    if row[0] is None:
        ends = sql.execute(
            "SELECT section FROM pieces WHERE document = ? ORDER BY key LIMIT 1", (entry.key,)
        ).fetchone()
        last = sql.execute(
            "SELECT section FROM pieces WHERE document = ? ORDER BY key DESC LIMIT 1", (entry.key,)
        ).fetchone()
        there = f"from {ends[0]} to {last[0]}" if ends else "none: it holds no text"
        raise ToolError(f"There is no anchor {anchor[:40]!r} in {entry.path}. Anchors: {there}.")
    return row


def _last(sql: sqlite3.Connection, entry: Entry) -> int:
    return sql.execute("SELECT coalesce(max(key), 0) FROM pieces WHERE document = ?", (entry.key,)).fetchone()[0]


def _shown(
    rows: list[tuple[int, str, str, str, int]], end: int, most: int, size: Callable[[str], int]
) -> Iterator[str]:
    left = most
    for key, anchor, title, text, first in rows:
        if key > end:
            yield f"[Next: {anchor}]"
            return
        if left < size(text) and left < most:
            yield f"[Goes on at {anchor}]"
            return
        left -= size(text) + FRAME
        yield str(Piece(anchor, title, text, bool(first)))


def _hit(row: tuple[str, str, str, str], query: str, entry: Entry | None) -> str:
    path, anchor, title, text = row
    where = anchor if entry else f"{path} {anchor}"
    return f"[{where}]{f' {title}' if title else ''}: {excerpt(text, query)}"

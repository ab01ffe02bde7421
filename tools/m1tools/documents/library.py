"""The documents that were read, in pieces that can be searched and pointed to."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
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
            sql.execute("DELETE FROM documents WHERE key = ?", key)

    def outline(self, entry: Entry, start: str) -> str:
        """Its sections, a line each, from the anchor `start` on."""
        with self._data.turn() as sql:
            begin = _find(sql, entry, start)[0] if start else 0
            rows = sql.execute(
                "SELECT section, min(level), min(title), sum(length(text)) FROM pieces WHERE document = ? AND key >= ?"
                " GROUP BY section ORDER BY min(key) LIMIT ?",
                (entry.key, begin, LINES + 1),
            ).fetchall()
        lines = [
            f"{'  ' * (level - 1)}{anchor} {title or '(no title)'} ({size})"
            for anchor, level, title, size in rows[:LINES]
        ]
        if len(rows) > LINES:
            lines.append(f"... goes on: start={rows[LINES][0]}")
        return "\n".join([f"{entry.told}", *lines])

    def read(self, entry: Entry, anchor: str, until: str) -> str:
        """Text from one anchor to another, as much as `SHOWN` characters, each piece after its own anchor."""
        with self._data.turn() as sql:
            begin, end = _find(sql, entry, anchor) if anchor else (0, _last(sql, entry))
            end = _find(sql, entry, until)[1] if until else end
            if end < begin:
                raise ToolError(f"until: expected an anchor after {anchor}, got {until}.")
            rows = sql.execute(
                "SELECT key, anchor, title, text, first FROM pieces"
                " WHERE document = ? AND key >= ? ORDER BY key LIMIT ?",
                (entry.key, begin, SHOWN // FRAME + 2),
            ).fetchall()
            return "\n\n".join(_shown(rows, end)) or "There is no text in it."

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


def _shown(rows: list[tuple[int, str, str, str, int]], end: int) -> Iterator[str]:
    left = SHOWN
    for key, anchor, title, text, first in rows:
        if key > end:
            yield f"[Next: {anchor}]"
            return
        if left < len(text) and left < SHOWN:
            yield f"[Goes on at {anchor}]"
            return
        left -= len(text) + FRAME
        yield f"[{anchor}]{f' {title}' if first and title else ''}\n{text.strip()}".rstrip()


def _hit(row: tuple[str, str, str, str], query: str, entry: Entry | None) -> str:
    path, anchor, title, text = row
    where = anchor if entry else f"{path} {anchor}"
    return f"[{where}]{f' {title}' if title else ''}: {excerpt(text, query)}"

"""Notes in a file."""

from __future__ import annotations

import sqlite3
import threading
import time
from dataclasses import dataclass, fields
from pathlib import Path

from m1agent import ToolError
from m1tools.fulltext import TOKENIZE, Database, expressions, spaced

APPLICATION = 0x6D316D6E
PAGE = 30
SHOWN = 12_000
LARGEST = 1 << 62  # A number that SQLite can hold.
TABLES = f"""
CREATE TABLE IF NOT EXISTS notes (
    number INTEGER PRIMARY KEY AUTOINCREMENT, written REAL NOT NULL, text TEXT NOT NULL UNIQUE);
CREATE VIRTUAL TABLE IF NOT EXISTS words USING fts5 (text, {TOKENIZE})
"""
Row = tuple[int, float, str]


@dataclass(frozen=True, slots=True)
class Bounds:
    """`notes` at most, each of at most `characters`.

    Raises:
        ValueError: a bound is not above 0.
    """

    notes: int = 2000
    characters: int = 4000

    def __post_init__(self) -> None:
        for field in fields(self):
            if not getattr(self, field.name) > 0:
                raise ValueError(f"Bounds.{field.name} must be above 0, not {getattr(self, field.name)!r}")


class Notes:
    """The notes of a file, which is made with the first of them. Every method answers with what a model is told.

    Raises:
        ValueError: it is a file of another kind.
    """

    def __init__(self, path: Path, bounds: Bounds) -> None:
        self._path, self._bounds = path.expanduser(), bounds
        self._opening = threading.Lock()
        self._opened = Database(path, APPLICATION, TABLES) if self._path.exists() else None

    @property
    def _data(self) -> Database:
        with self._opening:
            if self._opened is None:
                self._opened = Database(self._path, APPLICATION, TABLES)
            return self._opened

    def add(self, text: str) -> str:
        """Keep a note, once.

        Raises:
            ToolError: it is empty or too long, or there are too many.
        """
        text = text.encode("utf-8", "replace").decode().replace("\0", "").strip()
        if not text:
            raise ToolError("text: expected a note, got nothing.")
        if len(text) > self._bounds.characters:
            raise ToolError(
                f"text: expected at most {self._bounds.characters} characters, got {len(text)}. Keep what matters."
            )
        with self._data.turn() as sql:
            known = sql.execute("SELECT number FROM notes WHERE text = ?", (text,)).fetchone()
            if known:
                return f"This is note {known[0]} already."
            if sql.execute("SELECT count(*) FROM notes").fetchone()[0] >= self._bounds.notes:
                raise ToolError(f"There are {self._bounds.notes} notes, and no room for more. Forget some.")
            number = sql.execute("INSERT INTO notes (written, text) VALUES (?, ?)", (time.time(), text)).lastrowid
            sql.execute("INSERT INTO words (rowid, text) VALUES (?, ?)", (number, spaced(text)))
        return f"Kept as note {number}."

    def find(self, query: str, limit: int) -> str:
        """The notes that have all the words of a query, or else those that have any."""
        with self._data.turn() as sql:
            for match in expressions(query):
                rows = sql.execute(
                    "SELECT n.number, n.written, n.text FROM words JOIN notes n ON n.number = words.rowid"
                    " WHERE words MATCH ? ORDER BY bm25(words), n.number DESC LIMIT ?",
                    (match, limit),
                ).fetchall()
                if rows:
                    return _told(rows)
        return "No note has these words."

    def listed(self, before: int | None) -> str:
        """A page of notes, the latest first."""
        with self._data.turn() as sql:
            rows = _latest(sql, before)
        return _told(rows[:PAGE], more=len(rows) > PAGE) if rows else "There are no notes."

    def remove(self, number: int) -> str:
        """Delete a note.

        Raises:
            ToolError: there is none of that number.
        """
        with self._data.turn() as sql:
            if number > LARGEST or not sql.execute("DELETE FROM notes WHERE number = ?", (number,)).rowcount:
                raise ToolError("There is no note of this number. list_notes shows them.")
            sql.execute("DELETE FROM words WHERE rowid = ?", (number,))
        return f"Note {number} is forgotten."


def _latest(sql: sqlite3.Connection, before: int | None) -> list[Row]:
    return sql.execute(
        "SELECT number, written, text FROM notes WHERE number < ? ORDER BY number DESC LIMIT ?",
        (min(before or LARGEST, LARGEST), PAGE + 1),
    ).fetchall()


def _told(rows: list[Row], *, more: bool = False) -> str:
    lines, left = list[str](), SHOWN
    for number, written, text in rows:
        if lines and len(text) > left:
            more = True
            break
        left -= len(text)
        lines.append(f"{number} ({time.strftime('%Y-%m-%d', time.gmtime(written))}): {text}")
    last = rows[len(lines) - 1][0]
    return "\n".join([*lines, *([f"... and more: those before {last}, or by other words."] if more else [])])

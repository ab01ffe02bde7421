"""Full-text search in SQLite's FTS5: one file, or memory, shared by the threads of a process in turn."""

from __future__ import annotations

import os
import re
import sqlite3
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from m1agent import ToolError

WAIT = 10.0
TERMS = 32
EXCERPT = 300
TOKENIZE = "tokenize = 'porter unicode61 remove_diacritics 2'"
UNSPACED = re.compile(r"([\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff])")
TERM = re.compile(r'"([^"]*)"|(\S+)')
WORD = re.compile(r"\w+")


class Database:
    """One connection. `application` marks the file, so that no other program's database is written to.

    Args:
        path: the file, made with its folder where there is none and for its user alone; None keeps all in memory.
        application: a number of 32 bits.
        script: statements that make the tables, each `IF NOT EXISTS`.

    Raises:
        ValueError: the file is another program's, or no database.
    """

    def __init__(self, path: str | os.PathLike[str] | None, application: int, script: str) -> None:
        self._turn = threading.RLock()
        if path is not None:
            file = Path(path).expanduser()
            file.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileExistsError):
                os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            path = file
        try:
            self._sql = sqlite3.connect(path or ":memory:", timeout=WAIT, isolation_level=None, check_same_thread=False)
            self._prepare(application, script)
        except sqlite3.Error as error:
            raise ValueError(f"{path} cannot be used as a database: {error}; give another file") from None

    def _prepare(self, application: int, script: str) -> None:
        self._sql.execute("BEGIN")  # One view of the file: another process may be making it just now.
        known: int = self._sql.execute("PRAGMA application_id").fetchone()[0]
        tables: int = self._sql.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        self._sql.execute("COMMIT")
        if known not in (0, application) or (not known and tables):
            self._sql.close()
            raise ValueError("this file is a database of another program; give a file of its own")
        self._use_log()
        self._sql.execute("PRAGMA secure_delete = ON")
        self._sql.executescript(f"BEGIN IMMEDIATE; PRAGMA application_id = {application}; {script}; COMMIT")

    def _use_log(self) -> None:
        # Changing the mode does not wait for other connections as everything else does.
        deadline = time.monotonic() + WAIT
        while self._sql.execute("PRAGMA journal_mode").fetchone()[0] == "delete":
            try:
                self._sql.execute("PRAGMA journal_mode = WAL").fetchone()
            except sqlite3.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    @contextmanager
    def turn(self) -> Generator[sqlite3.Connection]:
        """A transaction: all of it, or nothing where the block raises.

        Raises:
            ToolError: SQLite's own error, such as a full disk.
        """
        with self._turn:
            try:
                self._sql.execute("BEGIN IMMEDIATE")
                yield self._sql
                self._sql.execute("COMMIT")
            except sqlite3.Error as error:
                raise ToolError(f"The store failed: {error}.") from error
            finally:
                if self._sql.in_transaction:
                    self._sql.execute("ROLLBACK")

    def close(self) -> None:
        """Close it. Calling it again does nothing."""
        with self._turn:
            self._sql.close()


def spaced(text: str) -> str:
    """Text with its words apart, for the index: of writing without spaces each character counts as a word."""
    return UNSPACED.sub(r" \1 ", text)


def expressions(query: str) -> Iterator[str]:
    """What to match, the strictest first: all terms, then any. A term is a word or a "quoted phrase"; nothing in it is
    an operator.

    Raises:
        ToolError: there is no word in the query.
    """
    phrases = [match[1] if match[1] is not None else match[2] for match in TERM.finditer(query)]
    terms = [" ".join(WORD.findall(spaced(phrase))) for phrase in phrases]
    quoted = [f'"{term}"' for term in terms if term][:TERMS]
    if not quoted:
        raise ToolError(f"query: expected words to search for, got {query[:40]!r}.")
    yield " AND ".join(quoted)
    if len(quoted) > 1:
        yield " OR ".join(quoted)


def excerpt(text: str, query: str, length: int = EXCERPT) -> str:
    """The part of a text around the words of a query, in one line."""
    words = sorted({re.escape(word.lower()) for word in WORD.findall(query)}, key=len, reverse=True)[:TERMS]
    stems = "|".join(word[: max(3, len(word) - 2)] if word.isascii() else word for word in words)
    starts = [match.start() for match in re.finditer(stems, text.lower())][:200] if stems else []
    best = max(starts, key=lambda at: sum(at <= other < at + length for other in starts), default=0)
    begin = max(0, best - length // 4)
    part = " ".join(text[begin : begin + length].split())
    return f"{'...' if begin else ''}{part}{'...' if begin + length < len(text) else ''}"

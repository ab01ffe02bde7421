"""The SQLite file under a store: opened safely by several processes at once, and brought to the present schema."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from m1agent.errors import StoreError

APPLICATION = 0x6D316167  # "m1ag": marks the file as a store, so that no other program's database is written to.
WAIT = 10.0

MIGRATIONS = (
    """
    CREATE TABLE conversations (
        key INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        title TEXT NOT NULL,
        created REAL NOT NULL,
        changed REAL NOT NULL,
        branch INTEGER REFERENCES branches (key) DEFERRABLE INITIALLY DEFERRED,
        length INTEGER NOT NULL DEFAULT 0,
        revision INTEGER NOT NULL DEFAULT 0,
        waiting TEXT NOT NULL DEFAULT '[]',
        owner TEXT NOT NULL DEFAULT ''
    );
    CREATE TABLE branches (
        key INTEGER PRIMARY KEY AUTOINCREMENT,
        conversation INTEGER NOT NULL REFERENCES conversations (key) ON DELETE CASCADE,
        parent INTEGER REFERENCES branches (key) ON DELETE CASCADE,
        kept INTEGER NOT NULL,
        made REAL NOT NULL
    );
    CREATE INDEX branches_of ON branches (conversation);
    CREATE INDEX branches_from ON branches (parent);
    CREATE INDEX current_branch ON conversations (branch);
    CREATE TABLE messages (
        branch INTEGER NOT NULL REFERENCES branches (key) ON DELETE CASCADE,
        position INTEGER NOT NULL,
        written REAL NOT NULL,
        body TEXT NOT NULL,
        PRIMARY KEY (branch, position)
    ) WITHOUT ROWID;
    CREATE TABLE notes (
        branch INTEGER NOT NULL REFERENCES branches (key) ON DELETE CASCADE,
        call INTEGER NOT NULL,
        body TEXT NOT NULL,
        PRIMARY KEY (branch, call)
    ) WITHOUT ROWID;
    """,
)
"""One script for each schema version, the first from an empty file. Append; never change one that was released."""


class Database:
    """One connection to a store's file, shared by the threads of this process in turn.

    Write-ahead logging lets others read while one writes. With `synchronous=NORMAL` a commit is in the hands of the
    operating system: a killed process loses nothing, a power cut may lose the last commits but never harms the file.
    `durable` waits for the disk at each commit instead. A new file is for its user alone.

    Raises:
        StoreError: the file cannot be opened, is no store, or was written by a newer version.
    """

    def __init__(self, path: Path, *, durable: bool = False) -> None:
        self.path = path
        self._turn = threading.RLock()
        # SQLite would make it readable for all; its log takes the file's mode. A file that is there keeps its own.
        with suppress(OSError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        with self._told():
            self._sql = sqlite3.connect(path, timeout=WAIT, isolation_level=None, check_same_thread=False)
        try:
            with self._told():
                self._prepare(durable)
        except BaseException:
            self._sql.close()
            raise

    @contextmanager
    def reading(self) -> Generator[sqlite3.Connection]:
        """A transaction that sees one state of the file."""
        with self._transaction("BEGIN") as sql:
            yield sql

    @contextmanager
    def writing(self) -> Generator[sqlite3.Connection]:
        """A transaction that writes: all of it, or nothing where the block raises."""
        with self._transaction("BEGIN IMMEDIATE") as sql:
            yield sql

    def shrink(self) -> None:
        """Give freed pages back to the file system, and empty the log, which may still hold what was deleted."""
        with self._turn, self._told():
            self._sql.executescript("PRAGMA incremental_vacuum")  # `execute` would take one page only.
            self._sql.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def close(self) -> None:
        """Close the file. Calling it again does nothing."""
        with self._turn:
            self._sql.close()

    @contextmanager
    def _transaction(self, begin: str) -> Generator[sqlite3.Connection]:
        with self._turn, self._told():
            self._sql.execute(begin)
            try:
                yield self._sql
                self._sql.execute("COMMIT")
            except BaseException:
                if self._sql.in_transaction:
                    self._sql.execute("ROLLBACK")
                raise

    @contextmanager
    def _told(self) -> Generator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StoreError(f"the store {self.path} failed: {error}") from error

    def _prepare(self, durable: bool) -> None:
        self._check_kind()
        self._sql.execute("PRAGMA auto_vacuum = INCREMENTAL")  # Takes effect in an empty file only.
        self._use_log()
        self._sql.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
        self._sql.execute("PRAGMA foreign_keys = ON")
        self._sql.execute("PRAGMA secure_delete = ON")
        self._migrate()

    def _check_kind(self) -> None:
        # In one transaction: another process may be making the file just now.
        self._sql.execute("BEGIN")
        application, version = self._pragma("application_id"), self._pragma("user_version")
        tables = self._sql.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        self._sql.execute("COMMIT")
        if application not in (0, APPLICATION) or (application == 0 and tables):
            raise StoreError(f"{self.path} is a database of another program; give the store a file of its own")
        if version > len(MIGRATIONS):
            raise StoreError(
                f"{self.path} has schema {version}, and this m1agent knows {len(MIGRATIONS)}: install a newer one"
            )

    def _use_log(self) -> None:
        # Changing the mode does not wait for other connections as everything else does.
        deadline = time.monotonic() + WAIT
        while self._pragma("journal_mode") != "wal":
            try:
                self._sql.execute("PRAGMA journal_mode = WAL").fetchone()
                return
            except sqlite3.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    def _migrate(self) -> None:
        while self._pragma("user_version") < len(MIGRATIONS):
            self._sql.execute("BEGIN IMMEDIATE")
            try:
                version: int = self._pragma("user_version")  # Another process may have been faster.
                if version < len(MIGRATIONS):
                    for statement in MIGRATIONS[version].split(";"):
                        self._sql.execute(statement)
                    self._sql.execute(f"PRAGMA application_id = {APPLICATION}")
                    self._sql.execute(f"PRAGMA user_version = {version + 1}")
                self._sql.execute("COMMIT")
            except BaseException:
                self._sql.execute("ROLLBACK")
                raise

    def _pragma(self, name: str) -> Any:
        return self._sql.execute(f"PRAGMA {name}").fetchone()[0]

"""How one conversation is written into a store: rows of messages that are only ever added, and branches over them.

A branch holds the messages after the first `kept` ones, which it takes from its parent. The conversation points at the
branch that is its present history. Every change checks and raises the conversation's revision, so nobody can write over
what another process has added.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from sqlite3 import Connection
from typing import Any

from m1agent.database import Database
from m1agent.errors import ConversationChanged, ConversationNotFound
from m1agent.messages import Message, ToolResult
from m1agent.transcript import message_to_json, results_from_json, results_to_json


@dataclass(frozen=True, slots=True)
class Row:
    """A conversation as its table holds it. `waiting` is read by `waiting_of`, times are seconds since 1970."""

    key: int
    id: str
    title: str
    branch: int
    length: int
    revision: int
    waiting: str
    created: float
    changed: float


COLUMNS = "key, id, title, branch, length, revision, waiting, created, changed"


class FileJournal:
    """The journal of one conversation. Each change is one transaction, safe when the method returns.

    Args:
        database: the file.
        row: the conversation as it was read.
        noted: the results of its last reply's calls that were read with it.
        lock: keeps every other process from the conversation; raises ConversationInUse where one has it.

    Raises:
        ConversationChanged: the conversation is no longer what was read, or an earlier change could not be written.
        ConversationInUse: a run elsewhere has it.
        StoreError: the file cannot be written.
    """

    def __init__(
        self,
        database: Database,
        row: Row,
        noted: Sequence[ToolResult | None],
        lock: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._database = database
        self._key, self._id = row.key, row.id
        self._branch, self._length, self._revision = row.branch, row.length, row.revision
        self._noted = tuple(noted)
        self._lock = lock
        self._held = False
        self._lost = False

    @contextmanager
    def hold(self) -> Generator[None]:
        """Keep the conversation for a run, from every other process too. Raises as a change would."""
        owner = f"process {os.getpid()} on {socket.gethostname()}"
        with self._lock():
            with self._database.writing() as sql:
                same = sql.execute(
                    "UPDATE conversations SET owner = ? WHERE key = ? AND revision = ?",
                    (owner, self._key, self._revision),
                )
                if self._lost or not same.rowcount:
                    raise self._changed()
            self._held = True
            try:
                yield
            finally:
                self._held = False

    def appended(self, message: Message) -> None:
        body = _text(message_to_json(message))
        with self._change(self._length + 1) as sql:
            write(sql, self._branch, self._length, [body])
            if self._noted:
                sql.execute("DELETE FROM notes WHERE branch = ?", (self._branch,))
        self._length += 1
        self._noted = ()

    def replaced(self, messages: Sequence[Message]) -> None:
        bodies = [_text(message_to_json(message)) for message in messages]
        with self._change(len(bodies)) as sql:
            kept = _same(bodies_of(sql, self._branch), bodies)
            branch = new_branch(sql, self._key, _holder(sql, self._branch, kept), kept)
            write(sql, branch, kept, bodies[kept:])
        self._branch, self._length, self._noted = branch, len(bodies), ()

    def noted(self, results: Sequence[ToolResult | None], waiting: Sequence[str] = (), agent: str = "") -> None:
        before = [*self._noted, *[None] * len(results)]
        new = [(index, result) for index, result in enumerate(results) if result and result != before[index]]
        rows = [(self._branch, index, _text(results_to_json([result]))) for index, result in new]
        with self._change(self._length, waiting, agent) as sql:
            sql.executemany("INSERT OR REPLACE INTO notes VALUES (?, ?, ?)", rows)
        self._noted = tuple(results)

    @contextmanager
    def _change(self, length: int, waiting: Sequence[str] = (), agent: str = "") -> Generator[Connection]:
        # Lost until written: the conversation in memory already has the change, and must not go on without it.
        lost, self._lost = self._lost, True
        with nullcontext() if self._held else self._lock(), self._database.writing() as sql:
            same = sql.execute(
                "UPDATE conversations SET revision = revision + 1, changed = ?, length = ?, waiting = ?"
                " WHERE key = ? AND revision = ?",
                (time.time(), length, waiting_to_text(waiting, agent), self._key, self._revision),
            )
            if lost or not same.rowcount:
                raise self._changed()
            yield sql
        self._revision += 1
        self._lost = False

    def _changed(self) -> ConversationChanged:
        return ConversationChanged(
            f"conversation '{self._id}' is no longer as it was read here: another process went on with it, or a change"
            f" could not be written; open it again with store.open('{self._id}')"
        )


def find(sql: Connection, id: str) -> Row:
    """The conversation of that id. Raises ConversationNotFound."""
    row = sql.execute(f"SELECT {COLUMNS} FROM conversations WHERE id = ?", (id,)).fetchone()
    if row is None:
        raise ConversationNotFound(f"there is no conversation '{id}' in the store; store.list() names all there are")
    return Row(*row)


def insert(sql: Connection, id: str, title: str) -> tuple[int, int]:
    """A new conversation with an empty branch; the keys of both."""
    now = time.time()
    made = sql.execute(
        "INSERT INTO conversations (id, title, created, changed) VALUES (?, ?, ?, ?)", (id, title, now, now)
    )
    assert made.lastrowid is not None
    return made.lastrowid, new_branch(sql, made.lastrowid, None, 0)


def new_branch(sql: Connection, conversation: int, parent: int | None, kept: int) -> int:
    """A branch over the first `kept` messages of `parent`; it is the conversation's history from here on."""
    made = sql.execute(
        "INSERT INTO branches (conversation, parent, kept, made) VALUES (?, ?, ?, ?)",
        (conversation, parent, kept, time.time()),
    )
    assert made.lastrowid is not None
    sql.execute("UPDATE conversations SET branch = ? WHERE key = ?", (made.lastrowid, conversation))
    return made.lastrowid


def write(sql: Connection, branch: int, position: int, bodies: Iterable[str]) -> None:
    """Add messages to a branch, the first at `position` of the conversation."""
    now = time.time()
    sql.executemany(
        "INSERT INTO messages (branch, position, written, body) VALUES (?, ?, ?, ?)",
        ((branch, position + index, now, body) for index, body in enumerate(bodies)),
    )


def bodies_of(sql: Connection, branch: int | None) -> list[str]:
    """The messages of a branch as JSON texts, those taken from its ancestors first."""
    parts: list[list[str]] = []
    until = sys.maxsize
    while branch is not None:
        rows = sql.execute(
            "SELECT body FROM messages WHERE branch = ? AND position < ? ORDER BY position", (branch, until)
        )
        parts.append([body for (body,) in rows])
        branch, kept = sql.execute("SELECT parent, kept FROM branches WHERE key = ?", (branch,)).fetchone()
        until = min(until, kept)
    return [body for part in reversed(parts) for body in part]


def waiting_to_text(waiting: Sequence[str], agent: str) -> str:
    """Ids of calls that wait, as a JSON list; where an agent's name is known, as an object with it."""
    ids = list(waiting)
    return _text({"calls": ids, "agent": agent} if ids and agent else ids)


def waiting_of(row: Row) -> tuple[tuple[str, ...], str]:
    """Ids of calls that wait, and the name of the agent that made them."""
    given: dict[str, Any] | list[str] = json.loads(row.waiting)
    return (tuple(given["calls"]), given["agent"]) if isinstance(given, dict) else (tuple(given), "")


def notes_of(sql: Connection, branch: int) -> dict[int, ToolResult | None]:
    """Results noted of the last reply's calls, by the index of the call."""
    rows: list[tuple[int, str]] = sql.execute("SELECT call, body FROM notes WHERE branch = ?", (branch,)).fetchall()
    return {call: results_from_json(json.loads(body))[0] for call, body in rows}


def _holder(sql: Connection, branch: int, kept: int) -> int | None:
    """The branch that holds message `kept - 1` of `branch` itself: chains stay short however often one goes back."""
    holder: int | None = branch if kept else None
    while holder is not None:
        parent, start = sql.execute("SELECT parent, kept FROM branches WHERE key = ?", (holder,)).fetchone()
        if start < kept:
            return holder
        holder = parent
    return None


def _same(before: Sequence[str], after: Sequence[str]) -> int:
    """How many messages both begin with."""
    differ = (index for index, pair in enumerate(zip(before, after, strict=False)) if pair[0] != pair[1])
    return next(differ, min(len(before), len(after)))


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))

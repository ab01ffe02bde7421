"""Conversations in a file: each message is safe as soon as it is said.

    with ConversationStore("talks.db") as store:
        talk = store.create(title="Derivatives")
        agent.run_sync("What is the derivative of x^2?", conversation=talk)
    ...
        talk = store.open(talk.id)      # tomorrow, or in another process

A process may be killed at any point: what was finished is there, results of single calls included, and the next run
goes on. Several processes may use one file. One run at a time has a conversation; its lock is the operating system's,
so it ends with the process, however that ends. Nothing is overwritten: a rewind or a compaction begins a new branch,
and `history` shows them all.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from sqlite3 import Connection
from types import TracebackType
from typing import Self

from m1agent.conversation import NOT_RUN, Conversation
from m1agent.database import Database
from m1agent.errors import ConversationChanged, ConversationInUse, StoreError
from m1agent.journal import FileJournal, bodies_of, find, insert, notes_of, waiting_of, write
from m1agent.messages import AssistantMessage, Message, ToolCall, ToolResult
from m1agent.transcript import message_from_json

LOCK_WAIT = 0.1  # Opening a conversation may take its lock for a moment; a run has it for long.


@dataclass(frozen=True, slots=True)
class ConversationInfo:
    """What `ConversationStore.list` says of a conversation; times are in UTC."""

    id: str
    title: str
    created: datetime
    changed: datetime
    messages: int


@dataclass(frozen=True, slots=True)
class Branch:
    """One history of a conversation, `made` when it began; its first `kept` messages are those of the one before."""

    made: datetime
    kept: int
    messages: tuple[Message, ...]


class ConversationStore:
    """Conversations in one SQLite file, made where there is none. Threads and processes may share it.

    Args:
        path: the file; its folder must exist. Beside it lie `<path>-wal`, `<path>-shm` and the folder `<path>.locks`.
            What is made here is readable by its user alone (0600, the folder 0700); what is there keeps its mode.
        durable: wait for the disk at each change, so that even a power cut loses none. A killed process never does.

    Raises:
        StoreError: the file cannot be used; the text says why. So does every method.
    """

    def __init__(self, path: str | Path, *, durable: bool = False) -> None:
        if str(path) in ("", ":memory:"):
            raise StoreError("a store needs a file; a Conversation() by itself is kept in memory")
        self.path = Path(path).expanduser().absolute()
        self._database = Database(self.path, durable=durable)

    def create(self, id: str | None = None, title: str = "") -> StoredConversation:
        """A new, empty conversation; `id` is made up where none is given.

        Raises:
            StoreError: there is a conversation of that id already.
        """
        name = _name(id)
        with self._database.writing() as sql:
            _check_free(sql, name)
            insert(sql, name, title)
        return self._load(name)

    def open(self, id: str) -> StoredConversation:
        """The conversation as it is now. Calls that a killed run left without a result are settled: those that had
        finished with their results, the others as not run, and those that wait for a human's answer not at all.

        Raises:
            ConversationNotFound: there is none of that id.
        """
        talk = self._load(id)
        if talk.unsettled:
            try:
                with suppress(ConversationInUse), talk.in_use():  # A run that still goes on will settle them itself.
                    pass
            except ConversationChanged:
                return self._load(id)  # It ended just now.
        return talk

    def rename(self, id: str, title: str) -> None:
        """Give a conversation another title. Raises ConversationNotFound."""
        with self._database.writing() as sql:
            sql.execute("UPDATE conversations SET title = ? WHERE key = ?", (title, find(sql, id).key))

    def fork(self, id: str, at: int | None = None, *, to: str | None = None) -> StoredConversation:
        """A new conversation that begins with the first `at` messages of another, or with all of them; `to` is its id.

        Raises:
            ConversationNotFound: there is none of that id.
            StoreError: there is a conversation `to` already.
            ValueError: it is not that long, or a call would be left without its result.
        """
        name = _name(to)
        with self._database.writing() as sql:
            source = find(sql, id)
            _check_free(sql, name)
            bodies = bodies_of(sql, source.branch)
            whole = at is None or at == len(bodies)
            length = len(bodies) if at is None else at
            if not 0 <= length <= len(bodies):
                raise ValueError(f"cannot fork at {length}: conversation '{id}' has {len(bodies)} messages")
            if not whole and length and json.loads(bodies[length - 1]).get("calls"):
                raise ValueError(f"message {length} makes calls; fork at {length - 1} or {length + 1} instead")
            key, branch = insert(sql, name, source.title)
            write(sql, branch, 0, bodies[:length])
            waiting = source.waiting if whole else "[]"
            sql.execute("UPDATE conversations SET length = ?, waiting = ? WHERE key = ?", (length, waiting, key))
            if whole:
                sql.execute(
                    "INSERT INTO notes SELECT ?, call, body FROM notes WHERE branch = ?", (branch, source.branch)
                )
        return self.open(name)

    def history(self, id: str) -> tuple[Branch, ...]:
        """Every history the conversation had, oldest first and the present one last. Raises ConversationNotFound."""
        with self._database.reading() as sql:
            rows: list[tuple[int, float, int]] = sql.execute(
                "SELECT key, made, kept FROM branches WHERE conversation = ? ORDER BY key", (find(sql, id).key,)
            ).fetchall()
            return tuple(Branch(_time(made), kept, _messages(id, bodies_of(sql, key))) for key, made, kept in rows)

    def delete(self, id: str) -> None:
        """Delete a conversation and every history it had; its bytes are overwritten and the file shrinks.

        Raises:
            ConversationNotFound: there is none of that id.
            ConversationInUse: a run is using it.
        """
        with self._database.reading() as sql:
            key = find(sql, id).key
        with self._lock(key):
            with self._database.writing() as sql:
                sql.execute("UPDATE conversations SET branch = NULL WHERE key = ?", (key,))
                sql.execute("DELETE FROM conversations WHERE key = ?", (key,))
            self._database.shrink()
        self._lock_path(key).unlink(missing_ok=True)  # Keys are never used again, so nobody can wait for it.

    def list(self) -> tuple[ConversationInfo, ...]:
        """All conversations, the last changed first."""
        with self._database.reading() as sql:
            rows: list[tuple[str, str, float, float, int]] = sql.execute(
                "SELECT id, title, created, changed, length FROM conversations ORDER BY changed DESC, key DESC"
            ).fetchall()
        return tuple(
            ConversationInfo(id, title, _time(created), _time(changed), length)
            for id, title, created, changed, length in rows
        )

    def close(self) -> None:
        """Close the file; conversations opened from it can no longer be extended. Calling it again does nothing."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _load(self, id: str) -> StoredConversation:
        with self._database.reading() as sql:
            row = find(sql, id)
            messages = _messages(id, bodies_of(sql, row.branch))
            notes = notes_of(sql, row.branch)
        last = messages[-1] if messages else None
        calls = last.calls if isinstance(last, AssistantMessage) else ()
        noted = tuple(notes.get(index) for index in range(len(calls))) if notes else ()
        journal = FileJournal(self._database, row, noted, lambda: self._lock(row.key))
        return StoredConversation(id, messages, journal, noted, *waiting_of(row))

    @contextmanager
    def _lock(self, key: int) -> Generator[None]:
        from filelock import FileLock, Timeout

        lock = FileLock(self._lock_path(key), mode=0o600, thread_local=False)
        try:
            self._lock_path(key).parent.mkdir(0o700, exist_ok=True)
            lock.acquire(timeout=LOCK_WAIT, poll_interval=0.005)
        except Timeout:
            raise ConversationInUse(self._owner(key)) from None
        except OSError as error:
            raise StoreError(f"the locks beside the store cannot be used: {error}") from error
        try:
            yield
        finally:
            lock.release()

    def _lock_path(self, key: int) -> Path:
        return Path(f"{self.path}.locks", f"{key}.lock")

    def _owner(self, key: int) -> str:
        with self._database.reading() as sql:
            found = sql.execute("SELECT owner FROM conversations WHERE key = ?", (key,)).fetchone()
        return (found and found[0]) or "another run"


class StoredConversation(Conversation):
    """A conversation of a `ConversationStore`, which makes it. `id` is its name there.

    `fork` gives a twin that is kept in memory only; `ConversationStore.fork` one that is stored.
    """

    def __init__(
        self,
        id: str,
        messages: Sequence[Message],
        journal: FileJournal,
        noted: Sequence[ToolResult | None],
        waiting: Sequence[str],
        agent: str,
    ) -> None:
        super().__init__(messages, journal=journal)
        self.id = id
        self._file = journal
        self._noted, self._waiting, self._agent = tuple(noted), tuple(waiting), agent

    @property
    def unsettled(self) -> bool:
        """Whether calls of the last reply neither have a result nor wait for a human's answer."""
        calls = self._unanswered()
        return bool(calls) and (not self._waiting or any(map(self._forgotten, calls, self._known(calls))))

    @contextmanager
    def in_use(self) -> Generator[None]:
        """Held by a run for as long as it lasts, in this process or another.

        Raises:
            ConversationInUse: another run holds it; the text names its process.
            ConversationChanged: someone else went on with it since it was opened here.
        """
        with super().in_use(), self._file.hold():
            if self.unsettled:
                self._settle_forgotten()
            yield

    def _settle_forgotten(self) -> None:
        """Answer the calls that a killed run left: the noted ones as noted, the others as not run."""
        if not self._waiting:
            self.settle()
            return
        calls = self._unanswered()
        self.note(
            [
                ToolResult(call.id, call.name, NOT_RUN, is_error=True) if self._forgotten(call, result) else result
                for call, result in zip(calls, self._known(calls), strict=True)
            ],
            self._waiting,
            self._agent,
        )

    def _unanswered(self) -> tuple[ToolCall, ...]:
        last = self._messages[-1] if self._messages else None
        return last.calls if isinstance(last, AssistantMessage) else ()

    def _known(self, calls: Sequence[ToolCall]) -> Sequence[ToolResult | None]:
        return [*self._noted, *[None] * len(calls)][: len(calls)]

    def _forgotten(self, call: ToolCall, result: ToolResult | None) -> bool:
        return result is None and call.id not in self._waiting


def _name(id: str | None) -> str:
    if id == "":
        raise StoreError("the id of a conversation must not be empty; leave it out to get one")
    return uuid.uuid4().hex if id is None else id


def _check_free(sql: Connection, name: str) -> None:
    if sql.execute("SELECT 1 FROM conversations WHERE id = ?", (name,)).fetchone():
        raise StoreError(f"there is a conversation '{name}' already; store.open('{name}') goes on with it")


def _messages(id: str, bodies: Sequence[str]) -> tuple[Message, ...]:
    return tuple(
        message_from_json(json.loads(body), f"conversation '{id}', messages[{index}]")
        for index, body in enumerate(bodies)
    )


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)

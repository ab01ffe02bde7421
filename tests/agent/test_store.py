"""Conversations in a file: kept whatever happens to the process, shared between processes, never overwritten."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from m1agent import database
from m1agent.agent import Agent
from m1agent.conversation import NOT_RUN
from m1agent.errors import ConversationChanged, ConversationInUse, ConversationNotFound, StoreError
from m1agent.messages import (
    AssistantMessage,
    FilePart,
    Message,
    SystemMessage,
    ToolCall,
    ToolMessage,
    ToolResult,
    UserMessage,
)
from m1agent.models.scripted import ScriptedModel
from m1agent.store import ConversationStore
from m1agent.tools import tool

HERE = Path(__file__).parent
KILLED = HERE / "killed_agent.py"
CALLS = AssistantMessage("", "", (ToolCall("1", "f", {"x": 1}), ToolCall("2", "f", {"x": 2})))
FIRST = ToolResult("1", "f", "one", parts=(FilePart(b"\x00", "a/b", "n"),))
SECOND = ToolResult("2", "f", "two")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "talks.db"


@pytest.fixture
def store(path: Path) -> Iterator[ConversationStore]:
    with ConversationStore(path) as opened:
        yield opened


def python(code: str, *words: str | Path) -> str:
    """What a program prints that runs in another process, with `store`'s path as its first word."""
    done = subprocess.run([sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# What is said is there


def test_a_run_is_there_in_another_process(store: ConversationStore, path: Path) -> None:
    @tool
    def add(a: int, b: int) -> int:
        """Add."""
        return a + b

    talk = store.create(title="Sums")
    said = AssistantMessage("", "think", (ToolCall("call_1", "add", {"a": 1, "b": 2}),))
    Agent(ScriptedModel([said, "It is 3."]), tools=[add]).run_sync("1 + 2? \ud800", conversation=talk)
    code = "import sys\nfrom m1agent.store import ConversationStore\n"
    code += "with ConversationStore(sys.argv[1]) as store: print(ascii(store.open(sys.argv[2]).messages))"
    told = python(code, path, talk.id)
    assert told == ascii((UserMessage("1 + 2? \ufffd"), *talk.messages[1:]))
    assert store.open(talk.id).messages[1:] == talk.messages[1:]


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
def test_what_is_made_is_for_its_user_alone_and_what_is_there_keeps_its_mode(path: Path) -> None:
    def modes() -> dict[str, str]:
        found = (path, *path.parent.glob(f"{path.name}-*"), Path(f"{path}.locks"), *Path(f"{path}.locks").iterdir())
        return {one.name: f"{one.stat().st_mode & 0o777:o}" for one in found}

    before = os.umask(0o022)
    try:
        with ConversationStore(path) as store, store.create("talk").in_use():
            made = modes()
        path.chmod(0o640)
        Path(f"{path}.locks").chmod(0o750)
        Path(f"{path}.locks", "1.lock").chmod(0o640)
        with ConversationStore(path) as store, store.open("talk").in_use():
            kept = modes()
    finally:
        os.umask(before)
    log = {"talks.db-shm", "talks.db-wal"}
    assert made == dict.fromkeys({"talks.db", *log, "1.lock"}, "600") | {"talks.db.locks": "700"}
    assert kept == dict.fromkeys({"talks.db", *log, "1.lock"}, "640") | {"talks.db.locks": "750"}


def test_the_list_says_what_there_is(store: ConversationStore) -> None:
    assert store.list() == ()
    first, second = store.create("first", "One"), store.create()
    first.append(UserMessage("hi"))
    store.rename("first", "Uno")
    listed = store.list()
    assert [(info.id, info.title, info.messages) for info in listed] == [("first", "Uno", 1), (second.id, "", 0)]
    assert listed[0].created < listed[1].created <= listed[1].changed < listed[0].changed
    assert listed[0].created.utcoffset() is not None


def test_wrong_names_are_told(store: ConversationStore) -> None:
    store.create("there")
    with pytest.raises(StoreError, match=r"a conversation 'there' already; store\.open\('there'\)"):
        store.create("there")
    for method in (store.open, store.fork, store.history, store.delete, lambda id: store.rename(id, "")):
        with pytest.raises(ConversationNotFound, match="no conversation 'gone'"):
            method("gone")
    with pytest.raises(StoreError, match="must not be empty"):
        store.create("")
    with pytest.raises(StoreError, match="kept in memory"):
        ConversationStore(":memory:")


def test_a_closed_store_says_so(path: Path) -> None:
    with ConversationStore(path) as store:
        talk = store.create()
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.list()
    with pytest.raises(StoreError, match="closed"):
        talk.append(UserMessage("x"))


# Crashes


def test_what_was_noted_before_a_crash_is_kept(path: Path) -> None:
    with ConversationStore(path) as store:
        talk = store.create("talk")
        talk.append(UserMessage("go"))
        talk.append(CALLS)
        talk.note([None, SECOND])
    with ConversationStore(path) as store:
        found = store.open("talk").messages
        assert found[:2] == (UserMessage("go"), CALLS)
        assert found[2] == ToolMessage((ToolResult("1", "f", NOT_RUN, is_error=True), SECOND))
        assert store.open("talk").messages == found and len(store.history("talk")) == 1


def test_results_are_noted_one_after_the_other(path: Path) -> None:
    with ConversationStore(path) as store:
        talk = store.create("talk")
        talk.append(CALLS)
        talk.note([None, SECOND])
        talk.note([FIRST, SECOND])
    with ConversationStore(path) as store:
        talk = store.open("talk")
        assert talk.messages == (CALLS, ToolMessage((FIRST, SECOND)))
        talk.append(CALLS)
    with ConversationStore(path) as store:  # The notes of the first reply are not those of the second.
        last = store.open("talk").messages[-1]
        assert isinstance(last, ToolMessage) and all(result.content == NOT_RUN for result in last.results)


def test_calls_that_wait_for_an_answer_still_wait(path: Path) -> None:
    with ConversationStore(path) as store:
        talk = store.create("talk")
        talk.append(CALLS)
        talk.note([FIRST, None], ["2"])
    with ConversationStore(path) as store:
        talk = store.open("talk")
        assert talk.messages == (CALLS,)
        assert talk.waiting == CALLS.calls[1:] and talk.noted == (FIRST, None)
        fork = store.fork("talk")
        assert fork.waiting == CALLS.calls[1:] and fork.noted == (FIRST, None)
        talk.settle([FIRST, SECOND])
        assert store.open("talk").messages == (CALLS, ToolMessage((FIRST, SECOND)))


def test_calls_forgotten_beside_one_that_waits_are_answered(path: Path) -> None:
    with ConversationStore(path) as store:
        talk = store.create("talk")
        talk.append(CALLS)
        talk.note([None, None], ["2"])
    with ConversationStore(path) as store:
        talk = store.open("talk")
        assert talk.messages == (CALLS,) and talk.waiting == CALLS.calls[1:]
        assert talk.noted == (ToolResult("1", "f", NOT_RUN, is_error=True), None)
        assert store.open("talk").noted == talk.noted


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
def test_killed_at_every_statement_nothing_finished_is_lost(path: Path) -> None:
    places = subprocess.run(
        [sys.executable, KILLED, "everywhere", path], capture_output=True, text=True, timeout=170, check=False
    )
    assert places.returncode == 0, places.stderr
    assert int(places.stdout) > 30


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_killed_from_outside_at_random_points(path: Path) -> None:
    sys.path.insert(0, str(HERE))
    try:
        import killed_agent
    finally:
        sys.path.remove(str(HERE))
    dice = random.Random(3)
    with ConversationStore(path) as store:
        store.create("talk")
    told = ""
    for _ in range(6):
        with subprocess.Popen([sys.executable, KILLED, "live", path], stdout=subprocess.PIPE, text=True) as running:
            assert running.stdout is not None
            for _ in range(dice.randrange(1, 40)):
                told += running.stdout.readline()
            running.kill()
            told += running.stdout.read()
        told = told[: told.rfind("\n") + 1]
        with ConversationStore(path) as store:
            killed_agent.check(store.open("talk").messages, told)
    assert "result" in told
    with ConversationStore(path) as store:
        talk = store.open("talk")
        result = killed_agent.agent(path.parent).run_sync("Once more.", conversation=talk)
        assert result.stop == "done"
        killed_agent.check(store.open("talk").messages, told)


# One run at a time


def test_a_run_elsewhere_is_told_by_its_process(store: ConversationStore, path: Path) -> None:
    store.create("talk")
    code = """
import sys
from m1agent.store import ConversationStore
with ConversationStore(sys.argv[1]) as store, store.open("talk").in_use():
    print("holding", flush=True)
    sys.stdin.read()
"""
    talk = store.open("talk")
    holder = subprocess.Popen(
        [sys.executable, "-c", code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "holding\n"
        with pytest.raises(ConversationInUse, match=f"process {holder.pid} on "):
            Agent(ScriptedModel(["never"])).run_sync("Hi.", conversation=talk)
        with pytest.raises(ConversationInUse):
            store.delete("talk")
        assert store.open("talk").messages == ()  # Reading is always possible.
        holder.kill()
    result = Agent(ScriptedModel(["Hello."])).run_sync("Hi.", conversation=store.open("talk"))
    assert result.output == "Hello."


def test_two_objects_in_one_process_exclude_each_other(store: ConversationStore) -> None:
    first = store.create("talk")
    second = store.open("talk")
    with first.in_use():
        with pytest.raises(ConversationInUse), second.in_use():
            pass
        with pytest.raises(ConversationInUse):
            second.append(UserMessage("x"))
        first.append(UserMessage("mine"))
    assert store.open("talk").messages == (UserMessage("mine"),)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_does_not_keep_the_lock(store: ConversationStore) -> None:
    talk = store.create("talk")
    with talk.in_use():
        pipe = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(pipe[1])
            os.read(pipe[0], 1)
            os._exit(0)
    try:
        with store.open("talk").in_use():
            pass
    finally:
        os.close(pipe[1])
        os.close(pipe[0])
        os.waitpid(child, 0)


def test_what_others_added_is_never_written_over(store: ConversationStore) -> None:
    first = store.create("talk")
    second = store.open("talk")
    first.append(UserMessage("first"))
    with pytest.raises(ConversationChanged, match=r"open it again with store\.open\('talk'\)"), second.in_use():
        pass
    with pytest.raises(ConversationChanged):
        second.append(UserMessage("second"))
    with pytest.raises(ConversationChanged):  # It is no longer what the store holds, so nothing of it is written.
        second.append(UserMessage("third"))
    assert store.open("talk").messages == (UserMessage("first"),)


def test_many_threads_and_stores_write_at_once(path: Path) -> None:
    together = threading.Barrier(8)

    def work(name: str) -> tuple[Message, ...]:
        together.wait()
        with ConversationStore(path) as store:
            talk = store.create(name)
            for index in range(25):
                talk.append(UserMessage(f"{name} {index}"))
            return store.open(name).messages

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(work, [f"talk {index}" for index in range(8)]))
    for name, messages in enumerate(found):
        assert messages == tuple(UserMessage(f"talk {name} {index}") for index in range(25))


def test_processes_make_the_file_together(path: Path) -> None:
    code = """
import sys
from m1agent.store import ConversationStore
sys.stdin.readline()
with ConversationStore(sys.argv[1]) as store:
    store.create(sys.argv[2])
"""
    made = [
        subprocess.Popen([sys.executable, "-c", code, path, str(index)], stdin=subprocess.PIPE) for index in range(4)
    ]
    for process in made:
        assert process.stdin is not None
        process.stdin.close()
    assert [process.wait(60) for process in made] == [0] * 4
    with ConversationStore(path) as store:
        assert sorted(info.id for info in store.list()) == ["0", "1", "2", "3"]


def test_a_run_may_happen_in_another_thread(store: ConversationStore) -> None:
    talk = store.create()
    thread = threading.Thread(target=lambda: Agent(ScriptedModel(["Hello."])).run_sync("Hi.", conversation=talk))
    thread.start()
    thread.join()
    assert store.open(talk.id).messages == (UserMessage("Hi."), AssistantMessage("Hello."))


# Branches


def test_going_back_keeps_what_was(store: ConversationStore) -> None:
    talk = store.create("talk")
    said = [UserMessage(f"{index}") for index in range(4)]
    for message in said:
        talk.append(message)
    asyncio.run(talk.rewind(2))
    talk.append(UserMessage("other"))
    asyncio.run(talk.replace([SystemMessage("summary"), UserMessage("other")]))
    talk.append(UserMessage("end"))
    asyncio.run(talk.rewind(2))
    asyncio.run(talk.rewind(0))
    histories = [
        (0, tuple(said)),
        (2, (*said[:2], UserMessage("other"))),
        (0, (SystemMessage("summary"), UserMessage("other"), UserMessage("end"))),
        (2, (SystemMessage("summary"), UserMessage("other"))),
        (0, ()),
    ]
    assert [(branch.kept, branch.messages) for branch in store.history("talk")] == histories
    made = [branch.made for branch in store.history("talk")]
    assert made == sorted(made)
    assert store.open("talk").messages == talk.messages == ()


def test_going_back_a_thousand_times_stays_cheap_to_read(store: ConversationStore) -> None:
    talk = store.create("talk")
    talk.append(UserMessage("stays"))
    for index in range(1000):
        talk.append(UserMessage(f"{index}"))
        talk._become(talk.messages[:1])
    assert store.open("talk").messages == (UserMessage("stays"),)
    statements: list[str] = []
    store._database._sql.set_trace_callback(statements.append)
    store.open("talk")
    assert len(statements) < 10


def test_a_fork_goes_its_own_way(store: ConversationStore) -> None:
    talk = store.create("talk", "Title")
    for message in (UserMessage("a"), CALLS, ToolMessage((FIRST, SECOND)), AssistantMessage("b")):
        talk.append(message)
    fork = store.fork("talk", at=1)
    fork.append(UserMessage("fork"))
    talk.append(UserMessage("talk"))
    assert store.open(fork.id).messages == (UserMessage("a"), UserMessage("fork"))
    assert store.fork("talk").messages == talk.messages
    assert {info.title for info in store.list()} == {"Title"}
    with pytest.raises(ValueError, match="message 2 makes calls; fork at 1 or 3 instead"):
        store.fork("talk", at=2)
    with pytest.raises(ValueError, match="cannot fork at 9: conversation 'talk' has 5 messages"):
        store.fork("talk", at=9)
    store.delete("talk")
    assert store.open(fork.id).messages == (UserMessage("a"), UserMessage("fork"))


def test_what_is_deleted_is_gone_from_the_disk(store: ConversationStore, path: Path) -> None:
    kept = store.create("kept")
    kept.append(UserMessage("stays here"))
    talk = store.create("talk")
    for index in range(500):
        talk.append(UserMessage(f"very secret {index} " * 20))
    asyncio.run(talk.rewind(3))
    store._database.shrink()
    size = path.stat().st_size
    with talk.in_use():
        pass
    store.delete("talk")
    assert path.stat().st_size < size / 2
    assert not any(b"very secret" in file.read_bytes() for file in path.parent.rglob("*") if file.is_file())
    assert b"stays here" in path.read_bytes()
    with pytest.raises(ConversationChanged):
        talk.append(UserMessage("x"))
    assert store.create("talk").messages == ()


# The file


def test_files_that_are_no_store_are_left_alone(tmp_path: Path) -> None:
    text = tmp_path / "text.db"
    text.write_text("not a database, but long enough to be taken for one" * 100)
    with pytest.raises(StoreError, match="not a database"):
        ConversationStore(text)
    other = tmp_path / "other.db"
    with suppress(sqlite3.Error):
        connection = sqlite3.connect(other)
        connection.execute("CREATE TABLE things (x)")
        connection.close()
    with pytest.raises(StoreError, match="another program; give the store a file of its own"):
        ConversationStore(other)
    with pytest.raises(StoreError, match="unable to open"):
        ConversationStore(tmp_path / "missing" / "talks.db")


def test_a_newer_schema_is_refused_and_an_older_one_brought_up(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ConversationStore(path) as store:
        store.create("talk").append(UserMessage("kept"))
    newer = (*database.MIGRATIONS, "ALTER TABLE conversations ADD COLUMN colour TEXT; CREATE TABLE more (x)")
    with monkeypatch.context() as patch:
        patch.setattr(database, "MIGRATIONS", newer)
        with ConversationStore(path) as store:
            assert store.open("talk").messages == (UserMessage("kept"),)
            with store._database.reading() as sql:
                assert sql.execute("SELECT colour FROM conversations").fetchone() == (None,)
                assert sql.execute("SELECT count(*) FROM more").fetchone() == (0,)
    with pytest.raises(StoreError, match="has schema 2, and this m1agent knows 1: install a newer one"):
        ConversationStore(path)


def test_a_migration_that_fails_changes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ConversationStore(path).close()
    broken = (*database.MIGRATIONS, "CREATE TABLE half (x); CREATE TABLE half (x)")
    with monkeypatch.context() as patch:
        patch.setattr(database, "MIGRATIONS", broken)
        with pytest.raises(StoreError, match="already exists"):
            ConversationStore(path)
    with ConversationStore(path) as store, store._database.reading() as sql:
        assert sql.execute("SELECT count(*) FROM sqlite_master WHERE name = 'half'").fetchone() == (0,)


def test_a_full_disk_ends_the_run_and_loses_nothing_written(store: ConversationStore) -> None:
    talk = store.create("talk")
    talk.append(UserMessage("kept"))
    pages = store._database._sql.execute("PRAGMA page_count").fetchone()[0]
    store._database._sql.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StoreError, match=r"talks\.db failed: database or disk is full"):
        talk.append(UserMessage("x" * 100_000))
    store._database._sql.execute("PRAGMA max_page_count = 1000000")
    with pytest.raises(ConversationChanged):
        talk.append(UserMessage("after"))
    assert store.open("talk").messages == (UserMessage("kept"),)


def test_a_durable_store_waits_for_the_disk(path: Path) -> None:
    with ConversationStore(path, durable=True) as store:
        assert store._database._sql.execute("PRAGMA synchronous").fetchone() == (2,)
        store.create("talk").append(UserMessage("kept"))
        assert store.open("talk").messages == (UserMessage("kept"),)

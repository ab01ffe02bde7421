"""`examples/chatbot.py` as a program: driven through a pipe, killed, and started again."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from m1agent import ConversationStore
from m1agent.messages import AssistantMessage, ToolCall, ToolMessage
from m1agent.models.scripted import ScriptedModel

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
PROGRAM = EXAMPLES / "chatbot.py"
SECRETS = ("BRAVE_API_KEY", "SEARXNG_URL")
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in SECRETS} | {
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
}


@pytest.fixture(autouse=True)
def _examples_are_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))


@pytest.fixture
def model(served: tuple[str, ScriptedModel]) -> ScriptedModel:
    return served[1]


@pytest.fixture
def name(served: tuple[str, ScriptedModel]) -> str:
    """What the scripted model goes by."""
    return served[0]


def call(name: str, **arguments: Any) -> AssistantMessage:
    return AssistantMessage(calls=(ToolCall("", name, arguments),))


def words(data: Path, *more: object) -> list[str]:
    return [sys.executable, str(PROGRAM), "--data", str(data), *map(str, more)]


def talk(data: Path, lines: str, *more: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words(data, *more), input=lines, capture_output=True, text=True, cwd=data, env=ENVIRONMENT, timeout=120
    )


def until(process: subprocess.Popen[str], mark: str) -> str:
    """What it prints up to the line with a mark."""
    assert process.stdout is not None
    shown = ""
    while mark not in shown:
        line = process.stdout.readline()
        assert line, shown
        shown += line
    return shown


def test_m1_nano_answers_with_the_maths_tool(tmp_path: Path) -> None:
    lines = "What is the derivative of 3x^2 + 2x - 1?\nSolve x^2 - 5x + 6 = 0.\n"
    done = talk(tmp_path, lines)
    assert done.returncode == 0, done.stderr
    assert 'calculate_math {"expression": "3x^2 + 2x - 1", "operation": "derivative"}' in done.stdout
    assert "answer:   The derivative of 3x^2 + 2x - 1 is 6x + 2." in done.stdout
    assert 'calculate_math {"expression": "x^2 - 5x + 6 = 0", "operation": "solve"}' in done.stdout
    assert "m1-nano is given maths alone" in done.stderr and "Traceback" not in done.stderr
    assert "main  " in talk(tmp_path, "", "--list").stdout


def test_killed_between_turns_a_session_goes_on(tmp_path: Path, model: ScriptedModel, name: str) -> None:
    model.extend([call("calculate_math", expression="2 + 3", operation="add"), "It is 5."])
    options = ("--model", name, "--session", "sums")
    command = words(tmp_path, *options)
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tmp_path, env=ENVIRONMENT
    ) as process:
        assert process.stdin is not None
        process.stdin.write("What is 2 + 3?\n")
        process.stdin.flush()
        shown = until(process, "cost:")
        process.send_signal(signal.SIGKILL)
    assert "answer:   It is 5." in shown and process.returncode == -signal.SIGKILL

    before = model.requests[-1].messages
    model.extend([call("calculate_math", expression="5 * 2", operation="multiply"), "That is 10."])
    done = talk(tmp_path, "Twice that?\n/history\n", *options)
    assert "session sums goes on after turn 1" in done.stderr
    assert "answer:   That is 10." in done.stdout and "1. What is 2 + 3?" in done.stdout
    first, last = model.requests[-2].messages, model.requests[-1].messages
    assert first[: len(before)] == before and last[: len(first)] == first, "what was said is said again as it was"
    with ConversationStore(tmp_path / "chats.db") as store:
        messages = store.open("sums").messages
        assert [info.id for info in store.list()] == ["sums"]
    made = [one.id for message in messages if isinstance(message, AssistantMessage) for one in message.calls]
    answered = [one.call_id for message in messages if isinstance(message, ToolMessage) for one in message.results]
    assert len(set(made)) == 2 and made == answered, "ids of calls go on where they were"


def test_killed_within_a_turn_what_was_done_is_there(tmp_path: Path, model: ScriptedModel, name: str) -> None:
    held = threading.Event()

    async def never(messages: Any) -> str:
        held.set()
        await asyncio.sleep(60)
        return ""

    model.extend([call("calculate_math", expression="2 + 3", operation="add"), never])
    command = words(tmp_path, "--model", name, "--session", "sums")
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, cwd=tmp_path, env=ENVIRONMENT
    ) as process:
        assert process.stdin is not None
        process.stdin.write("What is 2 + 3?\n")
        process.stdin.flush()
        assert held.wait(60)
        process.send_signal(signal.SIGKILL)
    model.extend(["It was 5."])
    done = talk(tmp_path, "Well?\n", "--model", name, "--session", "sums")
    assert "answer:   It was 5." in done.stdout, done.stderr
    assert [result.content for result in model.requests[-1].messages[2].results] == ["5"]


@pytest.fixture
def searxng() -> Iterator[tuple[str, list[str]]]:
    """A stand-in for SearXNG, and what it was asked."""
    asked = list[str]()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            query = parse_qs(urlsplit(self.path).query)
            asked.extend(query["q"])
            assert self.path.startswith("/search?") and query["format"] == ["json"]
            hit = {"title": "On herons", "url": "https://birds.example/heron", "content": "Grey, and patient."}
            body = json.dumps({"results": [hit]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
        server.shutdown()
        thread.join()


def test_search_documents_code_and_notes(
    tmp_path: Path, model: ScriptedModel, name: str, searxng: tuple[str, list[str]]
) -> None:
    papers = tmp_path / "papers"
    papers.mkdir()
    (papers / "birds.md").write_text("# Birds\n\nA heron stands still.\n")
    model.extend(
        [
            call("search_web", query="herons"),
            call("read_document", path="birds.md"),
            call("remember", text="The user likes herons."),
            call("fetch_page", url="https://birds.example/heron"),
            "Herons are patient.",
            call("remember", text="The user likes herons."),
            call("recall", query="herons"),
            call("run_python", code="print(6 * 7, 'herons')"),
            "Noted.",
        ]
    )
    options = ("--model", name, "--searxng", searxng[0], "--documents", papers)
    done = talk(tmp_path, "What of herons?\n", *options)
    assert "no web search" not in done.stderr and searxng[1] == ["herons"]
    assert "https://birds.example/heron" in done.stdout and "A heron stands still." in done.stdout
    refusals = str(model.requests[-1].messages).split("This call was not allowed. ")[1:]
    assert len(refusals) == 2 and all(one.startswith("Nobody is there to be asked") for one in refusals)
    done = talk(tmp_path, "Note it.\n", *options, "--allow", "remember,run_python", "--session", "other")
    model.assert_complete()
    assert "): The user likes herons." in done.stdout and "result:   42 herons" in done.stdout


def test_without_a_search_engine_one_line_says_so(tmp_path: Path, model: ScriptedModel, name: str) -> None:
    model.extend(["Hello."])
    done = talk(tmp_path, "/tools\nHello?\n", "--model", name)
    assert [line for line in done.stderr.splitlines() if "search" in line] == [
        "chatbot: no web search: it needs --searxng URL, or BRAVE_API_KEY or SEARXNG_URL in the environment"
    ]
    assert "search_web" not in done.stdout and "fetch_page: " in done.stdout and "run_python: " in done.stdout
    assert "read_document" not in done.stdout


def test_at_a_terminal_a_person_is_asked(tmp_path: Path, model: ScriptedModel, name: str) -> None:
    model.extend([call("remember", text="Tea without milk."), "I will."])
    leader, follower = pty.openpty()
    command = words(tmp_path, "--model", name, "--tools", "memory")
    pipes: dict[str, Any] = {"stdin": follower, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, text=True, cwd=tmp_path, env=ENVIRONMENT) as process:
        os.close(follower)
        os.write(leader, b"I take no milk.\n")
        shown = until(process, "allow remember")
        os.write(leader, b"y\n/quit\n")
        rest = process.communicate(timeout=60)[0]
    os.close(leader)
    assert '{"text": "Tea without milk."}' in shown and "answer:   I will." in rest
    assert "This is note" not in rest and "not allowed" not in rest


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--tools", "maths,telepathy"), "--tools: expected some of web, maths, python, memory, documents"),
        (("--tools", "documents"), "--documents FOLDER says it"),
        (("--tools", "maths", "--allow", "remember"), "--allow: expected some of calculate_math, got 'remember'"),
        (("--tools", "documents", "--documents", "nosuch"), "nosuch is no folder"),
        (("--model", "nosuch"), "there is no model 'nosuch'"),
    ],
)
def test_bad_options_are_told_in_a_line(tmp_path: Path, more: tuple[str, ...], says: str) -> None:
    done = talk(tmp_path, "", *more)
    assert done.returncode == 1 and "chatbot: " in done.stderr and says in done.stderr
    assert "Traceback" not in done.stderr


def test_its_parts_can_be_imported(tmp_path: Path) -> None:
    chatbot = importlib.import_module("chatbot")
    agent = chatbot.chatbot(ScriptedModel(["Hello."]), chatbot.toolsets(["maths"], tmp_path))
    with ConversationStore(tmp_path / "chats.db") as store:
        assert agent.run_sync("Hello?", conversation=chatbot.session(store, "one")).output == "Hello."
        assert len(chatbot.session(store, "one")) == 2
        assert chatbot.sessions(store)[0].startswith("one  ")

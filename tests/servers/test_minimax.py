"""MiniMax's own MCP server in an environment of its own, against a stand-in of MiniMax's HTTP service.

Version 0.0.19 lists eight tools; the ninth, `music_generation`, is 0.0.18's, which runs on the 1.x line of the mcp SDK.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from m1agent import Agent
from m1agent.mcp.config import StdioServer
from m1agent.mcp.hub import McpHub
from m1agent.messages import AssistantMessage, ToolCall
from m1agent.models.scripted import ScriptedModel
from m1agent.tools import Tool

KEY = "sk-api-0123456789abcdef"
SOUND, PICTURE, FILM, DEMO = b"ID3 sound", b"\xff\xd8\xff picture", b"\0\0\0\x18ftyp film", b"RIFF demo"
FILES = {"/files/picture-0": PICTURE, "/files/picture-1": PICTURE, "/files/film": FILM, "/files/demo": DEMO}
TOOLS = {
    "text_to_audio",
    "list_voices",
    "voice_clone",
    "play_audio",
    "generate_video",
    "query_video_generation",
    "text_to_image",
    "voice_design",
}
VERSIONS = {"0.0.18": TOOLS | {"music_generation"}, "0.0.19": TOOLS}


class Service:
    """MiniMax's service, as far as its MCP server uses it."""

    def __init__(self) -> None:
        self.url = ""
        self.voices: list[str] = []
        self.uploads: list[bytes] = []
        self.asked_for_video = 0

    def respond(self, request: Any) -> tuple[int, str, bytes]:
        path = request.path.partition("?")[0]
        if path in FILES:
            return 200, "application/octet-stream", FILES[path]
        given = request.headers.get("Authorization", "")
        if given != f"Bearer {KEY}":
            return _json({}, 1004, f"login fail: {given.removeprefix('Bearer ')} is no API key")
        answer = getattr(self, "do_" + path.removeprefix("/v1/").replace("/", "_"), None)
        return _json(answer(request)) if answer else (404, "text/plain", b"no such path")

    def do_t2a_v2(self, request: Any) -> dict[str, Any]:
        asked = request.json()
        by_address = asked.get("output_format") == "url"
        return {"data": {"audio": f"{self.url}/files/demo" if by_address else SOUND.hex()}}

    def do_get_voice(self, request: Any) -> dict[str, Any]:
        known = [{"voice_id": "Charming_Lady", "voice_name": "Charming"}]
        return {"system_voice": known, "voice_cloning": [{"voice_id": v, "voice_name": v} for v in self.voices]}

    def do_files_upload(self, request: Any) -> dict[str, Any]:
        assert request.headers.get_content_type() == "multipart/form-data" and b"voice_clone" in request.body
        self.uploads.append(request.body)
        return {"file": {"file_id": len(self.uploads)}}

    def do_voice_clone(self, request: Any) -> dict[str, Any]:
        asked = request.json()
        assert asked["file_id"] == len(self.uploads)
        self.voices.append(asked["voice_id"])
        return {"demo_audio": f"{self.url}/files/demo"}

    def do_video_generation(self, request: Any) -> dict[str, Any]:
        return {"task_id": "slow-task" if "slow" in request.json()["prompt"] else "task"}

    def do_query_video_generation(self, request: Any) -> dict[str, Any]:
        slow = "task_id=slow-task" in request.path
        self.asked_for_video += slow
        return {"status": "Processing"} if slow and self.asked_for_video == 1 else {"status": "Success", "file_id": "7"}

    def do_files_retrieve(self, request: Any) -> dict[str, Any]:
        assert request.path.endswith("?file_id=7")
        return {"file": {"download_url": f"{self.url}/files/film"}}

    def do_image_generation(self, request: Any) -> dict[str, Any]:
        return {"data": {"image_urls": [f"{self.url}/files/picture-{i}" for i in range(request.json()["n"])]}}

    def do_voice_design(self, request: Any) -> dict[str, Any]:
        return {"voice_id": "designed", "trial_audio": SOUND.hex()}

    do_music_generation = do_t2a_v2


def _json(content: dict[str, Any], code: int = 0, told: str = "success") -> tuple[int, str, bytes]:
    base = {"base_resp": {"status_code": code, "status_msg": told}}
    return 200, "application/json", json.dumps(base | content).encode()


@pytest.fixture
def service(serve: Callable[..., Any]) -> Service:
    service = Service()
    service.url = serve(service.respond).url
    return service


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def configured(minimax: Callable[..., StdioServer], service: Service, tmp_path: Path) -> Callable[..., StdioServer]:
    def make(version: str, **env: str) -> StdioServer:
        known = {
            "MINIMAX_API_KEY": KEY,
            "MINIMAX_API_HOST": service.url,
            "MINIMAX_MCP_BASE_PATH": str(tmp_path),
            "MINIMAX_API_RESOURCE_MODE": "local",
        }
        return minimax(version, **known | env)

    return make


def test_what_is_listed_behind_a_banner(
    version: str, configured: Callable[..., StdioServer], connected: Callable[..., Any]
) -> None:
    async def use(hub: McpHub, tools: dict[str, Tool]) -> None:
        assert hub.status[0].left_out == ()
        assert set(tools) == {f"minimax__{name}" for name in VERSIONS[version]}
        assert "Charming_Lady" in await tools["minimax__list_voices"].call({})

    # Unbuffered, its "Starting Minimax MCP server" comes before the first message, on the same stdout.
    connected(use, configured(version, PYTHONUNBUFFERED="1"))


def test_pictures_sound_films_and_voices_are_made(
    version: str, configured: Callable[..., StdioServer], ask: Callable[..., Any], service: Service, tmp_path: Path
) -> None:
    out, sample = tmp_path / "out", tmp_path / "sample.mp3"
    sample.write_bytes(b"my own voice")
    player = tmp_path / "bin" / "ffplay"
    player.parent.mkdir()
    player.write_text(f"#!/bin/sh\ncat > {tmp_path}/played\n")
    player.chmod(0o755)
    there = {"output_directory": str(out)}
    clone = {"voice_id": "mine", "file": str(sample), "text": "Hello from me", **there}
    calls = [
        ("minimax__text_to_image", {"prompt": "an owl", "n": 2, **there}),
        ("minimax__text_to_audio", {"text": "Hello there", "voice_id": "Charming_Lady", "speed": 1.5, **there}),
        ("minimax__generate_video", {"prompt": "an owl flies", **there}),
        ("minimax__voice_clone", clone),
        ("minimax__list_voices", {"voice_type": "voice_cloning"}),
        ("minimax__voice_design", {"prompt": "a calm voice", "preview_text": "Good night", **there}),
        ("minimax__generate_video", {"prompt": "slow owl", "async_mode": True}),
        ("minimax__query_video_generation", {"task_id": "slow-task"}),
        ("minimax__query_video_generation", {"task_id": "slow-task", **there}),
        ("minimax__play_audio", {"input_file_path": str(sample)}),
    ]
    if version == "0.0.18":
        calls.append(("minimax__music_generation", {"prompt": "calm piano", "lyrics": "la la", **there}))
    told = ask(configured(version, PATH=f"{player.parent}:/usr/bin:/bin"), *calls)
    assert [result.content for result in told if result.is_error or "Failed" in result.content] == []
    written = sorted((path.name.split("_")[0], path.suffix, path.read_bytes()) for path in out.iterdir())
    expected = [
        ("image", ".jpg", PICTURE),
        ("image", ".jpg", PICTURE),
        ("t2a", ".mp3", SOUND),
        ("video", ".mp4", FILM),
        ("video", ".mp4", FILM),
        ("voice", ".mp3", SOUND),
        ("voice", ".wav", DEMO),
    ]
    assert written == sorted(expected + ([("music", ".mp3", SOUND)] if version == "0.0.18" else []))
    assert all(str(next(out.glob(f"{kind}*"))) in told[index].content for index, kind in enumerate(("image", "t2a")))
    assert "mine" in told[4].content and service.voices == ["mine"] and b"my own voice" in service.uploads[0]
    assert "slow-task" in told[6].content and "still processing" in told[7].content and "saved" in told[8].content
    assert (tmp_path / "played").read_bytes() == b"my own voice"


def test_addresses_instead_of_files(
    configured: Callable[..., StdioServer], ask: Callable[..., Any], service: Service, tmp_path: Path
) -> None:
    (told,) = ask(
        configured("0.0.19", MINIMAX_API_RESOURCE_MODE="url"), ("minimax__text_to_audio", {"text": "Hello there"})
    )
    assert f"{service.url}/files/demo" in told.content and list(tmp_path.iterdir()) == []


def test_the_key_is_never_shown(
    version: str, configured: Callable[..., StdioServer], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """The service repeats a wrong key in its answer, and the server passes it on as text of a result, not an error."""
    wrong = KEY.replace("0123", "9999")
    caplog.set_level(logging.DEBUG)
    calls = tuple(ToolCall("x", f"minimax__{name}", {}) for name in ("list_voices", "play_audio"))
    config = configured(version, MINIMAX_API_KEY=wrong)
    model = ScriptedModel([AssistantMessage(calls=calls), "Done."])
    agent = Agent(model, mcp=[config])
    result = agent.run_sync("Go.")
    assert result.stop == "done" and "login fail" in result.calls[0].result.content
    shown = [repr(config), repr(agent.servers), repr(result), repr(model.requests), caplog.text]
    assert [text for text in shown if wrong in text] == []


def test_a_server_that_cannot_start_says_why(configured: Callable[..., StdioServer]) -> None:
    config = configured("0.0.19", MINIMAX_API_HOST="")
    agent = Agent(ScriptedModel(["Without it."]), mcp=[config])
    assert agent.run_sync("Go.").stop == "done"
    (status,) = agent.servers
    assert status.state == "failed" and status.reason.endswith("MINIMAX_API_HOST environment variable is required")
    assert KEY not in repr(status)

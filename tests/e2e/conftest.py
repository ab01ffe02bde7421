"""What tests of whole programs share."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from m1agent.models.scripted import ScriptedModel
from m1agent.serve import ServeConfig, Server


@pytest.fixture
def served() -> Iterator[tuple[str, ScriptedModel]]:
    """A scripted model behind this project's own server: what it goes by, and itself."""
    model = ScriptedModel([])
    ready, address = threading.Event(), list[str]()
    server = Server(model, ServeConfig(port=0))

    def told(url: str) -> None:
        address.append(url)
        ready.set()

    thread = threading.Thread(target=lambda: asyncio.run(server.run(told)), daemon=True)
    thread.start()
    assert ready.wait(60)
    yield f"openai:scripted@{address[0]}/v1", model
    server.stop()
    thread.join(30)

"""Small checkpoints, all with M1's special tokens: one of random weights, and those that say what they are told to."""

from __future__ import annotations

import importlib.util
import json
import shutil
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import pytest


@pytest.fixture(scope="session")
def small() -> Any:
    """How the runtime's tests write small checkpoints."""
    path = Path(__file__).parents[1] / "runtime" / "conftest.py"
    spec = importlib.util.spec_from_file_location("small_checkpoints", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory, small: Any) -> Path:
    made: Path = small.write_checkpoint(
        tmp_path_factory.mktemp("model"), *small.random_checkpoint(seed=4, vocab_size=288)
    )
    (made / "tokenizer.json").write_text(small.small_tokenizer())
    (made / "tokenizer_config.json").write_text('{"eos_token": "<end_of_sentence>"}')
    return made


Follow: TypeAlias = Mapping[str, Sequence[str]]
Chain: TypeAlias = Callable[[Path, Follow], Path]
BEGUN = "ai name=assistant\n"
END = "<end_of_sentence>"


@pytest.fixture(scope="session")
def chain(small: Any) -> Chain:
    """Writes a checkpoint, with the tokenizer of m1-nano, in which the last token alone says what comes next.

    `follow`: the tokens that may come after a token, the likeliest first; after any other, "a" for ever. A reply
    begins after BEGUN. Only the last token reaches the head: every output projection is zero and embeddings
    are unit vectors.
    """
    import torch

    from m1runtime import Tokenizer
    from m1runtime.engine import BUNDLED

    nano, size = BUNDLED["m1-nano"], 640
    tokenizer = Tokenizer.from_file(nano / "tokenizer.json")

    def last(text: str) -> int:
        ids = [tokenizer.special_ids[text]] if text in tokenizer.special_ids else tokenizer.encode(text, special=False)
        assert len(ids) == 1 or text == BEGUN, f"{text!r} is {len(ids)} tokens"
        return ids[-1]

    def write(folder: Path, follow: Follow) -> Path:
        shape = {"hidden_size": size, "num_hidden_layers": 2, "attn_type_list": [0, 1], "vocab_size": size}
        config, tensors = small.random_checkpoint(**shape, intermediate_size=8, num_local_experts=2)
        for name, tensor in tensors.items():
            if name.endswith(("o_proj.weight", "out_proj.weight", "w2.weight")):
                tensor.zero_()
            elif "norm" in name:
                tensor.fill_(1.0)
        tensors["model.embed_tokens.weight"] = torch.eye(size)
        tensors["lm_head.weight"].zero_()
        after = {last(token): [last(text) for text in texts] for token, texts in follow.items()}
        for token in range(size):
            for rank, text in enumerate(after.get(token, [last("a")])):
                tensors["lm_head.weight"][text, token] = 1.0 - rank / 10
        made: Path = small.write_checkpoint(folder, config, tensors)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(nano / name, made / name)
        return made

    return write


@pytest.fixture(scope="session")
def thinker(tmp_path_factory: pytest.TempPathFactory, chain: Chain) -> Path:
    """A reply begins to think and never ends to by itself; where the thinking was closed for it, it says "ok"."""
    follow = {BEGUN: ["<think>\n"], "</think>\n": ["ok"], "ok": [END]}
    return chain(tmp_path_factory.mktemp("thinker"), follow)


@dataclass
class Answer:
    """What a stand-in server answers: its body in the pieces it is sent in. `broken` ends it by closing the connection;
    `held` is waited for before the last piece."""

    pieces: Sequence[bytes]
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=lambda: {"content-type": "text/event-stream"})
    broken: bool = False
    held: threading.Event | None = None


class StandIn:
    """A server that answers chat requests with what it was told to, and writes down what it was asked."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}/v1"
        self.answers: list[Answer] = []
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.models: Any = {"object": "list", "data": [{"id": "stand-in", "object": "model"}]}
        self.gone = threading.Event()

    def say(self, *payloads: Any, every_byte: bool = False, **options: Any) -> None:
        """Add an answer: a stream of these payloads (texts as they are, else JSON)."""
        text = "".join(f"data: {one if isinstance(one, str) else json.dumps(one)}\n\n" for one in payloads)
        self.send(text.encode(), every_byte=every_byte, **options)

    def send(self, body: bytes, *, every_byte: bool = False, **options: Any) -> None:
        """Add an answer of these bytes."""
        pieces = [body[i : i + 1] for i in range(len(body))] if every_byte else [body]
        self.answers.append(Answer(pieces, **options))

    def refuse(self, status: int, value: Any, **headers: str) -> None:
        """Add an error."""
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        kind = {"content-type": "text/html" if isinstance(value, bytes) else "application/json"}
        self.answers.append(Answer([body], status, kind | {k.replace("_", "-"): v for k, v in headers.items()}))

    async def chat(self, request: Any) -> Any:
        from starlette.responses import JSONResponse, StreamingResponse

        self.headers.append(dict(request.headers))
        self.requests.append(await request.json())
        if not self.answers:
            return JSONResponse({"error": {"message": "nothing left to say"}}, 400)
        answer = self.answers.pop(0)
        return StreamingResponse(self._body(answer), answer.status, answer.headers)

    async def _body(self, answer: Answer) -> AsyncIterator[bytes]:
        import anyio

        try:
            for index, piece in enumerate(answer.pieces):
                if answer.held is not None and index == len(answer.pieces) - 1:
                    while not answer.held.is_set():  # noqa: ASYNC110 - set by another thread
                        await anyio.sleep(0.01)
                yield piece
            if answer.broken:
                raise ConnectionAbortedError
        except BaseException:
            self.gone.set()
            raise

    async def list(self, request: Any) -> Any:
        from starlette.responses import JSONResponse

        return JSONResponse(self.models, 404 if self.models is None else 200)


@pytest.fixture
def stand_in() -> Iterator[StandIn]:
    """A stand-in server on a port of its own, in a thread."""
    import socket

    import uvicorn
    from starlette.applications import Starlette
    from starlette.routing import Route

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        made = StandIn(listening.getsockname()[1])
        routes = [Route("/v1/chat/completions", made.chat, methods=["POST"]), Route("/v1/models", made.list)]
        config = uvicorn.Config(Starlette(routes=routes), log_level=100, lifespan="off", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.005)
        yield made
        server.should_exit = True
        thread.join(10)


@dataclass
class Served:
    """A server of this process, and a client of it."""

    url: str
    client: Any
    server: Any
    thread: threading.Thread

    def chat(self, **body: Any) -> Any:
        """The response to a chat request; what is not given is the shortest that will do."""
        given = {"model": self.name, "messages": [{"role": "user", "content": "Hi"}], **body}
        return self.client.post("/v1/chat/completions", json=given)

    def chunks(self, **body: Any) -> list[dict[str, Any]]:
        """The chunks of a streamed chat request, which ends with [DONE]."""
        lines = [line for line in self.chat(stream=True, **body).text.split("\n\n") if line]
        assert lines[-1] == "data: [DONE]", lines[-1]
        return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]

    @property
    def name(self) -> str:
        return self.client.get("/v1/models").json()["data"][0]["id"]

    def stop(self) -> None:
        self.server.stop()
        self.thread.join(20)
        assert not self.thread.is_alive()
        self.client.close()


@pytest.fixture
def serving() -> Iterator[Callable[..., Served]]:
    """Serves a model on a free port, with the given fields of `ServeConfig`; `key` is what the client shows."""
    import asyncio
    import queue

    import httpx2

    from m1agent.serve import ServeConfig, Server

    running: list[Served] = []

    def start(model: Any, *, key: str | None = None, **config: Any) -> Served:
        server, addresses = Server(model, ServeConfig(port=0, **config)), queue.Queue[str]()
        thread = threading.Thread(target=lambda: asyncio.run(server.run(addresses.put)), daemon=True)
        thread.start()
        url = addresses.get(timeout=60)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        running.append(Served(url, httpx2.Client(base_url=url, timeout=60, headers=headers), server, thread))
        return running[-1]

    yield start
    for one in running:
        one.stop()

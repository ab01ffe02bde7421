"""Running the application: an address, a drain, an end."""

from __future__ import annotations

import math
import socket
from collections.abc import Callable

import uvicorn

from m1agent.errors import ServeError
from m1agent.models.base import Model
from m1agent.serve.app import App
from m1agent.serve.config import ServeConfig
from m1agent.serve.protocol import bounded

BACKLOG = 1024
SPARE_CONNECTIONS = 256
"""Connections beside those whose requests run or wait."""


class Server:
    """A model at an address. `run` serves until `stop`, SIGTERM or SIGINT, and then lets what it has begun end."""

    def __init__(self, model: Model, config: ServeConfig | None = None) -> None:
        self._model = model
        self._config = config or ServeConfig()
        self._uvicorn: uvicorn.Server | None = None

    async def run(self, ready: Callable[[str], None] | None = None) -> None:
        """Load the model, serve, drain, and close the model. `ready` is told the address when it can be used.

        Raises:
            ServeError: the address cannot be used.
            ModelError: the model cannot be loaded.
        """
        config = self._config
        try:
            if (load := getattr(self._model, "load", None)) is not None:
                await load()
            app = App(self._model, config)
            with _listening(config.host, config.port) as listener:
                self._uvicorn = uvicorn.Server(self._settings(app))
                if ready is not None:
                    host = f"[{config.host}]" if ":" in config.host else config.host
                    ready(f"http://{host}:{listener.getsockname()[1]}")
                try:
                    await self._uvicorn.serve(sockets=[listener])
                finally:
                    await app.aclose()
        finally:
            await self._model.aclose()

    def stop(self) -> None:
        """Take no more requests, and end when those that were taken have ended; from any thread."""
        if self._uvicorn is not None:
            self._uvicorn.should_exit = True

    def _settings(self, app: App) -> uvicorn.Config:
        config = self._config
        return uvicorn.Config(
            app,
            http=bounded(
                config.header_seconds, config.write_seconds, config.running + config.waiting + SPARE_CONNECTIONS
            ),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,  # Its lines hold query strings.
            server_header=False,
            timeout_keep_alive=60,
            timeout_graceful_shutdown=math.ceil(config.drain_seconds),
        )


async def serve(model: Model, config: ServeConfig | None = None, ready: Callable[[str], None] | None = None) -> None:
    """Serve a model until SIGTERM or SIGINT: `await serve(load_model("m1-nano"), ServeConfig(port=8080))`."""
    await Server(model, config).run(ready)


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise ServeError(f"cannot listen on {host}:{port}: {error.strerror or error}; give another --port") from error

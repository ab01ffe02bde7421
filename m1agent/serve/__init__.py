"""An OpenAI-compatible HTTP server for any `Model`: `m1agent serve`, or `serve(model)` from a program."""

from m1agent.serve.config import ServeConfig, read_keys
from m1agent.serve.server import Server, serve

__all__ = ["ServeConfig", "Server", "read_keys", "serve"]

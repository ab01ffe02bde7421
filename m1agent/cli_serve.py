"""`m1agent serve`: a model behind HTTP, for clients of OpenAI's API."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys
from contextlib import suppress
from typing import Any

EXIT_DONE = 0
HELP = """\
Serve a model over HTTP, for clients of OpenAI's chat and completion requests.

  m1agent serve
  M1AGENT_API_KEY=... m1agent serve /models/MiniMax-M1 --host 0.0.0.0 --port 8000
"""
EPILOG = """\
API keys come from the environment (M1AGENT_API_KEY) or from --api-key-file, never from the command line, which other
users of the machine can read. SIGTERM takes no more requests and lets those that were taken end. At the address itself
is a page to chat with.
"""


def add_serve(commands: Any) -> None:
    """Add `serve` to the parser."""
    serve: argparse.ArgumentParser = commands.add_parser(
        "serve",
        help="serve a model over HTTP",
        description=HELP,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    serve.add_argument("model", nargs="?", default="m1-nano", help="a model, as for --model (default: m1-nano)")
    serve.add_argument("--name", help="what requests call the model (default: its own name)")
    serve.add_argument("--host", default="127.0.0.1", help="the address to listen on (default: 127.0.0.1)")
    serve.add_argument("--port", type=int, default=8000, help="0 takes a free one (default: 8000)")
    serve.add_argument("--api-key-file", metavar="FILE", help="a file of API keys, one a line")
    serve.add_argument("--insecure", action="store_true", help="let others reach it without a key")
    serve.add_argument("--running", type=int, metavar="N", help="requests answered at a time (default: 32)")
    serve.add_argument("--waiting", type=int, metavar="N", help="requests that wait; more get 429 (default: 256)")
    serve.add_argument("--rate", type=int, metavar="N", help="requests a minute of each key, or address")
    serve.add_argument("--max-body", type=int, metavar="BYTES", dest="body_bytes", help="of a request (default: 8 MiB)")
    serve.add_argument("--max-tokens", type=int, metavar="N", dest="tokens", help="of a reply, whatever is asked for")
    serve.add_argument("--max-choices", type=int, metavar="N", dest="choices", help="n of a request (default: 16)")
    serve.add_argument("--sessions", type=int, metavar="N", help="conversations kept to go on with (default: 32)")
    serve.add_argument("--drain", type=float, metavar="SECONDS", dest="drain_seconds", help="to end in (default: 30)")
    engine = serve.add_argument_group("how a checkpoint is run here")
    engine.add_argument("--quantization", metavar="KIND", help="int8, int4, int8-experts or int4-experts")
    engine.add_argument("--compile", action="store_true", default=None, help="compile decoding (CPU; needs g++)")
    engine.add_argument("--tensor-parallel", type=int, metavar="N", help="processes, or GPUs, that share the model")
    engine.add_argument("--device", metavar="NAME", help="cpu or cuda (default: cuda where there is one)")
    engine.add_argument("--cache-memory", type=_gib, metavar="GIB", help="for sessions and what they share")
    engine.add_argument("--cold", metavar="FOLDER", help="keep what falls out of that memory here, over restarts, too")
    serve.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default="info")
    serve.set_defaults(command=serve_model)


def serve_model(given: argparse.Namespace) -> int:
    """`m1agent serve`."""
    from m1agent.errors import ServeError

    try:
        from m1agent.serve import ServeConfig, read_keys, serve
    except ModuleNotFoundError as error:
        raise ServeError(f"m1agent serve needs {error.name}: pip install 'm1agent[serve]'") from error

    names = ("running", "waiting", "rate", "body_bytes", "tokens", "choices", "sessions", "drain_seconds")
    config = ServeConfig(
        host=given.host,
        port=given.port,
        keys=read_keys(given.api_key_file),
        insecure=given.insecure,
        name=given.name,
        **{name: getattr(given, name) for name in names if getattr(given, name) is not None},
    )
    level = getattr(logging, given.log_level.upper())
    logging.basicConfig(level=max(level, logging.WARNING), stream=sys.stderr, format="%(levelname)s %(message)s")
    logging.getLogger("m1agent.serve").setLevel(level)
    # After its drain uvicorn raises the signal again; the drain was the answer to it.
    with suppress(ValueError):  # Not the main thread.
        signal.signal(signal.SIGTERM, _drained)
    asyncio.run(serve(_model(given), config, _tell))
    return EXIT_DONE


def _model(given: argparse.Namespace) -> Any:
    from m1agent.errors import UsageError
    from m1agent.models import load_model
    from m1agent.models.local import LocalModel

    names = ("quantization", "compile", "tensor_parallel", "device", "cache_memory", "cold")
    options = {name: value for name in names if (value := getattr(given, name)) is not None}
    model = load_model(given.model)
    if not options:
        return model
    if not isinstance(model, LocalModel):
        first = next(iter(options)).replace("_", "-")
        raise UsageError(f"--{first} is for a checkpoint that is run here, and '{given.model}' is not")
    return LocalModel(given.model, engine=options)


def _gib(text: str) -> int:
    try:
        count = int(float(text) * 2**30)
    except (ValueError, OverflowError):
        count = 0
    if count < 1:
        raise argparse.ArgumentTypeError(f"must be a number of GiB such as 20 or 0.5, not {text}")
    return count


def _drained(number: int, frame: object) -> None:
    """Nothing is left to do."""


def _tell(url: str) -> None:
    print(f"serving {url}", file=sys.stderr, flush=True)

"""The engines that `benchmarks.schemas` measures beside ours, each read byte by byte.

llguidance alone refuses (strict) or warns (lenient, which counts as a report); the others report nothing. A compilation
of theirs can take minutes, so they run in processes of their own that are ended after SECONDS; what does not compile by
then counts as refused. outlines-core and lm-format-enforcer live in the environment that `make bench-peers` makes, and
are left out where it is not.
"""

from __future__ import annotations

import json
import multiprocessing
import select
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from llguidance import LLMatcher

from m1runtime.grammar.reach import compiles
from m1runtime.grammar.vocabulary import byte_tokenizer

Accepts = Callable[[str], bool]
SECONDS = 10
ROOT = Path(__file__).parents[1]
PEERS = ROOT / ".venv-peers" / "bin" / "python"


class Refused(Exception):
    """A schema that an engine does not compile; says why."""


def engines() -> dict[str, Callable[[Any], tuple[Accepts, bool]]]:
    """The peers by name."""
    engines: dict[str, Callable[[Any], tuple[Accepts, bool]]] = {
        "llguidance strict": lambda schema: _llguidance(schema, lenient=False),
        "llguidance lenient": lambda schema: _llguidance(schema, lenient=True),
        "xgrammar strict_mode=False": _XGrammar(strict=False),
        "xgrammar default": _XGrammar(strict=True),
    }
    if PEERS.exists():
        engines |= {side: _Other(side) for side in ("outlines-core", "lm-format-enforcer")}
    return engines


def _llguidance(schema: Any, *, lenient: bool) -> tuple[Accepts, bool]:
    options = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False, "lenient": lenient}
    body = schema if isinstance(schema, dict) else {} if schema else {"not": {}}
    lark = f"start: %json {json.dumps({**body, 'x-guidance': options})}\n"
    failed, messages = compiles(lark)
    if failed:
        raise Refused(messages[0].split("\n")[0])
    grammar = LLMatcher.grammar_from_lark(lark)

    def accepts(text: str) -> bool:
        matcher = LLMatcher(byte_tokenizer(), grammar, log_level=0)
        return not matcher.is_error() and matcher.consume_tokens(list(text.encode())) and matcher.is_accepting()

    return accepts, bool(messages)


class _Worker(ABC):
    """An engine in a process that outlives its schemas, but not its time."""

    def __call__(self, schema: Any) -> tuple[Accepts, bool]:
        if self._ask(("compile", schema)) is not True:
            raise Refused("not compiled, or not in time")
        return lambda text: self._ask(("accepts", text)) is True, False

    @abstractmethod
    def _ask(self, request: tuple[str, Any]) -> Any:
        """The answer, None where it does not come in time."""


class _XGrammar(_Worker):
    def __init__(self, *, strict: bool) -> None:
        self._strict = strict
        self._process: multiprocessing.process.BaseProcess | None = None
        self._pipe: Connection | None = None

    def _ask(self, request: tuple[str, Any]) -> Any:
        if self._process is None or not self._process.is_alive():
            context = multiprocessing.get_context("spawn")
            self._pipe, theirs = context.Pipe()
            self._process = context.Process(target=_serve, args=(theirs, self._strict), daemon=True)
            self._process.start()
            theirs.close()
            self._pipe.recv()
        assert self._pipe is not None
        try:
            self._pipe.send(request)
            if self._pipe.poll(SECONDS):
                return self._pipe.recv()
        except (EOFError, OSError):
            pass
        self._process.kill()
        self._process.join()
        return None


class _Other(_Worker):
    """A side of benchmarks/peers/schemas.py."""

    def __init__(self, side: str) -> None:
        self._side = side
        self._process: subprocess.Popen[bytes] | None = None

    def _ask(self, request: tuple[str, Any]) -> Any:
        if self._process is None or self._process.poll() is not None:
            run = [str(PEERS), "-W", "ignore", "-m", "benchmarks.peers.schemas", self._side]
            streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
            self._process = subprocess.Popen(run, cwd=ROOT, bufsize=0, **streams)
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            if select.select([process.stdout], [], [], SECONDS)[0] and (answer := process.stdout.readline()):
                return json.loads(answer)
        except OSError:
            pass
        process.kill()
        process.wait()
        return None


def _serve(pipe: Connection, strict: bool) -> None:
    import xgrammar

    info = xgrammar.TokenizerInfo([*(bytes([i]) for i in range(256)), b"<end>"], stop_token_ids=[256])
    compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)
    pipe.send(None)
    compiled = None
    while True:
        kind, given = pipe.recv()
        if kind == "compile":
            try:
                compiled = compiler.compile_json_schema(
                    json.dumps(given), any_whitespace=False, separators=(", ", ": "), strict_mode=strict
                )
            except Exception:  # whatever it raises, the schema is refused
                compiled = None
            pipe.send(compiled is not None)
        elif compiled is not None:
            matcher = xgrammar.GrammarMatcher(compiled)
            pipe.send(all(matcher.accept_token(token) for token in (*given.encode(), 256)))

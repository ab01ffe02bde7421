"""The engines that `benchmarks.schemas` measures beside ours, each read byte by byte.

llguidance alone refuses (strict) or warns (lenient, which counts as a report); xgrammar reports nothing. A compilation
of xgrammar can take minutes, so it runs in a process of its own that is ended after SECONDS; what does not compile by
then counts as refused.
"""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from llguidance import LLMatcher

from m1runtime.grammar.reach import compiles
from m1runtime.grammar.vocabulary import byte_tokenizer

Accepts = Callable[[str], bool]
SECONDS = 10


class Refused(Exception):
    """A schema that an engine does not compile; says why."""


def engines() -> dict[str, Callable[[Any], tuple[Accepts, bool]]]:
    """The peers by name."""
    return {
        "llguidance strict": lambda schema: _llguidance(schema, lenient=False),
        "llguidance lenient": lambda schema: _llguidance(schema, lenient=True),
        "xgrammar strict_mode=False": _Worker(strict=False),
        "xgrammar default": _Worker(strict=True),
    }


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


class _Worker:
    """xgrammar in a process that outlives its schemas, but not its time."""

    def __init__(self, *, strict: bool) -> None:
        self._strict = strict
        self._process: multiprocessing.process.BaseProcess | None = None
        self._pipe: Connection | None = None

    def __call__(self, schema: Any) -> tuple[Accepts, bool]:
        if self._ask(("compile", json.dumps(schema))) is not True:
            raise Refused("not compiled, or not in time")
        return lambda text: self._ask(("accepts", text)) is True, False

    def _ask(self, request: tuple[str, str]) -> Any:
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


def _serve(pipe: Connection, strict: bool) -> None:
    import xgrammar

    info = xgrammar.TokenizerInfo([*(bytes([i]) for i in range(256)), b"<end>"], stop_token_ids=[256])
    compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)
    pipe.send(None)
    compiled = None
    while True:
        kind, text = pipe.recv()
        if kind == "compile":
            try:
                compiled = compiler.compile_json_schema(
                    text, any_whitespace=False, separators=(", ", ": "), strict_mode=strict
                )
            except Exception:  # whatever it raises, the schema is refused
                compiled = None
            pipe.send(compiled is not None)
        elif compiled is not None:
            matcher = xgrammar.GrammarMatcher(compiled)
            pipe.send(all(matcher.accept_token(token) for token in (*text.encode(), 256)))

"""Reads one tool call, `{"name": ..., "arguments": {...}}`, while it is being written."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any, cast

SHOWN = 120
IN_STRING = re.compile(r'[^"\\\n]+')
PLAIN = re.compile(r'[^"{}\[\]:,]+')
HEAD = re.compile(r'\{"name": "([^"\\\n]+)", "arguments": (?=\{)')


@dataclass(frozen=True, slots=True)
class ReadCall:
    """A call as far as it could be read; `problem` says why it must not be run."""

    name: str
    arguments: dict[str, Any]
    problem: str | None = None


@dataclass(slots=True)
class CallReader:
    """Follows the JSON of one call from its opening brace: knows the name as soon as it stands, and passes the
    characters of the arguments on once the name is known.
    """

    name: str | None = None
    closed: bool = False
    line_break: int | None = None
    _raw: list[str] = field(default_factory=list[str])
    _length: int = 0
    _depth: int = 0
    _in_string: bool = False
    _escaped: bool = False
    _token: list[str] | None = None
    _key: str | None = None
    _in_value: bool = False
    _in_arguments: bool = False
    _passed: list[str] = field(default_factory=list[str])

    @property
    def raw(self) -> str:
        """The characters read so far."""
        return "".join(self._raw)

    def read(self, text: str) -> int:
        """Read on to the closing brace; returns how many characters belong to the call."""
        position = 0
        while position < len(text) and not self.closed:
            run = None if self._escaped else (IN_STRING if self._in_string else PLAIN).match(text, position)
            part = run[0] if run else text[position]
            self._take(part)
            position += len(part)
        return position

    def take_arguments(self) -> str:
        """The characters of the arguments read since the last time."""
        text, self._passed = "".join(self._passed), []
        return text

    def finish(self) -> ReadCall:
        """The call, once it is closed or the reply has ended."""
        name = self.name or ""
        if not self.closed:
            return ReadCall(name, {}, f"the call was not finished: {cut(self.raw)}")
        try:
            return _read_call(_loads(self.raw), name)
        except (ValueError, RecursionError) as error:
            return ReadCall(name, {}, f"not valid JSON ({_reason(error)}): {cut(self.raw)}")

    def _take(self, part: str) -> None:
        self._raw.append(part)
        if self._in_string:
            self._take_in_string(part)
        else:
            self._take_outside(part)
        self._length += len(part)

    def _take_in_string(self, part: str) -> None:
        self._pass(part)
        if self._token is not None:
            self._token.append(part)
        if part == "\n" and self.line_break is None:
            self.line_break = self._length
        if self._escaped:
            self._escaped = False
        elif part == "\\":
            self._escaped = True
        elif part == '"':
            self._in_string = False
            self._end_token()

    def _take_outside(self, char: str) -> None:
        if char == '"':
            self._in_string = True
            if self._depth == 1:
                self._token = [char]
        elif char in "{[":
            self._open()
        elif self._depth == 1 and char in ":,":
            self._in_value = char == ":"
        self._pass(char)
        if char in "}]":
            self._close()

    def _open(self) -> None:
        self._depth += 1
        if self._depth == 2 and self._in_value and self._key == "arguments":
            self._in_arguments = True

    def _close(self) -> None:
        self._depth -= 1
        if self._depth == 1:
            self._in_arguments = False
        self.closed = self._depth <= 0

    def _pass(self, part: str) -> None:
        if self._in_arguments:
            self._passed.append(part)

    def _end_token(self) -> None:
        """A string directly inside the call is complete: a key, or the name."""
        if self._token is None:
            return
        text, self._token = "".join(self._token), None
        try:
            value = str(_loads(text)) if "\\" in text else text[1:-1]
        except ValueError:
            return
        if not self._in_value:
            self._key = value
        elif self._key == "name" and self.name is None:
            self.name = value


def whole_call(text: str) -> tuple[ReadCall, str, int] | None:
    """The call a text begins with, the text of its arguments, and where it ends: a shortcut past `CallReader`.

    None unless the call stands there whole, valid and written as the template writes it.
    """
    head = HEAD.match(text)
    if head is None:
        return None
    try:
        arguments, end = DECODER.raw_decode(text, head.end())
    except (ValueError, RecursionError):
        return None
    if not text.startswith("}", end):
        return None
    return ReadCall(head[1], arguments), text[head.end() : end], end + 1


def read_arguments(name: str, text: str) -> ReadCall:
    """A call whose name and arguments came apart, as servers send them: `text` is the JSON of the arguments alone."""
    try:
        return _read_call({"name": name, "arguments": _loads(text)}, name)
    except (ValueError, RecursionError) as error:
        return ReadCall(name, {}, f"not valid JSON ({_reason(error)}): {cut(text)}")


def cut(text: str) -> str:
    """The beginning of a text, on one line."""
    line = " ".join(text.split())
    return line if len(line) <= SHOWN else line[: SHOWN - 3] + "..."


def _read_call(value: Any, name: str) -> ReadCall:
    call = cast("dict[str, Any]", value)
    given = call.get("arguments")
    if not name or call.get("name") != name:
        return ReadCall(name, {}, f'a call needs one "name", a string: {cut(json.dumps(call, ensure_ascii=False))}')
    if isinstance(given, str):
        try:
            given = _loads(given) if given.strip() else None
        except (ValueError, RecursionError) as error:
            return ReadCall(name, {}, f"the arguments are a string that is not valid JSON ({_reason(error)})")
    if given is None:
        return ReadCall(name, {})
    if not isinstance(given, dict):
        return ReadCall(name, {}, f"the arguments must be a JSON object, not {cut(json.dumps(given))}")
    return ReadCall(name, cast("dict[str, Any]", given))


def _loads(text: str) -> Any:
    """JSON, with line breaks allowed in strings, and neither repeated keys nor NaN."""
    return json.loads(text, strict=False, object_pairs_hook=_unique, parse_constant=_no_constant)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key is given twice")
    return value


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at character {error.pos}"
    return "nested too deeply" if isinstance(error, RecursionError) else cut(str(error))


DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)

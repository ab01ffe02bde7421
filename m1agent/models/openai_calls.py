"""Tool calls of a remote reply, put together from pieces that servers number, name and repeat as they like."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from m1agent.models.openai_json import as_list, as_object
from m1agent.prompt.call import ReadCall, cut, read_arguments
from m1agent.schema import canonical_json

MARKS = re.compile(r'["\\{}\[\]]')


@dataclass(slots=True)
class ArgumentText:
    """The JSON text of one call's arguments as it comes. What `add` returns, joined, is the text of the arguments.

    Text that is no object, or that may turn out to be a placeholder (`{}`), is held back until `finish`.
    """

    _text: str = ""
    _told: int = 0
    _read: int = 0
    _depth: int = 0
    _in_string: bool = False
    _end: int | None = None

    @property
    def begun(self) -> bool:
        """Whether anything but blanks has come."""
        return bool(self._text.strip())

    @property
    def closed(self) -> bool:
        """Whether the first object is complete."""
        return self._end is not None

    def add(self, text: str) -> str:
        """More text; what may be told of it now."""
        self._text += text
        self._scan()
        start = len(self._text) - len(self._text.lstrip())
        inside = self._text[start + 1 : self._end]
        if not self._text.startswith("{", start) or not inside.strip(" \t\r\n}"):
            return ""
        self._told = max(self._told, start)
        end = len(self._text) if self._end is None else self._end
        told, self._told = self._text[self._told : end], max(self._told, end)
        return told

    def finish(self, name: str, *, ended: str = "") -> tuple[ReadCall, str]:
        """The call, and the rest of its text. `ended` says why it may be incomplete."""
        text = self._text.strip()
        read = read_arguments(name, text or "{}")
        if read.problem is not None and (repaired := _repeated(text)) is not None:
            read = ReadCall(name, repaired)
        if read.problem is not None:
            if ended and not self.closed:
                read = ReadCall(name, {}, f"{ended}: {cut(text)}")
            return read, ""
        return read, "" if self._told else canonical_json(read.arguments)

    def _scan(self) -> None:
        """Follow the braces of what is new, to find the end of the first object."""
        at = self._read
        while self._end is None and (mark := MARKS.search(self._text, at)):
            at = mark.end()
            if mark[0] == "\\":
                if at == len(self._text):  # What is escaped is still to come.
                    at -= 1
                    break
                at += 1
            elif mark[0] == '"':
                self._in_string = not self._in_string
            elif not self._in_string:
                self._depth += 1 if mark[0] in "{[" else -1
                if self._depth <= 0:
                    self._end = at
        else:
            at = len(self._text)
        self._read = at


@dataclass(frozen=True, slots=True)
class CallPiece:
    """A piece of a call as the server sent it; `key` is the number it gives the call, where it gives one."""

    key: Any
    id: str
    name: str
    arguments: str


@dataclass(slots=True)
class RemoteCall:
    """One call of a reply. `sent_id`: what the server calls it; `index` and `id`: what it is told as, once it is."""

    key: Any
    sent_id: str = ""
    name: str = ""
    arguments: ArgumentText = field(default_factory=ArgumentText)
    index: int = -1
    id: str = ""
    ready: bool = False

    def continues(self, piece: CallPiece) -> bool:
        """Whether a piece goes on with this call. The number alone does not say: some servers number all calls 0, some
        none, and some repeat the name with every piece."""
        if self.ready or (piece.key is not None and self.key is not None and piece.key != self.key):
            return False
        if piece.id and self.sent_id and piece.id != self.sent_id:
            return False
        if piece.name and self.name and not (piece.id and piece.id == self.sent_id):
            numbered = piece.key is not None
            again = piece.name == self.name and not self.arguments.closed
            return again or (numbered and not self.arguments.begun)
        return True

    def take(self, piece: CallPiece) -> str:
        """Take in a piece; the text of the arguments that may be told now."""
        self.sent_id = self.sent_id or piece.id
        if piece.name and piece.name != self.name and not self.arguments.begun:
            self.name += piece.name
        return self.arguments.add(piece.arguments)


def call_pieces(part: Mapping[str, Any]) -> list[CallPiece]:
    """The pieces in a delta or a message, those of the older `function_call` among them."""
    found = part.get("tool_calls")
    entries = [as_object(one) for one in as_list(found) or [found]]
    older = as_object(part.get("function_call"))
    entries += [{"index": 0, "function": older}] if older else []
    return [_piece(one) for one in entries if one]


def _piece(entry: Mapping[str, Any]) -> CallPiece:
    inner = as_object(entry.get("function")) or entry
    name, id, given = inner.get("name"), entry.get("id"), inner.get("arguments")
    text = given if isinstance(given, str) else "" if given is None else json.dumps(given, ensure_ascii=False)
    return CallPiece(entry.get("index"), str(id or ""), str(name or ""), text)


def _repeated(text: str) -> dict[str, Any] | None:
    """The one object of a text that holds it several times, or after empty ones; None where that is not sure."""
    decoder, at = json.JSONDecoder(), 0
    found: list[Any] = []
    while at < len(text):
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            return None
        found += [value] if value != {} else []
        at += len(text[at:]) - len(text[at:].lstrip())
    if not found:
        return {}
    return as_object(found[0]) or None if all(value == found[0] for value in found) else None

"""Output of a program: its beginning and its end are kept, the middle is counted."""

from __future__ import annotations

import re

ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")
CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
TAIL_SHARE = 4


class Capture:
    """Takes bytes as they come and holds at most `keep` of them."""

    def __init__(self, keep: int) -> None:
        self._tail_size = keep // TAIL_SHARE
        self._head_size = keep - self._tail_size
        self._head = bytearray()
        self._tail = bytearray()
        self.total = 0

    def add(self, chunk: bytes) -> None:
        """Take the next bytes."""
        self.total += len(chunk)
        room = self._head_size - len(self._head)
        self._head += chunk[:room]
        self._tail += chunk[room:] if room < len(chunk) else b""
        del self._tail[: max(0, len(self._tail) - self._tail_size)]

    @property
    def kept(self) -> bytes:
        """The bytes that were held."""
        return bytes(self._head + self._tail)

    @property
    def whole(self) -> bytes | None:
        """All bytes, or None where some were left out."""
        return None if self._gap else self.kept

    @property
    def _gap(self) -> int:
        return self.total - len(self._head) - len(self._tail)

    def text(self) -> str:
        """What there was, as text a model can read: without escape sequences, control characters spelt out."""
        gap = self._gap
        if not gap:
            return readable(self.kept)
        note = f"\n[... {gap} of {self.total} bytes left out ...]\n"
        return readable(bytes(self._head)) + note + readable(bytes(self._tail))


def readable(data: bytes) -> str:
    """Bytes of a terminal as plain text."""
    text = ESCAPES.sub("", data.decode("utf-8", "replace")).replace("\r\n", "\n").replace("\r", "\n")
    return CONTROLS.sub(lambda match: f"\\x{ord(match[0]):02x}", text)

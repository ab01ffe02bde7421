"""Files as text: what is text at all, its encoding and its line ends."""

from __future__ import annotations

import codecs
from dataclasses import dataclass

from m1agent import ToolError

MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
CONTROLS = frozenset(range(32)) - {7, 8, 9, 10, 12, 13, 27}


@dataclass(frozen=True, slots=True)
class Text:
    """The text of a file, with `\\n` at the ends of its lines, and how to write it back."""

    text: str
    encoding: str = "utf-8"
    line_end: str = "\n"

    def encode(self, text: str) -> bytes:
        """Another text as the file would hold it. Raises ToolError where its encoding lacks a character."""
        try:
            return text.replace("\n", self.line_end).encode(self.encoding)
        except UnicodeEncodeError as error:
            letter = text[error.start : error.start + 1]
            raise ToolError(f"The file is in {self.encoding}, which has no {letter!r}. Use other characters.") from None


def is_binary(data: bytes) -> bool:
    """Whether bytes are no text: by their control characters, as most programs tell."""
    if any(data.startswith(mark) for mark, _ in MARKS):
        return False
    return any(byte in CONTROLS for byte in data[:8192])


def read_text(path: str, data: bytes) -> Text:
    """Bytes as text: UTF-8, UTF-16 or UTF-32 by their mark, else Latin-1.

    Raises:
        ToolError: they are no text.
    """
    if is_binary(data):
        raise ToolError(f"{path}: expected text, got {len(data)} bytes of something else.")
    encoding = next((name for mark, name in MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        if encoding != "utf-8":
            raise ToolError(f"{path}: it begins like {encoding} and is none.") from None
        encoding, text = "latin-1", data.decode("latin-1")
    line_end = "\r\n" if "\r\n" in text and text.count("\r\n") == text.count("\n") else "\n"
    return Text(text.replace(line_end, "\n"), encoding, line_end)
